"""Three data sets on which training fails in a known way that can be diagnosed and cured.

``tests/training/test_pitfalls.py`` shows each failure, its symptom and its cure.
"""

import torch
from torch import Generator, Tensor

from pyro_vae.data.base import Data
from pyro_vae.data.toys import draw_data
from pyro_vae.validation import check_size

__all__ = ["collapse", "manifold", "two_modes"]


def manifold(
    n: int = 500, *, noise: float = 0.0, valid: float = 0.1, test: float = 0.2, seed: int = 0
) -> Data:
    r"""Returns rows on a curve in the plane, without noise: the likelihood is unbounded.

    .. math:: x = (t, \sin t), \quad t \sim \mathrm{Uniform}(-2, 2)

    A decoder that follows the curve gains as its scale shrinks, :math:`-\log\sigma` nats for each
    direction off the curve, without end. Symptom: four times the training gives a smaller scale
    and a larger evidence, on held-out rows too, so the evidence measures the length of the
    training. Cure: a lower bound at the precision of the data, ``min_scale`` of
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

    return draw_data("manifold", draw, n, noise, valid, test, seed)


def collapse(
    n: int = 1000, *, dims: int = 12, valid: float = 0.1, test: float = 0.2, seed: int = 0
) -> Data:
    r"""Returns rows with a one at a random position and zeros elsewhere: the posterior collapses.

    Each pair of the ``dims`` values is nearly independent, with a correlation of
    :math:`-1 / (\mathrm{dims} - 1)`. Without a latent, Bernoulli variables therefore score
    :math:`\log(1 - p) (\mathrm{dims} - 1) + \log p` with p = 1 / dims; with one,
    :math:`-\log \mathrm{dims}` is possible. At first a latent gains less than its rate costs,
    and the ELBO stays at the plateau of an uninformative latent. Symptom: a rate near zero, and a
    reconstruction that hardly depends on the datum. Cure: a rate without cost
    at first, ``schedules={"beta": Linear(0.0, 1.0, steps)}``. (Importance weights alone do not
    help: IWAE has the same plateau.)

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
        index = torch.randint(dims, (n,), generator=generator)
        return torch.eye(dims)[index], index

    return draw_data("collapse", draw, n, 0.0, valid, test, seed)


def two_modes(
    n: int = 1000, *, noise: float = 0.4, valid: float = 0.1, test: float = 0.2, seed: int = 0
) -> Data:
    r"""Returns noisy squares, which determine the latent up to its sign: a bimodal posterior.

    .. math:: x = z^2 + \sigma\varepsilon, \quad z, \varepsilon \sim \mathcal{N}(0, 1)

    Under the decoder :math:`z \mapsto z^2` the posterior p(z given x) has modes at
    :math:`\pm\sqrt{x}`, and a normal one covers one of them, at a cost of up to log 2 nats.
    Symptom: a gap between log evidence and ELBO. Importance sampling misses a mode without
    samples too, so ``evaluate.log_evidence(..., proposal="prior")`` is larger.
    Cure: IWAE, under which the posterior covers both, or a posterior family with two modes.

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

    return draw_data("two_modes", draw, n, noise, valid, test, seed)
