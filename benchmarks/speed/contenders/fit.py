"""Whole epochs of pyro_vae's ``fit``: order, binarization, steps and the row of its history.

``fit`` runs in a thread of its own, and waits at the end of each epoch until the next is asked
for; so all epochs are those of one training.
"""

import threading

import numpy as np
import torch
from cases import Case
from torch_parts import as_tensor, fused_adam

from contenders.base import Runner
from contenders.ours import SHAPE, model, objective
from pyro_vae import fit
from pyro_vae.data import Rows

MANY = 1_000_000


class FitRunner(Runner):
    """Also the tracker of the training, which ``fit`` calls after each epoch."""

    def __init__(self, case: Case, data: np.ndarray, device: str, compile: bool) -> None:
        self.rows_per_call = len(data)
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.loss, self.error, self.waiting = 0.0, None, 0
        self.arguments = (case, data, device, "strict" if compile else False)
        self.compiled = compile
        threading.Thread(target=self.train, daemon=True).start()

    def train(self) -> None:
        """Trains for ever."""
        self.go.acquire()
        try:
            self.fit(*self.arguments)
        except Exception as error:
            self.error = error
            self.done.release()

    def fit(self, case: Case, data: np.ndarray, device: str, compile: bool | str) -> None:
        """Makes VAE and data, and calls ``fit``."""
        torch.manual_seed(0)
        x = as_tensor(case, data, device).reshape(-1, *SHAPE)
        fit(
            model(case, device),
            Rows(x, dynamic=case.binarize),
            objective=objective(case),
            optimizer=fused_adam,
            epochs=MANY,
            batch_size=case.batch,
            compile=compile,
            tracker=self,
        )

    def log(self, values: dict[str, float], step: int) -> None:
        """Notes the loss of an epoch, and waits for the next."""
        self.loss = -values["train_objective"]
        self.done.release()
        self.go.acquire()

    def run(self, calls: int) -> float:
        """Trains for so many epochs; the first call pays for what is set up once."""
        total = 0.0
        for _ in range(calls):
            self.go.release()
            self.done.acquire()
            if self.error is not None:
                raise self.error
            total += self.loss
        return total / calls


def prepare(case: Case, data: np.ndarray, device: str, compile: bool) -> Runner:
    """Makes the training."""
    return FitRunner(case, data, device, compile)
