"""Metrics and weights that are not finite: what is reported, and what passes."""

import math

import pytest
import torch
from torch import nn

from pyro_vae.finite import (
    check_finite,
    check_weights,
    explain_invalid_parameters,
    find_nonfinite_rows,
)

NAN, INF = math.nan, math.inf


def test_one_particle_that_is_not_finite_marks_its_row():
    values = torch.tensor([[1.0, NAN, 3.0, 4.0], [1.0, 2.0, -INF, 4.0]])
    rows = find_nonfinite_rows({"log p": values, "log q": torch.ones(2, 4)})
    assert rows["log p"].tolist() == [False, True, True, False]
    assert rows["log q"].tolist() == [False] * 4


def test_finite_metrics_pass_whatever_their_terms():
    check_finite("ELBO", torch.tensor([1.0, 2.0]), {"log p": torch.tensor([True, False])})


def test_the_rows_and_terms_of_a_metric_are_counted():
    values = torch.tensor([1.0, NAN, INF, 4.0, NAN])
    # The first term is not finite in a row where the metric is, too.
    faults = {
        "log p": torch.tensor([True, True, False, False, True]),
        "log q": torch.tensor([True, False, False, True, False]),
        "log r": torch.tensor([False, True, True, False, False]),
    }
    with pytest.raises(FloatingPointError) as error:
        check_finite("ELBO", values, faults)
    assert str(error.value).startswith(
        "The ELBO is not finite for 3 of 5 rows, the first of them row 1: log p is not finite for "
        "2 of them, log r is not finite for 2 of them. Evaluate in double precision"
    )
    with pytest.raises(FloatingPointError, match=r"the first of them row 1\. Evaluate"):
        check_finite("ELBO", values, {})


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_weights_with_one_number_that_is_not_finite_are_named(count):
    layers = nn.ModuleList(nn.Linear(3, 2) for _ in range(5))
    check_weights(layers)
    for layer in list(layers)[:count]:
        layer.weight.data[1, 2] = NAN
    names = [f"{i}.weight" for i in range(count)]
    others = f" and {count - 3} others" if count > 3 else ""
    with pytest.raises(FloatingPointError) as error:
        check_weights(layers)
    assert str(error.value) == (
        f"The weights of the VAE are not finite in {', '.join(names[:3])}{others}: train again "
        f"with a lower learning rate or clip_norm"
    )


def test_buffers_count_as_weights():
    norm = nn.BatchNorm1d(3)
    norm.running_var[1] = INF
    with pytest.raises(FloatingPointError, match="in running_var"):
        check_weights(norm)


def test_invalid_parameters_are_those_of_a_named_distribution():
    with (
        pytest.raises(FloatingPointError, match=r"parameters of q\(z\) are not finite"),
        explain_invalid_parameters("q(z)"),
    ):
        torch.distributions.Normal(torch.tensor(NAN), 1.0, validate_args=True)
    with pytest.raises(ValueError, match=r"^other$"), explain_invalid_parameters("q(z)"):
        raise ValueError("other")
