"""Validation by a compiled graph: the figures of eager validation, also when resumed."""

import warnings
from functools import partial

import pytest
import torch

from helpers.designs import cover
from helpers.graphs import count_graph_calls
from pyro_vae import VAE, compile, data, fit, networks, priors
from pyro_vae.data import Rows
from pyro_vae.evaluate import scoring
from pyro_vae.training import loop


@pytest.fixture
def graphs(monkeypatch):
    """Compiles without machine code, also what is too short for it; counts calls of graphs."""
    monkeypatch.setattr(loop, "compile", partial(compile, backend="eager"))
    monkeypatch.setattr(scoring, "worth_compiling_evaluation", lambda *sizes: True)
    return count_graph_calls(monkeypatch)


def made(**parts):
    torch.manual_seed(0)
    net = partial(networks.MLP, hidden=[8])
    return VAE((1, 8, 8), 2, **({"encoder": net, "decoder": net} | parts))


def trained(vae, valid, **settings):
    x = data.digits().x
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return fit(vae, x.train[:200], valid=valid, **({"epochs": 4, "compile": True} | settings))


VALID = {
    "all": lambda x: x[:60],
    "masked": lambda x: Rows(x[:60], mask=torch.rand(x[:60].shape) < 0.8),
}


@pytest.mark.parametrize(
    ("rows", "prior"), cover(VALID, [priors.Normal, partial(priors.Vamp, components=3)])
)
def test_the_history_is_that_of_eager_validation(prior, rows, graphs, monkeypatch):
    valid = VALID[rows](data.digits().x.valid)
    compiled = trained(made(prior=prior), valid).history
    # One call finds shared memory.
    assert len(graphs) == 5
    monkeypatch.setattr(scoring, "worth_compiling_evaluation", lambda *sizes: False)
    eager = trained(made(prior=prior), valid).history
    assert len(graphs) == 5
    for ours, theirs in zip(compiled, eager, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("valid_elbo", "valid_rate", "valid_distortion", "train_objective"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)


def test_eager_training_is_validated_eagerly(graphs):
    trained(made(), data.digits().x.valid[:60], compile=False)
    assert not graphs


def test_a_resumed_training_has_the_same_bits(graphs, tmp_path):
    valid = data.digits().x.valid[:60]
    whole = trained(made(), valid, epochs=5)
    trained(made(), valid, epochs=2, out=tmp_path)
    resumed = trained(made(), valid, epochs=5, out=tmp_path, resume=True)
    figures = [[row["valid_elbo"] for row in result.history] for result in (whole, resumed)]
    assert figures[0] == figures[1]


def test_the_decision_does_not_depend_on_the_number_of_epochs(monkeypatch):
    asked = []
    monkeypatch.setattr(
        scoring, "worth_compiling_evaluation", lambda *sizes: asked.append(sizes) or False
    )
    monkeypatch.setattr(loop, "compile", partial(compile, backend="eager"))
    valid = data.digits().x.valid[:60]
    for epochs in (1, 3):
        trained(made(), valid, epochs=epochs)
    weights = sum(p.numel() for p in made().decoder.parameters())
    assert set(asked) == {(100 * 60, 64, weights)}


class OwnNetwork(networks.MLP):
    """A network that this package does not know."""


def test_networks_of_a_user_are_validated_eagerly(graphs):
    trained(made(decoder=partial(OwnNetwork, hidden=[8])), data.digits().x.valid[:60])
    assert not graphs
