"""Topics of documents that were drawn from known topics, and the weights of documents left out."""

import pyro
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_vae import objectives
from scenarios.topics import topic_model

WORDS, TOPICS, DOCUMENTS, LEFT_OUT = 60, 5, 1000, 500


def documents() -> tuple[Tensor, Tensor, Tensor]:
    """Returns topics, their weights in each document, and documents of 20 to 80 words."""
    pyro.set_rng_seed(7)
    rows = DOCUMENTS + LEFT_OUT
    topics = pyro.distributions.Dirichlet(torch.full((WORDS,), 0.15)).sample((TOPICS,))
    weights = (2 * torch.randn(rows, TOPICS)).softmax(-1)
    words = torch.multinomial(weights @ topics, 80, replacement=True)
    kept = torch.arange(80) < torch.randint(20, 81, (rows, 1))
    return topics, weights, torch.zeros(rows, WORDS).scatter_add_(1, words, kept.float())


def cosines(topics: Tensor, found: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(topics[:, None], found, dim=-1)


@pytest.mark.long
def test_topics_and_their_weights_are_found():
    topics, weights, x = documents()
    vae = topic_model(WORDS, TOPICS, longest=80, hidden=64)
    adam = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.01 ** (1 / 800)})
    svi = pyro.infer.SVI(vae.model, vae.guide, adam, objectives.ELBO())
    for _ in range(800):
        svi.step(x[torch.randint(DOCUMENTS, (200,))], data_size=DOCUMENTS)
    vae.eval()
    with torch.no_grad():
        cosine = cosines(topics, vae.decoder.topics())
        found = (2 * vae.encode(x[DOCUMENTS:]).mean).softmax(-1)
    rows, columns = linear_sum_assignment(-cosine.numpy())
    # Latent Dirichlet allocation as in scikit-learn finds them to 0.998 at the least.
    assert cosine[rows, columns].min() > 0.98
    # Given the true topics, the best z of each of these documents is off by 0.041.
    error = (found[:, columns] - weights[DOCUMENTS:]).abs().mean()
    assert error < 0.07
    assert error < 0.4 * (weights.mean(0) - weights).abs().mean()
