"""elta-tune: hyperparameter studies of full ELTA trainings (ICML 2024) for image aesthetics assessment."""
