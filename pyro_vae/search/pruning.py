"""Reports the epochs of a job to its trial, and ends the job if the trial is pruned."""

import json
import os
from typing import Any, NamedTuple

from pyro_vae.trackers.protocol import PrunedError

__all__ = ["VARIABLE", "PrunedError", "PruningTracker", "TrialReference"]

VARIABLE = "PYRO_VAE_TRIAL"
"""The environment variable that refers to the trial of a job."""


class TrialReference(NamedTuple):
    """The trial of a job.

    Attributes:
        storage: The URL of a database, or the path of a journal.
        study: The name of the study.
        trial_id: The id of the trial in the storage.
        pruner: The settings of the pruner.
    """

    storage: str
    study: str
    trial_id: int
    pruner: dict[str, Any]

    def dump(self) -> str:
        """Returns a text for the environment."""
        return json.dumps(self)

    @classmethod
    def find(cls) -> "TrialReference | None":
        """Returns the trial of this job, or ``None`` if the search does not prune."""
        text = os.environ.get(VARIABLE)
        return cls(*json.loads(text)) if text else None


class PruningTracker:
    """A tracker of :func:`pyro_vae.fit` that reports ``valid_elbo`` and asks the pruner.

    Arguments:
        reference: The trial.
    """

    def __init__(self, reference: TrialReference) -> None:
        import optuna

        from pyro_vae.search.storage import build_pruner, open_storage

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.storage, self.trial_id = open_storage(reference.storage), reference.trial_id
        self.study = optuna.load_study(study_name=reference.study, storage=self.storage)
        self.pruner = build_pruner(reference.pruner)

    def log(self, values: dict[str, float], step: int) -> None:
        """Reports one epoch.

        Raises:
            PrunedError: If the pruner ends the trial.
            ValueError: If there are no validation rows.
        """
        if "valid_elbo" not in values:
            raise ValueError(
                "Expected validation rows for a pruner, which compares valid_elbo, got none: set "
                "data.valid, or hydra/sweeper/pruner=none"
            )
        self.storage.set_trial_intermediate_value(self.trial_id, step, values["valid_elbo"])
        if self.pruner.prune(self.study, self.storage.get_trial(self.trial_id)):
            raise PrunedError(f"pruned after epoch {step}")
