"""Files: what is saved comes back, and nothing in a stranger's file runs."""

import json
import os
import pickle
from functools import partial

import pytest
import torch
from pyro import poutine
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers.tables import EVENT, FEW_POSTERIORS, FEW_PRIORS, LIKELIHOODS, NETWORKS, data_for
from pyro_vae import VAE, fit, load, networks, priors, save
from pyro_vae.conditional import Prior
from pyro_vae.training import resume_file
from pyro_vae.vae import serialization

SMALL = {
    "encoder": partial(networks.MLP, hidden=[3]),
    "decoder": partial(networks.MLP, hidden=[3]),
}


def rows():
    """One row for each option of each part."""
    for role, table in (
        ("prior", FEW_PRIORS),
        ("posterior", FEW_POSTERIORS),
        ("likelihood", LIKELIHOODS),
    ):
        for name, part in table.items():
            yield pytest.param(
                {role: part}, name if role == "likelihood" else "bernoulli", id=f"{role}-{name}"
            )
    for name, (encoder, decoder) in NETWORKS.items():
        yield pytest.param(
            {"encoder": encoder, "decoder": decoder}, "bernoulli", id=f"networks-{name}"
        )


@pytest.mark.parametrize(("parts", "likelihood"), list(rows()))
def test_what_is_saved_comes_back(tmp_path, parts, likelihood):
    vae = VAE(EVENT, 3, name="mine", **parts)
    x = data_for(likelihood)
    poutine.trace(vae.model).get_trace(x)
    save(vae, tmp_path / "vae.safetensors")
    copy = load(tmp_path / "vae.safetensors")
    assert copy.name == "mine"
    assert not copy.training
    assert repr(copy.train()) == repr(vae)
    for name, value in vae.state_dict().items():
        assert torch.equal(copy.state_dict()[name], value)
    vae.eval(), copy.eval()
    assert torch.equal(copy.encode(x).mean, vae.encode(x).mean)
    save(copy, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "vae.safetensors"
    ).read_bytes()


def test_file_holds_no_pickle_and_others_can_read_it(tmp_path):
    vae = VAE(EVENT, 3)
    save(vae, tmp_path / "vae.safetensors")
    assert load_file(tmp_path / "vae.safetensors").keys() == vae.state_dict().keys()
    assert b"torch" not in (tmp_path / "vae.safetensors").read_bytes()[:4000]


class Mine(Prior):
    """A prior of somebody else's."""

    def __init__(self, latent_dim, *, scale=2.0):
        super().__init__()
        self.latent_dim = latent_dim
        self.inner = priors.Normal(latent_dim)
        self.scale = scale

    def forward(self, covariates=None, *, encode=None):
        return self.inner()


def rewritten(path, change):
    """Rewrites a file's recipe and its checksum, as a stranger could."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["pyro_vae"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header["recipe"])
    path.write_bytes(serialization._pack(header["recipe"], weights))


@pytest.mark.parametrize(
    "hostile",
    ["os.system", "subprocess.Popen", "builtins.eval", "pyro_vae.cli.train.main",
     "pyro_vae.run.run", "torch.nn.Linear", "pyro_vae.priors.vamp.Vamp", "pyro_vae.priors"],
)  # fmt: skip
def test_a_hostile_class_is_refused_unseen(tmp_path, hostile):
    path = tmp_path / "vae.safetensors"
    save(VAE(EVENT, 3), path)

    def change(recipe):
        recipe["parts"]["prior"] = {
            "class": hostile,
            "arguments": {"command": f"touch {tmp_path}/x"},
        }

    rewritten(path, change)
    with pytest.raises(
        ValueError, match=f"Expected prior to be a class of pyro_vae, got '{hostile}'"
    ):
        load(path)
    assert not (tmp_path / "x").exists()


def test_a_function_is_no_part_even_if_allowed(tmp_path):
    path = tmp_path / "vae.safetensors"
    save(VAE(EVENT, 3), path)
    rewritten(path, lambda r: r["parts"].update(prior={"class": "os.getpid", "arguments": {}}))
    with pytest.raises(ValueError, match=r"class of modules, got 'os\.getpid'"):
        load(path, allow=["os.getpid"])


def test_a_class_of_another_package_is_made_when_it_is_allowed(tmp_path, monkeypatch):
    monkeypatch.setitem(
        __import__("sys").modules, Mine.__module__, __import__("types").SimpleNamespace(Mine=Mine)
    )
    path = tmp_path / "vae.safetensors"
    save(VAE(EVENT, 3, prior=partial(Mine, scale=3.0)), path)
    name = f"{Mine.__module__}.Mine"
    with pytest.raises(ValueError, match="if you trust the file"):
        load(path)
    assert load(path, allow=[name]).prior.scale == 3.0


@pytest.mark.parametrize(
    "part",
    [
        {"prior": priors.Normal(3)},
        {"encoder": lambda in_shape, out_shape: networks.MLP(in_shape, out_shape)},
        {"prior": partial(Mine, scale=torch.tensor(3.0))},
    ],
    ids=["ready-made", "lambda", "tensor"],
)
def test_what_no_file_can_describe_is_refused(tmp_path, part):
    role = next(iter(part))
    with pytest.raises(ValueError, match=f"Expected {role} to be built by a class"):
        save(VAE(EVENT, 3, **part), tmp_path / "vae.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_part_that_was_exchanged_is_no_longer_described(tmp_path):
    vae = VAE(EVENT, 3)
    vae.decoder = networks.MLP((3,), (1, *EVENT), hidden=[7])
    assert vae.model.decoder is vae.decoder
    with pytest.raises(ValueError, match="Expected decoder to be built by a class"):
        save(vae, tmp_path / "vae.safetensors")


def test_damage_is_noticed(tmp_path):
    path = tmp_path / "vae.safetensors"
    save(VAE(EVENT, 3), path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for content, message in [
        (bytes(flipped), "match its checksum"),
        (whole[: len(whole) // 2], "match its checksum"),
        (whole[:100], "damaged file"),
        (b"", "damaged file"),
        (pickle.dumps({"a": 1}), "damaged file"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load(path)


def test_other_files_are_refused(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="got format None"):
        load(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"Expected a file written by pyro_vae\.save"):
        load(tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match="or a run's folder"):
        load(tmp_path)


class Bomb:
    """An object whose unpickling runs a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def state_of_a_training(tmp_path):
    """Returns the state of a short training, and its bytes."""
    fit(VAE(EVENT, 2, **SMALL), data_for("bernoulli"), epochs=1, out=tmp_path, compile=False)
    path = tmp_path / "resume.pt"
    return resume_file.load_state(path), path


def test_state_survives_and_refuses_damage_and_bombs(tmp_path):
    state, path = state_of_a_training(tmp_path)
    resume_file.save_state(state | {"a": torch.arange(3), "b": [1, 2.5, None]}, path)
    state = resume_file.load_state(path)
    assert torch.equal(state["a"], torch.arange(3))
    assert state["b"] == [1, 2.5, None]

    whole = path.read_bytes()
    place = whole.index(torch.arange(3).numpy().tobytes())
    flipped = bytearray(whole)
    flipped[place] ^= 1
    for content in (bytes(flipped), whole[:-100], b"", b"nonsense", whole + b"x", whole[:20]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"checksum|damaged or foreign") as raised:
            resume_file.load_state(path)
        assert str(path) in str(raised.value)
    for bomb in (Bomb(tmp_path / "x"), {"sha256": "", "payload": Bomb(tmp_path / "x")}):
        torch.save(bomb, path)
        with pytest.raises(ValueError, match="damaged or foreign"):
            resume_file.load_state(path)
        resume_file.save_state(bomb, path)
        with pytest.raises(ValueError, match="damaged or foreign"):
            resume_file.load_state(path)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [*((key, None) for key in resume_file.STATE_KEYS if key != "lr_schedule"), ("epoch", True),
     ("threads", 0), ("threads", 10**9), ("history", {}), ("kept", [])],
)  # fmt: skip
def test_a_state_without_what_it_needs_is_refused(tmp_path, key, value):
    state, path = state_of_a_training(tmp_path)
    resume_file.save_state(state | {key: value}, path)
    with pytest.raises(ValueError, match=rf"state of a training in {path}, got .*{key}"):
        resume_file.load_state(path)
    resume_file.save_state({k: v for k, v in state.items() if k != key}, path)
    with pytest.raises(ValueError, match=rf"state of a training in {path}, got None"):
        resume_file.load_state(path)


@pytest.mark.parametrize(
    "change",
    [{"optimizer": {}}, {"optimizer": {"state": 1}}, {"order": torch.zeros(2)}, {"weights": {}},
     {"noise": torch.zeros(5, dtype=torch.uint8)}],
    ids=str,
)  # fmt: skip
def test_a_state_that_does_not_fit_is_refused(tmp_path, change):
    state, path = state_of_a_training(tmp_path)
    resume_file.save_state(state | change, path)
    again = {"epochs": 2, "out": tmp_path, "resume": True, "compile": False}
    with pytest.raises(ValueError, match=f"Expected the state of this training in {path}, got one"):
        fit(VAE(EVENT, 2, **SMALL), data_for("bernoulli"), **again)


def test_double_precision_comes_back_as_it_was(tmp_path):
    vae = VAE(EVENT, 3).double()
    save(vae, tmp_path / "vae.safetensors")
    copy = load(tmp_path / "vae.safetensors")
    for name, value in vae.state_dict().items():
        assert torch.equal(copy.state_dict()[name], value)
    assert copy.encode(data_for("bernoulli").double()).mean.dtype == torch.float64
