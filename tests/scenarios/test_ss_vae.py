"""A hundred labels among the digits: classes of the other rows teach the classifier."""

import math
import statistics
from functools import partial

import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from pyro_vae import VAE, data, networks
from scenarios.ss_vae import program

PER_CLASS = 10
STEPS = 300
BATCH = 100

MLP = partial(networks.MLP, hidden=[64])
DIGITS = data.digits()
ADAM = partial(torch.optim.Adam, lr=1e-2)


def labelled(seed: int) -> Tensor:
    """Draws training rows, of each class alike."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(DIGITS.labels.train), generator=generator)
    of_class = (order[DIGITS.labels.train[order] == k][:PER_CLASS] for k in range(10))
    return torch.cat(list(of_class))


def semi_supervised(rows: Tensor) -> nn.Module:
    """Trains the classifier within M2."""
    classifier = MLP(DIGITS.event_shape, (10,))
    vae = VAE(DIGITS.event_shape, 8, plate=None, covariate_dim=10, encoder=MLP, decoder=MLP)
    model, guide = program(vae, classifier, weight=20.0)
    loss = TraceEnum_ELBO(max_plate_nesting=1)(model, config_enumerate(guide))
    rest = torch.ones(len(DIGITS.x.train), dtype=torch.bool).index_fill(0, rows, False)
    x, unlabelled = DIGITS.x.train[rows], DIGITS.x.train[rest]
    optimizer = ADAM([*vae.parameters(), *classifier.parameters()])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        batch = unlabelled[torch.randint(len(unlabelled), (BATCH,))]
        loss(x, DIGITS.labels.train[rows], batch).backward()
        optimizer.step()
        schedule.step()
    return classifier


def supervised(rows: Tensor) -> nn.Module:
    """Trains the same classifier on the labels alone."""
    classifier = MLP(DIGITS.event_shape, (10,))
    optimizer = ADAM(classifier.parameters())
    for _ in range(STEPS):
        optimizer.zero_grad()
        logits = classifier(DIGITS.x.train[rows])
        nn.functional.cross_entropy(logits, DIGITS.labels.train[rows]).backward()
        optimizer.step()
    return classifier


def accuracy(classifier: nn.Module) -> float:
    with torch.no_grad():
        return (classifier(DIGITS.x.test).argmax(-1) == DIGITS.labels.test).double().mean().item()


def logistic(rows: Tensor) -> float:
    """The test accuracy of logistic regression on the labels alone."""
    fitted = LogisticRegression(max_iter=1000)
    fitted.fit(DIGITS.x.train[rows].flatten(1), DIGITS.labels.train[rows])
    return float(fitted.score(DIGITS.x.test.flatten(1), DIGITS.labels.test))


def gains(seeds: range) -> tuple[list[float], list[float]]:
    """By how much M2 is more accurate than logistic regression and than its classifier alone."""
    over_logistic, over_classifier = [], []
    for seed in seeds:
        torch.manual_seed(seed)
        rows = labelled(seed)
        found = accuracy(semi_supervised(rows))
        over_logistic.append(found - logistic(rows))
        over_classifier.append(found - accuracy(supervised(rows)))
    return over_logistic, over_classifier


def paired_t(differences: list[float]) -> float:
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.mean(differences) / error


@pytest.mark.long
def test_two_draws_of_labels_gain_on_both_baselines():
    """Test rows are 359, so that each accuracy has a standard error of 0.018."""
    for differences in gains(range(2)):
        assert statistics.mean(differences) > 0.01


@pytest.mark.long
def test_ten_draws_of_labels_gain_on_both_baselines():
    for differences in gains(range(10)):
        assert paired_t(differences) > 3
