"""Networks that contain another network: embeddings of categories, and modules by their name."""

import sys
import types
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pyro_vae import VAE, fit, likelihoods, load, networks, save, transforms
from pyro_vae.networks import MLP, Embedding, GRUEncoder, Module
from pyro_vae.vae.allow import check_classes

INNER = {
    "gated_mlp": {"hidden": [4]},
    "gru": {"hidden": 4},
    "mlp": {"hidden": [4]},
    "residual_mlp": {"width": 4},
    "transformer": {"width": 4, "heads": 2},
}


# Embeddings


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(5,), (5, 2)])
@pytest.mark.parametrize("name", INNER)
def test_an_embedding_replaces_categories_by_vectors(name, shape, masked):
    options = {"levels": 7, "dim": 3, "network": name, "options": INNER[name], "masked": masked}
    mask = torch.rand(4, *shape).round()
    in_shape = (2 * shape[0], *shape[1:]) if masked else shape
    network = Embedding(in_shape, (2, 2), **options, covariate_dim=2)
    categories, covariates = torch.randint(7, (4, *shape)), torch.randn(4, 2)
    x = categories / 6
    vectors = network.vectors.weight[categories]
    inputs = vectors
    if masked:
        x = torch.cat([x * mask, mask], 1)
        mask = mask[..., None].expand_as(vectors)
        inputs = torch.cat([vectors * mask, mask], 1)
    out = network(x, covariates)
    assert out.shape == (4, 2, 2)
    torch.testing.assert_close(out, network.network(inputs, covariates), rtol=1e-4, atol=1e-5)
    assert getattr(network.network, "masked", masked) == masked


@pytest.mark.parametrize("levels", [2, 256, 5000])
def test_every_level_has_its_own_vector(levels):
    network = Embedding((1,), (3,), levels=levels, dim=3, options={"hidden": []})
    nn.init.eye_(network.network.layers[0].weight)
    nn.init.zeros_(network.network.layers[0].bias)
    x = (torch.arange(levels) / (levels - 1))[:, None]
    torch.testing.assert_close(network(x), network.vectors.weight, rtol=1e-3, atol=2e-3)
    x = torch.arange(levels, dtype=torch.float64)[:, None] / (levels - 1)
    network.double()
    torch.testing.assert_close(network(x), network.vectors.weight, rtol=1e-9, atol=1e-9)


def test_values_between_levels_are_interpolated_and_have_a_gradient():
    network = Embedding((1,), (3,), levels=3, dim=3, options={"hidden": []}).double()
    vectors = network.network.layers(network.vectors.weight)
    for value, weights in ((0.25, (0.5, 0.5, 0)), (0.6, (0, 0.8, 0.2)), (1.5, (0, -1, 2))):
        out = network(torch.tensor([[value]]).double())
        expected = torch.tensor(weights, dtype=torch.float64) @ vectors
        torch.testing.assert_close(out[0], expected)
    x = torch.tensor([[0.5], [0.0], [1.0]]).double().requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).square().sum(), x)
    assert gradient.all()


@pytest.mark.parametrize(
    "network", [partial(GRUEncoder, hidden=4), GRUEncoder, lambda in_shape, out_shape: Plain()]
)
def test_an_embedding_takes_any_network(network):
    embedding = Embedding((5,), (2,), levels=4, dim=3, network=network)
    assert embedding(torch.zeros(6, 5)).shape == (6, 2)


class Plain(nn.Module):
    """A network without a constructor of sizes."""

    def forward(self, x):
        return x.flatten(1)[:, :2]


@pytest.mark.parametrize("name", INNER)
def test_an_embedding_is_saved_with_its_network(tmp_path, name):
    encoder = partial(Embedding, levels=5, network=name, options=INNER[name], masked=True)
    vae = VAE(
        (6,), 2, likelihood=partial(likelihoods.Categorical, levels=5), encoder=encoder,
        input_transform=partial(transforms.Identity, append_mask=True),
    ).eval()  # fmt: skip
    save(vae, tmp_path / "vae.safetensors")
    other = load(tmp_path / "vae.safetensors")
    x = torch.randint(5, (3, 6)) / 4
    assert torch.equal(other.encode(x).mean, vae.encode(x).mean)


# Modules


class Foreign(nn.Module):
    """A network of another package, which takes no covariates."""

    def __init__(self, in_features=64, outputs=6):
        super().__init__()
        self.layer = nn.Linear(in_features, outputs)
        self.outputs = outputs

    def forward(self, x):
        return self.layer(x.flatten(1))


class Given(nn.Module):
    """Returns the same for any input."""

    def __init__(self, value=None):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value


def build_foreign(outputs=6):
    """A function that builds a network, and allocates more than a file may."""
    torch.zeros(2**25, dtype=torch.int8)
    return Foreign(outputs=outputs)


@pytest.fixture
def module(monkeypatch):
    """The name of a module in which the classes above are found."""
    held = types.ModuleType("another_package")
    for value in (Foreign, Given, build_foreign):
        setattr(held, value.__name__, value)
        monkeypatch.setattr(value, "__module__", held.__name__)
    held.number = 3
    monkeypatch.setitem(sys.modules, held.__name__, held)
    return held.__name__


@pytest.mark.parametrize("name", ["Foreign", "build_foreign"])
def test_a_module_is_built_from_its_name_and_reshaped(module, name):
    network = Module((1, 8, 8), (2, 5), path=f"{module}.{name}", arguments={"outputs": 10})
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(network(x), network.module(x).reshape(4, 2, 5))
    assert f"path='{module}.{name}'" in repr(network)


def test_a_module_gets_the_sizes_that_its_constructor_names():
    arguments = {"hidden": [5]}
    network = Module(
        (3, 2), (2, 5), path="pyro_vae.networks.MLP", arguments=arguments, covariate_dim=2
    )
    assert arguments == {"hidden": [5]}
    assert network.module.layers[0].in_features == 8
    x, covariates = torch.randn(4, 3, 2), torch.randn(4, 2)
    assert torch.equal(network(x, covariates), network.module(x, covariates))
    # An argument of the same name wins.
    arguments = {"out_shape": [10]}
    network = Module((3, 2), (2, 5), path="pyro_vae.networks.MLP", arguments=arguments)
    assert network(x).shape == (4, 2, 5)


def test_a_module_of_torchvision_becomes_an_encoder():
    network = Module(
        (3, 32, 32), (2, 3), path="torchvision.models.squeezenet1_1", arguments={"num_classes": 6}
    )
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 2, 3)


def test_a_wrong_number_of_elements_is_told_with_the_right_one(module):
    network = Module((64,), (2, 5), path=f"{module}.Foreign", arguments={"outputs": 7})
    with pytest.raises(
        ValueError,
        match=r"Expected another_package.Foreign to return 10 numbers for each of 4 inputs, as "
        r"many as out_shape=\(2, 5\) has, got shape \(7,\) for each: set the size of its output",
    ):
        network(torch.zeros(4, 64))


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (None, "got None"),
        (torch.zeros(5, 10), r"got shape \(5, 10\)"),
        (torch.zeros(40), r"got shape \(40,\)"),
        ((torch.zeros(4, 10),), r"got \(tensor"),
    ],
)
def test_an_output_of_another_kind_is_refused(module, value, got):
    network = Module((64,), (2, 5), path=f"{module}.Given", arguments={"value": value})
    with pytest.raises(ValueError, match=f"Expected .*Given to return 10 numbers .* {got}"):
        network(torch.zeros(4, 64))


BAD = {
    "path": ("nothing.Net", {}, "path to be the dotted name .* No module named 'nothing'; got 'no"),
    "member": ("torch.nn.Nothing", {}, "path to be the dotted name .* got 'torch.nn.Nothing'"),
    "number": ("another_package.number", {}, "path to be the dotted name of a class or function"),
    "plain": ("Net", {}, "path to be the dotted name"),
    "empty": ("", {}, "path to be the dotted name"),
    "relative": (".Net", {}, "path to be the dotted name"),
    "no text": (3, {}, "path to be the dotted name .* got 3"),
    "unknown argument": (
        "another_package.Foreign", {"arguments": {"depth": 3}},
        r"arguments to be arguments of another_package.Foreign, got {'depth': 3}: .*'depth'",
    ),
    "missing argument": ("torch.nn.Linear", {}, ".* torch.nn.Linear, got {}: .*missing"),
    "arguments": ("torch.nn.Linear", {"arguments": [3]}, r"arguments to be .* by name, .* got \[3"),
    "keys": ("torch.nn.Linear", {"arguments": {3: 3}}, r"arguments to be .* by name, .* got {3"),
    "another object": ("builtins.dict", {}, "builtins.dict to build a torch.nn.Module, got {}"),
    "covariates": (
        "another_package.Foreign", {"covariate_dim": 2},
        "another_package.Foreign to accept covariates as second argument of its forward, which "
        "covariate_dim=2 needs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_modules_raise(module, name):
    path, options, message = BAD[name]
    with pytest.raises(ValueError, match=f"Expected {message}"):
        Module((64,), (2,), path=path, **options)


EMBEDDINGS = {
    "network": ({"network": "cnn"}, "network to be 'gated_mlp', .* got 'cnn'"),
    "instance": ({"network": MLP((2, 8), (2,))}, "network to be .* got an instance of MLP"),
    "levels": ({"levels": 1}, "levels .* at least 2, got 1"),
    "dim": ({"dim": 0}, "dim .* got 0"),
    "options": ({"options": {"width": 3}}, r"options to be arguments of MLP, got {'width': 3}"),
    "no options": ({"options": 3}, "options to be arguments by name, .* got 3"),
    "masked": ({"network": "gru", "options": {"masked": True}}, "options without masked"),
    "partial": ({"network": partial(GRUEncoder, masked=True)}, "options without masked"),
    "nothing": ({"network": lambda: None}, ".* to build a torch.nn.Module, got None"),
    "covariates": (
        {"network": lambda: Plain(), "covariate_dim": 1}, ".* to accept covariates as second",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_bad_embeddings_raise(name):
    options, message = EMBEDDINGS[name]
    with pytest.raises(ValueError, match=f"Expected {message}"):
        Embedding((2,), (2,), **options)


# Files of a stranger


def foreign_vae(path, **arguments) -> VAE:
    encoder = partial(Module, path=path, arguments=arguments)
    return VAE((1, 8, 8), 3, encoder=encoder, decoder=partial(MLP, hidden=[3])).eval()


def test_a_module_is_loaded_only_if_its_name_is_allowed(module, tmp_path):
    vae, file = foreign_vae(f"{module}.Foreign", outputs=6), tmp_path / "vae.safetensors"
    save(vae, file)
    with pytest.raises(
        ValueError,
        match=r"Expected encoder to be a class of pyro_vae, got 'another_package.Foreign' in .*: "
        r"if you trust the file, load\(path, allow=\['another_package.Foreign'\]\)",
    ):
        load(file)
    other = load(file, allow=[f"{module}.Foreign"])
    x = torch.rand(2, 1, 8, 8).round()
    assert torch.equal(other.encode(x).mean, vae.encode(x).mean)
    with pytest.raises(ValueError, match="Expected encoder to be a class of pyro_vae"):
        load(file, allow=["pyro_vae.networks.Module", f"{module}.Given"])


def recipe(path, **arguments):
    part = {"class": "pyro_vae.networks.Module", "arguments": {"path": path, **arguments}}
    return {"parts": {"encoder": part}}


def test_a_module_within_modules_needs_to_be_allowed_too():
    allow = ["another_package.Foreign"]
    inner, nested = {"path": "os.system", "arguments": {}}, "pyro_vae.networks.Module"
    for path, arguments in (
        ("os.system", {}),
        (nested, {"arguments": inner}),
        (nested, {"arguments": {"path": nested, "arguments": inner}}),
        (["os.system"], {}),
        (None, {}),
        ("another_package.Foreign ", {}),
    ):
        with pytest.raises(ValueError, match="Expected encoder to be a class of pyro_vae, got"):
            check_classes(recipe(path, **arguments), allow)
    check_classes(recipe("another_package.Foreign", arguments={"path": "os.system"}), allow)
    check_classes(recipe("pyro_vae.networks.MLP", arguments={"hidden": [3]}), [])
    check_classes({"parts": {"prior": {"class": "pyro_vae.priors.Normal", "arguments": {}}}}, [])


def test_a_refused_module_is_not_imported(module, tmp_path, monkeypatch):
    vae, file = foreign_vae(f"{module}.Foreign", outputs=6), tmp_path / "vae.safetensors"
    save(vae, file)
    monkeypatch.delitem(sys.modules, module)
    (tmp_path / "another_package.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="Expected encoder to be a class of pyro_vae"):
        load(file)
    assert load_file(file)


def test_a_foreign_module_may_be_larger_than_the_weights(module, tmp_path):
    # The limit on allocations is for files that no one vouches for.
    vae, file = foreign_vae(f"{module}.build_foreign", outputs=6), tmp_path / "vae.safetensors"
    save(vae, file)
    assert load(file, allow=[f"{module}.build_foreign"]).encoder.module.outputs == 6


def test_both_are_exported():
    assert networks.Module is Module
    assert networks.Embedding is Embedding


def test_levels_of_embedding_and_likelihood_are_the_same():
    with pytest.raises(ValueError, match=r"levels=5 of the Embedding .* Categorical has, got leve"):
        VAE(
            (4,), 2, likelihood=partial(likelihoods.Categorical, levels=5),
            encoder=partial(networks.Embedding, levels=3),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options"), [("Log1p", {}), ("OneHot", {"levels": 256}), ("Standardize", {})]
)
def test_an_embedding_sees_the_levels_themselves(name, options):
    transform = partial(getattr(transforms, name), **options)
    with pytest.raises(ValueError, match=f"Expected input_transform to keep the levels .* {name}$"):
        VAE((4,), 2, input_transform=transform, encoder=networks.Embedding)


def test_values_outside_of_the_levels_are_refused_by_fit():
    vae = VAE((4,), 2, likelihood=likelihoods.Normal, encoder=networks.Embedding)
    with pytest.raises(ValueError, match="Expected train to hold levels between 0 and 1"):
        fit(vae, torch.randn(20, 4))


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_a_module_that_does_not_take_its_input_gives_one_error(role):
    part = partial(networks.Module, path="torch.nn.Linear",
                   arguments={"in_features": 9, "out_features": 4})  # fmt: skip
    vae = VAE((4,), 2, **{role: part})
    with pytest.raises(ValueError, match=r"Expected torch.nn.Linear to accept tensors of shape"):
        fit(vae, torch.rand(20, 4).round())
