"""Calls whose result type depends on an argument: mypy checks this file, and nothing runs it."""

from torch import Tensor
from typing_extensions import assert_type

from pyro_vae import VAE, evaluate


def check_evidence(vae: VAE, x: Tensor, *, diagnostics: bool) -> None:
    """Checks each overload."""
    assert_type(evaluate.log_evidence(vae, x, 20), Tensor)
    assert_type(evaluate.log_evidence(vae, x, diagnostics=False), Tensor)
    assert_type(evaluate.log_evidence(vae, x, 20, diagnostics=True), evaluate.Evidence)
    assert_type(evaluate.log_evidence(vae, x, diagnostics=diagnostics), Tensor | evaluate.Evidence)


def check_positions(vae: VAE, x: Tensor) -> None:
    """Checks that the number of particles may stand third."""
    assert_type(evaluate.elbo(vae, x, 20), evaluate.Bound)
    assert_type(evaluate.kl_per_dimension(vae, x, 20), Tensor)
