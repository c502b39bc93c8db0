"""Larger models around VAEs, each built in the same way in any process."""

from functools import partial
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoMultivariateNormal
from pyro.nn import PyroModule, PyroParam
from torch.distributions import constraints

from pyro_vae import VAE, AutoVAEGuide, networks

X = (torch.rand(20, 8, generator=torch.Generator().manual_seed(1)) > 0.5).float()
Y = torch.linspace(-1, 1, 20)


class Built(NamedTuple):
    """A model and guide, their modules, and the functions of a training."""

    model: Any
    guide: Any
    modules: Any
    evaluate: Any
    step: Any
    get_state: Any
    set_state: Any


def make_vae(name, latent_dim=3):
    network = partial(networks.MLP, hidden=[6], batch_norm=True)
    return VAE(8, latent_dim, encoder=network, decoder=network, name=name, plate=None)


def build_two_vaes(shape=(3,), extra=False):
    """Two VAEs in functions, with constrained parameters, trained by SVI."""
    one, other = make_vae("one"), make_vae("other", 2)

    def model(x, y=None):
        weights = pyro.param("weights", torch.ones(shape) / 3, constraint=constraints.simplex)
        tril = pyro.param("tril", torch.eye(2), constraint=constraints.lower_cholesky)
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.interval(0.1, 2.0))
        if extra:
            pyro.param("extra", torch.zeros(1))
        with pyro.plate("rows", len(x)):
            mean = (one.model(x) * weights[:3]).sum(-1) + (other.model(x) @ tril).sum(-1)
            return pyro.sample("y", dist.Normal(mean, scale), obs=y)

    def guide(x, y=None):
        with pyro.plate("rows", len(x)):
            one.guide(x)
            other.guide(x)

    optimizer = pyro.optim.ClippedAdam({"lr": 1e-2})
    svi = SVI(model, guide, optimizer, Trace_ELBO())
    calls = (svi.evaluate_loss, svi.step, optimizer.get_state, optimizer.set_state)
    return Built(model, guide, {"one": one, "other": other}, *calls)


class Regression(PyroModule):
    """A VAE, a constrained parameter and a global weight in a PyroModule."""

    def __init__(self):
        super().__init__()
        self.image = make_vae("image")
        self.scale = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("rows", len(x)):
            mean = (self.image.model(x) * w).sum(-1)
            return pyro.sample("y", dist.Normal(mean, self.scale), obs=y)


def build_module():
    """A PyroModule and automatic guides, trained by a PyTorch optimizer."""
    model = Regression()
    guide = AutoGuideList(model)
    guide.append(AutoMultivariateNormal(pyro.poutine.block(model, expose=["w"])))
    guide.append(AutoVAEGuide(model, model.image))
    loss = Trace_ELBO()(model, guide)
    loss(X, Y)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)

    @torch.no_grad()
    def evaluate(x, y):
        return loss(x, y).item()

    def step(x, y):
        optimizer.zero_grad()
        value = loss(x, y)
        value.backward()
        optimizer.step()
        return value.item()

    calls = (evaluate, step, optimizer.state_dict, optimizer.load_state_dict)
    return Built(model, guide, {"loss": loss}, *calls)


BUILDERS = {"two_vaes": build_two_vaes, "module": build_module}


def describe(built):
    """Returns the loss, two further steps and predictive samples from one seed, exactly."""
    pyro.set_rng_seed(3)
    losses = [built.evaluate(X, Y), built.step(X, Y), built.step(X, Y)]
    for module in built.modules.values():
        module.eval()
    samples = Predictive(built.model, guide=built.guide, num_samples=3)(X)["y"]
    return [*losses, *samples.flatten().tolist()]
