"""pythae's trainer: its VAE, data set, DataLoader, callbacks and optimizer, networks the same.

What is called is ``BaseTrainer.train_step``, its name for an epoch. What ``train`` does besides,
copying the model after an epoch that improves and writing it at the end, is left out. Its data set
has no binarization; one that draws zeros and ones for a row when it is read stands in.
"""

import logging
import tempfile
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cases import EPSILON, LEARNING_RATE, PIXELS, Case
from pythae.data.datasets import BaseDataset, DatasetOutput
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import Tensor, nn
from torch_parts import as_tensor, load, networks

from contenders.base import Runner


class Encoder(BaseEncoder):
    """The shared encoder; the scale goes into a log-variance."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> ModelOutput:
        """Returns mean and log-variance of q."""
        loc, raw = self.net(x).chunk(2, -1)
        return ModelOutput(embedding=loc, log_covariance=2 * (F.softplus(raw) + 1e-4).log())


class Decoder(BaseDecoder):
    """The shared decoder; pythae scores probabilities."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor) -> ModelOutput:
        """Returns the means of the pixels."""
        return ModelOutput(reconstruction=torch.sigmoid(self.net(z)))


class Watched(VAE):
    """pythae's VAE, whose losses of the steps are kept until they have been compared."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.kept: list[Tensor] | None = None

    def forward(self, inputs: BaseDataset, **kwargs: object) -> ModelOutput:
        """Computes the loss."""
        output = super().forward(inputs, **kwargs)
        if self.kept is not None:
            self.kept.append(output.loss.detach())
        return output


class Drawn(BaseDataset):
    """Draws zeros and ones for a row when it is read."""

    def __getitem__(self, index: int) -> DatasetOutput:
        """Returns a row."""
        return DatasetOutput(data=torch.bernoulli(self.data[index]), labels=self.labels[index])


class TrainerRunner(Runner):
    """Trains for whole epochs."""

    def __init__(self, case: Case, data: np.ndarray, device: str) -> None:
        logging.disable()
        torch.manual_seed(0)
        self.rows_per_call, self.epochs = len(data), 0
        x = as_tensor(case, data, "cpu")
        encoder, decoder = networks(case)
        load(case, encoder, decoder)
        settings = VAEConfig(input_dim=(PIXELS,), latent_dim=case.latent, reconstruction_loss="bce")
        self.model = Watched(settings, Encoder(encoder), Decoder(decoder))
        self.trainer = BaseTrainer(
            self.model,
            (Drawn if case.binarize else BaseDataset)(x, torch.zeros(len(x))),
            training_config=BaseTrainerConfig(
                output_dir=tempfile.mkdtemp(),
                per_device_train_batch_size=case.batch,
                learning_rate=LEARNING_RATE,
                optimizer_params={"eps": EPSILON},
                no_cuda=device == "cpu",
            ),
        )
        self.trainer.prepare_training()
        self.callbacks("on_train_begin")
        self.model.kept = []

    def callbacks(self, event: str) -> None:
        """Tells the trainer's callbacks of an event."""
        settings = self.trainer.training_config
        getattr(self.trainer.callback_handler, event)(training_config=settings)

    def run(self, calls: int) -> float:
        """Trains for so many epochs; the loss is the mean over batches of the last."""
        loss = 0.0
        for _ in range(calls):
            self.epochs += 1
            self.callbacks("on_epoch_begin")
            loss = self.trainer.train_step(self.epochs)
            self.callbacks("on_epoch_end")
        return float(loss)

    def check(self, case: Case, steps: int, made: int) -> float:
        """Trains for as many epochs as hold the steps; the loss is that of the same steps."""
        while len(self.model.kept) < steps:
            self.run(1)
        window = case.window(steps)
        loss = torch.stack(self.model.kept[steps - window : steps]).mean().item()
        self.model.kept = None
        return loss


def prepare(case: Case, data: np.ndarray, device: str) -> Runner:
    """Makes the training."""
    return TrainerRunner(case, data, device)
