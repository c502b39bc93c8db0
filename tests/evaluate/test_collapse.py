"""One definition of active dimensions and of collapse, in metrics, page and picture."""

import math

import pytest
import torch

from pyro_vae import VAE, evaluate, likelihoods
from pyro_vae.collapse import LEAST_RATE, is_collapsed
from pyro_vae.report import content, figures

METRICS = {
    "grey_scale": False, "latent_dim": 10, "active_units": 7, "rate": 12.0, "gap": 0.5,
    "log_evidence": -20.0, "kl_closed_form": {}, "kl_reason": {}, "effective_sample_size_min": 90.0,
    "mixture_log_evidence": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("active", "rate", "said"),
    [
        (7, 12.0, False),  # A healthy model that does not need three dimensions.
        (1, 2.0, False),  # Data on a line.
        (10, 12.0, False),
        (0, 12.0, True),
        (2, 0.11, False),
        (2, 0.09, True),  # Means that vary by noise: the rate shows that they carry nothing.
        (None, 3.0, False),  # One row has no active units.
        (None, 0.0, True),
    ],
)
def test_a_warning_is_one_of_a_collapse_alone(active, rate, said):
    found = content.find_warnings(METRICS | {"active_units": active, "rate": rate})
    assert [text.startswith("Posterior collapse") for text in found] == [True] * said
    assert is_collapsed(active, rate) is said


def test_a_rate_that_is_not_known_is_no_collapse():
    assert not is_collapsed(3, None)
    assert not is_collapsed(3, math.nan)


def test_the_least_rate_itself_is_no_collapse():
    assert not is_collapsed(3, LEAST_RATE)
    assert is_collapsed(3, LEAST_RATE - 1e-6)


@pytest.mark.parametrize(("size", "said"), [(9.9, True), (10.1, False)])
def test_a_warning_of_too_few_effective_samples(size, said):
    found = content.find_warnings(METRICS | {"effective_sample_size_min": size})
    assert [f"{size:.1f}" in text for text in found] == [True] * said


class Scaled(torch.nn.Module):
    """An encoder of means that vary by 0, a little and much, all with a KL above zero."""

    def forward(self, x):
        mean = x * torch.tensor([0.0, 0.05, 2.0])
        return torch.stack([mean, torch.full_like(mean, -3.0)], 1)


def test_the_picture_counts_the_dimensions_that_the_metrics_count():
    vae = VAE(3, 3, encoder=Scaled(), likelihood=likelihoods.Normal)
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[:50] = False
    kl = evaluate.kl_per_dimension(vae, x).tolist()
    assert min(kl) > 0.1
    active = figures.find_active_units(vae, x, None, mask)
    assert active.tolist() == evaluate.active_units(vae, x[50:]).tolist() == [False, False, True]
    legend = figures.draw_rates(kl, active).figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [
        "active: 1 of 3",
        "not active: 2 of 3",
    ]
    assert figures.find_active_units(vae, x[:1], None, None) is None
