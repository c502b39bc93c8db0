"""The loop of tutorials: DataLoader and ToTensor, default Adam, the loss read at each step."""

import numpy as np
import torch
from cases import EPSILON, LEARNING_RATE, PIXELS, Case
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from contenders.base import Runner
from contenders.handwritten import Model


class Pictures(datasets.MNIST):
    """torchvision's MNIST, its pictures given instead of read."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = torch.from_numpy(data).reshape(-1, 28, 28)
        self.targets = torch.zeros(len(data), dtype=torch.long)
        self.transform, self.target_transform = transforms.ToTensor(), None


class LoaderRunner(Runner):
    """Trains for whole epochs."""

    def __init__(self, case: Case, data: np.ndarray, device: str) -> None:
        torch.manual_seed(0)
        self.rows_per_call, self.binarize, self.device = len(data), case.binarize, device
        self.loader = DataLoader(Pictures(data), case.batch, shuffle=True)
        self.model = Model(case).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), LEARNING_RATE, eps=EPSILON)

    def run(self, calls: int) -> float:
        """Trains for so many epochs."""
        return sum(self.epoch() for _ in range(calls)) / calls

    def epoch(self) -> float:
        """Trains for an epoch."""
        total = 0.0
        for x, _ in self.loader:
            x = x.to(self.device).view(-1, PIXELS)
            x = torch.bernoulli(x) if self.binarize else x
            self.optimizer.zero_grad()
            loss = self.model(x)
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(x)
        return total / self.rows_per_call


def prepare(case: Case, data: np.ndarray, device: str) -> Runner:
    """Makes the training."""
    return LoaderRunner(case, data, device)
