"""The Optuna back end."""
