"""Recipes: a VAE that a file cannot restore as it is, is refused."""

import copy
import sys
import types
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from helpers.tables import EVENT, data_for
from pyro_vae import VAE, fit, likelihoods, load, networks, posteriors, priors, save
from pyro_vae.vae import serialization

SMALL = {
    "encoder": partial(networks.MLP, hidden=[3]),
    "decoder": partial(networks.MLP, hidden=[3]),
}


class Mine(priors.Normal):
    """A prior of somebody else's."""


class Part(nn.Module):
    """A network of somebody else's, with settings of many kinds."""

    def __init__(self, in_shape, out_shape, *, widths=(3,), rate=0.1, noise=False, grid=3):
        super().__init__()
        self.act, self.widths, self.rate, self.options = torch.tanh, widths, rate, {"a": [1]}
        self.clip = lambda x: x.clamp(-grid, grid)
        self.register_buffer("grid", torch.linspace(0, 1, grid), persistent=False)
        self.place = torch.randn(2) if noise else torch.zeros(2)
        self.out_shape = torch.Size(out_shape)
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(in_shape.numel(), 4), nn.Dropout(rate),
            nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, self.out_shape.numel()),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(self.clip(self.act(x))).unflatten(-1, self.out_shape)


@pytest.fixture
def module(monkeypatch):
    """The name of a module in which the class above is found."""
    held = types.ModuleType("somebody_else")
    held.Part, held.Mine = Part, Mine
    for kind in (Part, Mine):
        monkeypatch.setattr(kind, "__module__", held.__name__)
    monkeypatch.setitem(sys.modules, held.__name__, held)
    return held.__name__


def foreign(**options):
    return VAE(
        EVENT, 3, encoder=partial(Part, **options), posterior=posteriors.Full,
        likelihood=partial(likelihoods.Normal, scale="optimal"), decoder=SMALL["decoder"],
    )  # fmt: skip


def layer(vae, number):
    return vae.encoder.layers[number]


def replace(vae, number, module):
    vae.encoder.layers[number] = module


def swap(vae):
    inner = vae.encoder.layers._modules
    inner["4"], inner["2"] = inner.pop("4"), inner.pop("2")


CHANGES = {
    "activation": (lambda v: replace(v, 2, nn.ReLU()), r"layers\.2: ReLU instead of Dropout"),
    "size": (lambda v: replace(v, 4, nn.Linear(4, 4, bias=False)), r"layers\.4\.bias: None"),
    "one more": (lambda v: v.encoder.layers.append(nn.Identity()), r"\.6: unexpected Identity"),
    "one less": (lambda v: v.encoder.layers.pop(2), r"layers\.5: no module, where|layers\.2: "),
    "order": (swap, "layers.children: the order"),
    "spectral norm": (
        lambda v: nn.utils.parametrizations.spectral_norm(layer(v, 1)), "ParametrizedLinear",
    ),
    "weight norm": (
        lambda v: nn.utils.parametrizations.weight_norm(layer(v, 1)), "ParametrizedLinear",
    ),
    "hook": (lambda v: v.decoder.register_forward_hook(lambda *a: a[2] * 2), "forward_hooks: 1"),
    "hook before": (lambda v: layer(v, 4).register_forward_pre_hook(print), "forward_pre_hooks: 1"),
    "hook of the state": (
        lambda v: v.encoder.register_state_dict_post_hook(lambda *a: None), "state_dict_hooks: 1",
    ),
    "hook of the model": (lambda v: v.model.register_forward_hook(print), "model.forward_hooks"),
    "dropout": (lambda v: setattr(layer(v, 2), "p", 0.5), r"layers\.2\.p: 0\.5 instead of 0\.1"),
    "momentum": (lambda v: setattr(layer(v, 3), "momentum", None), "momentum: None instead of 0.1"),
    "floor": (lambda v: setattr(v.posterior, "min_scale", 0.5), r"posterior\.min_scale: 0\.5"),
    "kind of scale": (lambda v: setattr(v.likelihood, "scale", 1.0), r"1\.0 instead of 'opt"),
    "function": (lambda v: setattr(v.encoder, "act", torch.relu), r"encoder\.act: <built-in"),
    "lambda": (lambda v: setattr(v.encoder, "clip", lambda x: x), r"encoder\.clip: <function"),
    "inner setting": (lambda v: v.encoder.options["a"].append(2), r"encoder\.options: {'a'"),
    "plain tensor": (lambda v: v.encoder.place.add_(1), r"encoder\.place: tensor"),
    "forward": (lambda v: setattr(v.encoder, "forward", print), r"encoder\.forward: .* <built-in"),
    "new setting": (lambda v: setattr(v.encoder, "broadcasts", True), r"unexpected value True"),
    "less": (lambda v: delattr(v.encoder, "act"), r"encoder\.act: missing value <built-in"),
    "buffer": (lambda v: v.posterior.cells.add_(0).zero_(), r"posterior\.cells: different va"),
    "new buffer": (lambda v: v.prior.register_buffer("b", torch.ones(1)), r"prior\.b: float32"),
    "tied": (
        lambda v: layer(v, 1).register_parameter("bias", layer(v, 4).bias),
        r"encoder\.layers\.4\.bias: shared with encoder\.layers\.1\.bias",
    ),
    "more parts": (lambda v: setattr(v, "classifier", nn.Linear(3, 2)), "classifier: unexpected L"),
    "method": (lambda v: setattr(v, "encode", print), "encode: unexpected value <built-in"),
    "plates": (lambda v: setattr(v.model, "plate", None), "model.plate: None instead of True"),
    "integers": (
        lambda v: layer(v, 3).register_buffer("running_var", torch.ones(4).long()),
        "running_var: int64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_vae_that_a_file_cannot_restore_is_refused(tmp_path, module, change):
    vae = foreign()
    do, message = CHANGES[change]
    state = torch.get_rng_state()
    save(vae, tmp_path / "before.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    do(vae)
    expected = f"Expected a VAE as its constructor builds it, got .*{message}"
    with pytest.raises(ValueError, match=expected):
        save(vae, tmp_path / "vae.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["before.safetensors"]


def test_the_refusal_names_the_part_and_what_to_do(tmp_path):
    vae = VAE(EVENT, 3)
    vae.decoder.layers[1] = nn.Tanh()
    with pytest.raises(
        ValueError, match=r"Build the VAE with that part, VAE\(\.\.\., decoder=\.\.\.\), or"
    ):
        save(vae, tmp_path / "vae.safetensors")
    vae = VAE(EVENT, 3)
    vae.head = nn.Linear(1, 1)
    with pytest.raises(
        ValueError, match=r"head: unexpected Linear\. Undo this, or save vae\.state_dict"
    ):
        save(vae, tmp_path / "vae.safetensors")


def test_what_a_constructor_does_otherwise_each_time_is_refused(tmp_path, module):
    with pytest.raises(ValueError, match=r"encoder\.place: tensor"):
        save(foreign(noise=True), tmp_path / "vae.safetensors")
    widths = [3, 4]
    vae = foreign(widths=widths)
    widths.append(5)
    with pytest.raises(ValueError, match=r"widths: \[3, 4, 5\] instead of \[3, 4\]"):
        save(vae, tmp_path / "vae.safetensors")


class Derived(VAE):
    """A VAE of somebody else's, of which a file knows nothing."""


def test_a_derived_vae_and_a_class_that_no_name_leads_to_are_refused(tmp_path, module):
    with pytest.raises(ValueError, match="the VAE: Derived instead of VAE"):
        save(Derived(EVENT, 3), tmp_path / "vae.safetensors")

    class Local(Mine):
        pass

    Local.__qualname__ = "Local"
    Local.__module__ = "nowhere"
    with pytest.raises(ValueError, match=r"its recipe fails, ModuleNotFoundError: .*'nowhere'"):
        save(VAE(EVENT, 3, prior=Local), tmp_path / "vae.safetensors")
    Local.__qualname__ = "Outer.Local"
    with pytest.raises(ValueError, match="Expected prior to be built by a class"):
        save(VAE(EVENT, 3, prior=Local), tmp_path / "vae.safetensors")


LEGAL = {
    "nothing": lambda v: None,
    "mode": lambda v: v.eval(),
    "frozen": lambda v: v.encoder.requires_grad_(False),
    "double": lambda v: v.double(),
    "half of it": lambda v: v.decoder.double(),
    "bfloat16": lambda v: v.bfloat16(),
    "name": lambda v: setattr(v, "name", "another"),
    "a note": lambda v: setattr(v, "note", "the third try"),
    "hook of the gradients": lambda v: v.decoder.register_full_backward_hook(lambda *a: None),
    "scale": lambda v: v.calibrate(data_for("normal_shared")),
    "weights": lambda v: v.likelihood.variance.fill_(7.0),
}


@pytest.mark.parametrize("change", LEGAL)
def test_a_vae_that_differs_in_numbers_and_places_only_is_saved(tmp_path, module, change):
    vae = foreign(widths=(3, 4))
    LEGAL[change](vae)
    for number, made in enumerate((vae, copy.deepcopy(vae))):
        save(made, tmp_path / f"{number}.safetensors")
        again = load(tmp_path / f"{number}.safetensors", allow=[f"{module}.Part"])
        x = data_for("normal_shared").to(next(vae.encoder.parameters()))
        assert torch.equal(again.encode(x).mean, vae.eval().encode(x).mean)
        assert again.name == vae.name
        for name, value in vae.named_buffers():
            assert torch.equal(dict(again.named_buffers())[name], value)
            assert dict(again.named_buffers())[name].dtype == value.dtype


def test_a_trained_vae_is_saved(tmp_path, module):
    vae = foreign()
    fit(vae, data_for("normal_shared"), epochs=2, out=tmp_path, compile=False)
    save(vae, tmp_path / "vae.safetensors")
    for path in (tmp_path, tmp_path / "vae.safetensors"):
        again = load(path, allow=[f"{module}.Part"])
        assert again.state_dict().keys() == vae.state_dict().keys()


def test_a_training_of_a_changed_vae_warns_once_and_writes_what_load_refuses(tmp_path):
    x = data_for("bernoulli")

    def trained(**options):
        torch.manual_seed(0)
        vae = VAE(EVENT, 2, **SMALL)
        vae.encoder.layers[1] = nn.Tanh()
        return vae, fit(vae, x, compile=False, checkpoint_seconds=0.0, **options)

    whole, _ = trained(epochs=4)
    for epochs in (2, 4):
        with pytest.warns(UserWarning, match="cannot rebuild the VAE of .*Tanh instead of") as seen:
            vae, result = trained(epochs=epochs, out=tmp_path, resume=True)
        assert len(seen) == 1
    assert len(result.history) == 4
    held = load_file(tmp_path / "model.safetensors")
    for name, value in whole.state_dict().items():
        assert torch.equal(vae.state_dict()[name], value)
        assert torch.equal(held[name], value)
    for name in ("model", "last"):
        with pytest.raises(ValueError, match=r"got no description of \['encoder'\]"):
            load(tmp_path / f"{name}.safetensors")


def test_a_vae_is_compared_with_its_recipe_once_a_training(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(serialization, "find_differences", lambda vae: calls.append(vae) or {})
    fit(
        VAE(EVENT, 2, **SMALL), data_for("bernoulli"), epochs=3, out=tmp_path, compile=False,
        checkpoint_seconds=0.0,
    )  # fmt: skip
    assert len(calls) == 1


def test_tied_weights_are_written_by_a_training_each_under_its_name(tmp_path):
    vae = VAE(EVENT, 2, encoder=partial(networks.MLP, hidden=[3, 3]), decoder=SMALL["decoder"])
    vae.encoder.layers[2].bias = vae.encoder.layers[0].bias
    with pytest.warns(UserWarning, match=r"encoder.layers.2.bias: shared with encoder"):
        fit(vae, data_for("bernoulli"), epochs=1, out=tmp_path, compile=False)
    held = load_file(tmp_path / "model.safetensors")
    assert torch.equal(held["encoder.layers.2.bias"], held["encoder.layers.0.bias"])


@pytest.mark.parametrize("allow", ["my_package.Mine", [3], ["a..b"], ["a b"], [""], 5])
def test_names_that_are_allowed_come_as_a_list(tmp_path, allow):
    save(VAE(EVENT, 3), tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match="Expected allow to be a list of dotted names"):
        load(tmp_path / "vae.safetensors", allow=allow)
