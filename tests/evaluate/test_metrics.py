"""The figures of a run: means over what is observed, and nothing that is not finite."""

import json
import math

import pytest
import torch

from pyro_vae import VAE, likelihoods
from pyro_vae.evaluate.metrics import check_finite_metrics, compute_metrics
from pyro_vae.files.atomic import strict_json

SETTINGS = {"num_particles": 50, "elbo_particles": 20, "evidence_rows": None}


@pytest.mark.parametrize("kind", ["rows", "elements"])
def test_rows_of_which_nothing_is_observed_do_not_count_in_means(kind):
    vae = VAE(3, 2, likelihood=likelihoods.Normal)
    x, rows = torch.randn(40, 3), torch.arange(40) % 4 != 0
    mask = rows if kind == "rows" else rows[:, None].expand(40, 3)
    torch.manual_seed(0)
    found = compute_metrics(vae, torch.where(rows[:, None], x, torch.nan), mask, **SETTINGS)
    torch.manual_seed(0)
    expected = compute_metrics(vae, x[rows], None, **SETTINGS)
    assert found["log_evidence_rows"] == 30
    assert found == expected
    with pytest.raises(ValueError, match="Expected mask to leave a row in, got none of 40"):
        compute_metrics(vae, x, mask & False, **SETTINGS)


def test_figures_of_one_row_say_what_they_lack():
    vae = VAE(3, 2, likelihood=likelihoods.Normal)
    found = compute_metrics(vae, torch.randn(1, 3), None, **SETTINGS)
    assert found["active_units"] is None
    text = json.loads(strict_json(found))
    assert (text["log_evidence_se"], text["elbo_se"], text["active_units"]) == (None, None, None)
    assert all(value is not None for name, value in text.items() if name not in (
        "log_evidence_se", "elbo_se", "active_units"))  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_is_not_returned(value):
    with pytest.raises(FloatingPointError, match="The metric 'objective' of the held-out rows is"):
        check_finite_metrics({"elbo": -1.0, "elbo_se": math.nan, "objective": value})


def test_a_vae_that_gives_no_finite_figures_names_the_cause():
    vae = VAE(3, 2, likelihood=likelihoods.Normal)
    vae.decoder.register_forward_hook(lambda module, inputs, features: features * 1e30)
    with pytest.raises(FloatingPointError, match=r"log p\(x given z\) is not finite for 9 of them"):
        compute_metrics(vae, torch.randn(9, 3), None, **SETTINGS)
