"""The tensors of distributions, and the same distributions with others."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import transforms

from pyro_vae.distributions.flatten import find_tensors, replace_tensors


def positive(*shape):
    return torch.rand(*shape) + 0.5


MAKERS = {
    "normal": lambda: dist.Normal(torch.randn(4, 3), positive(4, 3)).to_event(1),
    "broadcast": lambda: dist.Normal(torch.randn(4, 3), 1.0).to_event(1),
    "full": lambda: dist.MultivariateNormal(
        torch.randn(4, 3), scale_tril=torch.eye(3) * positive(4, 1, 1)
    ),
    "low rank": lambda: dist.LowRankMultivariateNormal(
        torch.randn(4, 3), torch.randn(4, 3, 2), positive(4, 3)
    ),
    "mixture": lambda: dist.MixtureSameFamily(
        dist.Categorical(logits=torch.randn(4, 5)),
        dist.Normal(torch.randn(4, 5, 3), positive(4, 5, 3)).to_event(1),
    ),
    "transformed": lambda: dist.TransformedDistribution(
        dist.Normal(torch.randn(4, 3), positive(4, 3)).to_event(1),
        [transforms.AffineTransform(torch.randn(4, 3), positive(4, 3)), transforms.TanhTransform()],
    ),
    "inverse": lambda: dist.TransformedDistribution(
        dist.Normal(torch.randn(4, 3), positive(4, 3)).to_event(1),
        [transforms.AffineTransform(torch.randn(4, 3), positive(4, 3)).inv],
    ),
    "cached": lambda: dist.TransformedDistribution(
        dist.Normal(torch.randn(4, 3), positive(4, 3)).to_event(1),
        [transforms.AffineTransform(torch.randn(4, 3), positive(4, 3), cache_size=1)],
    ),
    "composed": lambda: dist.TransformedDistribution(
        dist.Normal(torch.randn(4, 3), positive(4, 3)),
        transforms.ComposeTransform(
            [transforms.ExpTransform(), transforms.AffineTransform(0.5, positive(4, 3))]
        ),
    ).to_event(1),
    "masked": lambda: dist.Bernoulli(logits=torch.randn(4, 3)).mask(torch.rand(4, 3) < 0.5)
    .to_event(1),
    "expanded": lambda: dist.Dirichlet(positive(3)).expand((4,)),
}  # fmt: skip


def used(name):
    """A distribution that has been drawn from and scored, so that it holds derived tensors."""
    d = MAKERS[name]()
    d.log_prob(d.sample((2,)))
    return d


def draws(d):
    torch.manual_seed(5)
    return d.sample((6,))


@pytest.mark.parametrize("name", MAKERS)
def test_with_the_tensors_of_another_it_is_the_other(name):
    d, other = used(name), used(name)
    tensors, description = find_tensors(other)
    assert find_tensors(d)[1] == description
    assert hash(description) == hash(find_tensors(d)[1])
    copied = replace_tensors(d, iter(tensors))
    x = draws(other)
    torch.testing.assert_close(draws(copied), x)
    torch.testing.assert_close(copied.log_prob(x), other.log_prob(x))
    assert type(copied) is type(d)


@pytest.mark.parametrize("name", MAKERS)
def test_the_original_stays(name):
    d, other = used(name), used(name)
    x, expected = draws(d), d.log_prob(draws(d))
    replace_tensors(d, iter(find_tensors(other)[0])).log_prob(x)
    torch.testing.assert_close(d.log_prob(x), expected)


@pytest.mark.parametrize("name", MAKERS)
def test_every_tensor_is_found(name):
    """No number of the copy comes from the original: NaN in every tensor reaches the density."""
    d = used(name)
    x = draws(d)
    tensors, _ = find_tensors(d)
    shifted = [t + 0.25 if t.is_floating_point() else t for t in tensors]
    found = replace_tensors(d, iter(shifted)).log_prob(x)
    assert not torch.allclose(found, d.log_prob(x))


def test_different_structures_have_different_descriptions():
    structures = [MAKERS[name]() for name in MAKERS]
    structures += [dist.Normal(torch.zeros(4, 3), 1.0), dist.Normal(torch.zeros(4, 2), 1.0)]
    structures += [(torch.zeros(2), None), (torch.zeros(2), torch.zeros(2)), (torch.zeros(2), 1)]
    structures += [[torch.zeros(2), None], (torch.zeros(2, dtype=torch.float64), None)]
    assert len({find_tensors(value)[1] for value in structures}) == len(structures)
