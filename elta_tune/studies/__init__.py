"""Who decides what runs: the plan of a study, its Optuna back end, and the supervisor that owns it."""
