"""The tolerances of the comparison of a graph with the eager step."""

import pytest
import torch

from pyro_vae.compiled.graph import NotCapturedError
from pyro_vae.compiled.verify import check_close, check_gradients


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_gradients_may_differ_by_ten_times_as_much(dtype, tolerance):
    expected = torch.linspace(1, 2, 1000, dtype=dtype)
    for check, factor in ((check_close, 1), (check_gradients, 10)):
        check("gradient", [expected * (1 + 0.9 * factor * tolerance)], [expected])
        with pytest.raises(NotCapturedError, match="the gradient differs from that of the eager"):
            check("gradient", [expected * (1 + 1.1 * factor * tolerance)], [expected])
