"""Three sets on which a training goes wrong in a way that can be seen, and cured.

``tests/test_pitfalls.py`` shows each, the figure that tells, and the cure.
"""

import torch
from torch import Generator, Tensor

from pyro_vae.data.base import Data
from pyro_vae.data.toys import drawn
from pyro_vae.validation import check_size

__all__ = ["collapse", "manifold", "two_modes"]


def manifold(
    n: int = 500, *, noise: float = 0.0, valid: float = 0.1, test: float = 0.2, seed: int = 0
) -> Data:
    r"""Returns rows on a curve in the plane, without noise: the likelihood has no bound.

    .. math:: x = (t, \sin t), \quad t \sim \mathrm{Uniform}(-2, 2)

    A decoder that follows the curve gains as its scale shrinks, :math:`-\log\sigma` nats for each
    direction off the curve, without end. What tells: four times the training gives a smaller scale
    and a larger evidence, on held-out rows too, so that the evidence measures the length of the
    training. The cure: a scale below which data are not known, ``min_scale`` of
    :class:`pyro_vae.likelihoods.Normal` (then :math:`\log p(x) \le -\log 2\pi\sigma^2`), or
    ``noise`` of that size added to the data.

    References:
        | Diagnosing and enhancing VAE models (Dai and Wipf, 2019),
          https://arxiv.org/abs/1903.05789

    Arguments:
        n: The number of rows.
        noise: The standard deviation of the noise.
        valid: The rows kept for validation: a number, or a fraction if it is a float.
        test: The rows kept for the test, likewise.
        seed: The seed of rows and split.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> t, x = manifold().x.train.unbind(-1)
        >>> bool((x == t.sin()).all())
        True
    """

    def draw(generator: Generator) -> tuple[Tensor, None]:
        t = 4 * torch.rand(n, generator=generator) - 2
        return torch.stack([t, t.sin()], -1), None

    return drawn("manifold", draw, n, noise, valid, test, seed)


def collapse(
    n: int = 1000, *, dims: int = 12, valid: float = 0.1, test: float = 0.2, seed: int = 0
) -> Data:
    r"""Returns rows with a one at a random place and zeros elsewhere: the posterior collapses.

    Each pair of the ``dims`` values is nearly independent, with a correlation of
    :math:`-1 / (\mathrm{dims} - 1)`, so that Bernoulli variables without any code score
    :math:`\log(1 - p) (\mathrm{dims} - 1) + \log p` with p = 1 / dims; with one,
    :math:`-\log \mathrm{dims}` is possible. The first steps of a code gain less than their rate
    costs, and the ELBO stays where the code says nothing. What tells: a rate near zero, and a
    reconstruction that hardly depends on the datum. The cure: a rate that costs nothing
    at first, ``schedules={"beta": Linear(0.0, 1.0, steps)}``. (Importance weights alone are no
    cure here: IWAE has the same plateau.)

    References:
        | Generating sentences from a continuous space (Bowman et al., 2016),
          https://arxiv.org/abs/1511.06349

    Arguments:
        n: The number of rows.
        dims: The number of values of a row.
        valid: The rows kept for validation: a number, or a fraction if it is a float.
        test: The rows kept for the test, likewise.
        seed: The seed of rows and split.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> collapse().x.train.sum(-1).unique()
        tensor([1.])
    """
    dims = check_size("dims", dims, least=2)

    def draw(generator: Generator) -> tuple[Tensor, Tensor]:
        place = torch.randint(dims, (n,), generator=generator)
        return torch.eye(dims)[place], place

    return drawn("collapse", draw, n, 0.0, valid, test, seed)


def two_modes(
    n: int = 1000, *, noise: float = 0.4, valid: float = 0.1, test: float = 0.2, seed: int = 0
) -> Data:
    r"""Returns squares with noise, whose code is known but for its sign: a posterior of two modes.

    .. math:: x = z^2 + \sigma\varepsilon, \quad z, \varepsilon \sim \mathcal{N}(0, 1)

    Under the decoder :math:`z \mapsto z^2` the posterior p(z given x) has modes at
    :math:`\pm\sqrt{x}`, and a normal one covers one of them, at a price of up to log 2 nats. What
    tells: a gap between log evidence and ELBO, and, because a mode without samples is missed by
    importance sampling too, a log evidence that is larger by
    ``evaluate.log_evidence(..., proposal="prior")``. The cure: IWAE, under which the posterior
    covers both, or a posterior family with two modes.

    Arguments:
        n: The number of rows.
        noise: The standard deviation of the noise.
        valid: The rows kept for validation: a number, or a fraction if it is a float.
        test: The rows kept for the test, likewise.
        seed: The seed of rows and split.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> two_modes().x.train.shape
        torch.Size([700, 1])
    """

    def draw(generator: Generator) -> tuple[Tensor, None]:
        return torch.randn(n, 1, generator=generator).square(), None

    return drawn("two_modes", draw, n, noise, valid, test, seed)
