"""Searches settings with Optuna: ``hydra/sweeper=optuna``."""
