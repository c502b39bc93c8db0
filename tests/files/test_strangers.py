"""Files from strangers: none runs code, and any damage is one error or changes nothing."""

import json
import os
import pickle
import random
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pyro_vae import VAE, data, fit, likelihoods, load, networks, posteriors, priors, reuse, save
from pyro_vae.data import Preparation
from pyro_vae.reuse.finished_run import build_own_data, read_configuration
from pyro_vae.training import resume_file
from pyro_vae.vae import serialization
from pyro_vae.vae.allow import NotAllowedError

FORMAT1 = Path(__file__).parent / "format1"
COUNT = [250]
"""How many damaged contents each test reads; a longer test takes more."""

NET = partial(networks.MLP, hidden=[2])


class Mark:
    """An object whose unpickling makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("FOREIGN_CODE_RAN",)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a finished run, in the working folder; nothing in it may run code."""
    shutil.copytree(FORMAT1, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    Path("bomb.pkl").write_bytes(pickle.dumps(Mark()))
    np.save("bomb.npy", np.array([[Mark()]]), allow_pickle=True)
    np.savez("bomb.npz", images=np.array([[Mark()]], dtype=object))
    torch.save(Mark(), "bomb.pt")
    yield Path("run")
    assert not Path("FOREIGN_CODE_RAN").exists()


def changed(run, node):
    """Puts another configuration of the data into a run."""
    cfg = yaml.safe_load((run / "config.yaml").read_text())
    cfg["data"] = node
    (run / "config.yaml").write_text(yaml.safe_dump(cfg))


TABLE = {"_target_": "pyro_vae.data.table", "path": "people.csv", "label": "city"}
READ = {"_target_": "pandas.read_pickle", "filepath_or_buffer": "bomb.pkl", "compression": None}
LOAD = {"_target_": "torch.load", "f": "bomb.pt", "weights_only": False}

HOSTILE_DATA = {
    "call": (READ, r"built by pyro_vae\.data, got 'pandas\.read_pickle': if you trust the run"),
    "argument": (TABLE | {"seed": READ}, r"got 'pandas\.read_pickle'"),
    "list": (TABLE | {"columns": ["height", [LOAD]]}, r"got 'torch\.load'"),
    "deep": (TABLE | {"columns": {"a": {"b": [LOAD]}}}, r"got 'torch\.load'"),
    "create": (
        TABLE | {"seed": "${oc.create:{_target_:pandas.read_pickle,filepath_or_buffer:bomb.pkl}}"},
        r"Expected 'run/config\.yaml' to hold plain values, .* got the interpolation",
    ),
    "decode": (TABLE | {"seed": "${oc.decode:'{_target_: os.getpid}'}"}, "got the interpolation"),
    "environment": (TABLE | {"path": "${oc.env:HOME}/x.csv"}, "got the interpolation"),
    "escaped": (TABLE | {"path": "\\${x}"}, "got the interpolation"),
    "name": (TABLE | {"${x}": 1}, "got the interpolation"),
    "missing": (TABLE | {"path": "???"}, r"have plain settings, got path='\?\?\?'"),
    "partial": (TABLE | {"_partial_": True}, "got _partial_=True"),
    "arguments": (TABLE | {"_args_": [LOAD]}, "got _args_="),
    "recursive": (TABLE | {"_recursive_": False}, "got _recursive_=False"),
    "convert": (TABLE | {"seed": {"_convert_": "all"}}, "got _convert_='all'"),
    "module": ({"_target_": "pyro_vae.data.base"}, r"got 'pyro_vae\.data\.base'"),
    "attribute": (
        {"_target_": "pyro_vae.data.arrays.np.load", "file": "bomb.npy", "allow_pickle": True},
        r"got 'pyro_vae\.data\.arrays\.np\.load'",
    ),
    "relative": ({"_target_": "..data.table"}, r"got '\.\.data\.table'"),
    "dots": ({"_target_": "pyro_vae.data..table"}, r"got 'pyro_vae\.data\.\.table'"),
    "space": ({"_target_": "pyro_vae.data.table "}, r"got 'pyro_vae\.data\.table '"),
    "class": (
        {"_target_": "pyro_vae.data.Preparation", "event_shape": [2], "binarize": "none"},
        r"got 'pyro_vae\.data\.Preparation'",
    ),
    "nested set": (TABLE | {"like": {"_target_": "pyro_vae.data.digits"}}, "got 'pyro_vae.data.di"),
    "no name": (TABLE | {"_target_": ["os.getpid"]}, "to have a _target_, got none"),
    "nothing": ({}, "to have a _target_, got none"),
    "no settings": ([1], r"hold the configuration of a run, got no data"),
    "objects": ({"_target_": "pyro_vae.data.array", "path": "bomb.npy"}, "intact file of arrays"),
    "zip": ({"_target_": "pyro_vae.data.frey_faces", "path": "bomb.npz"}, "intact file of arrays"),
    "state": ({"_target_": "pyro_vae.data.array", "path": "bomb.pt"}, "to name a .npy or .npz"),
    "no argument": (TABLE | {"other": 1}, r"from its config\.yaml, got .* TypeError: .*other"),
    "type": (TABLE | {"separator": 5}, r"Expected the data of 'run' to be built|to be a table"),
    "kind": (TABLE | {"columns": {"a": 1}}, "Expected columns to be"),
}


def uses(run):
    """All ways in which the configuration of a run is used."""
    yield lambda: reuse.judge_run(run)
    yield lambda: reuse.embed(run, out="codes.csv")
    (run / "data.json").unlink()
    yield lambda: reuse.preparation(run)
    yield lambda: reuse.judge_run(run, {**TABLE, "valid": 0, "test": 0}, part="all")


@pytest.mark.parametrize("case", HOSTILE_DATA)
def test_a_configuration_of_data_runs_no_foreign_code(run, case):
    node, message = HOSTILE_DATA[case]
    changed(run, node)
    for use in uses(run):
        with pytest.raises(ValueError, match=message):
            use()


@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.mkdir [FOREIGN_CODE_RAN]", "!!python/name:os.mkdir", "&a [*a]",
     "{<<: {_target_: os.getpid}}", "{_target_: os.getpid, _target_: pyro_vae.data.digits}"],
)  # fmt: skip
def test_yaml_is_plain(run, text):
    path = run / "config.yaml"
    path.write_text(path.read_text().split("data:")[0] + f"data: {text}\n")
    for use in uses(run):
        with pytest.raises(ValueError, match=r"config\.yaml' to hold|have a _target_|got '<<'"):
            use()


def test_what_a_configuration_lacks_is_one_error(run):
    for name, value in (("seed", "x"), ("evaluate", None), ("evaluate", {"num_particles": 0})):
        cfg = yaml.safe_load((FORMAT1 / "run" / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump(cfg | {name: value}))
        with pytest.raises(ValueError, match=r"to have an integer|num_particles to be an integer"):
            reuse.judge_run(run)
    reuse.embed(run, out="codes.csv")


def test_missing_files_are_not_fetched_for_a_run(run, monkeypatch):
    asked = []

    def pictures(download=True):
        asked.append(download)
        return data.moons(30)

    monkeypatch.setattr(data, "mnist", pictures)
    changed(run, {"_target_": "pyro_vae.data.mnist", "download": True})
    (run / "data.json").unlink()
    reuse.judge_run(run)
    assert set(asked) == {False}


def test_links_are_followed_to_what_is_read_and_not_to_what_is_written(run, tmp_path):
    held = reuse.judge_run(run)
    (tmp_path / "kept").mkdir()
    for name in ("config.yaml", "model.safetensors", "data.json"):
        (run / name).rename(tmp_path / "kept" / name)
        (run / name).symlink_to(tmp_path / "kept" / name)
    assert reuse.judge_run(run) == held
    (tmp_path / "elsewhere").mkdir()
    for folder in ("evaluations", "codes"):
        (run / folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"Expected 'run/evaluations' to lie in the folder of"):
        reuse.write_evaluation(held)
    with pytest.raises(ValueError, match=r"Expected 'run/codes' to lie .* pass out to choose"):
        reuse.embed(run)
    assert not list((tmp_path / "elsewhere").iterdir())
    for name, target in (("config.yaml", "/dev/zero"), ("data.json", "/etc/hostname")):
        (run / name).unlink()
        (run / name).symlink_to(target)
        with pytest.raises(ValueError, match="Expected"):
            reuse.judge_run(run)


HOSTILE_RECIPES = {
    "memory": ("encoder", {"hidden": [10**9, 10**9]}),
    "weights": ("encoder", {"hidden": [5]}),
    "deep": ("encoder", {"hidden": [2] * 50}),
    "very deep": ("encoder", {"hidden": [1] * 10**6}),
    "square": ("decoder", {"hidden": [10**5, 10**5]}),
    "types": ("encoder", {"hidden": "aaa"}),
    "floats": ("encoder", {"hidden": [2.5]}),
    "components": ("prior", {"components": 2**62}),
    "argument": ("prior", {"nonsense": 1}),
    "function": ("encoder", {"activation": "__import__('os').mkdir('FOREIGN_CODE_RAN')"}),
    "call": ("encoder", {"activation": {"_target_": "os.getpid"}}),
    "sizes": ("posterior", {"latent_dim": 10**12}),
    "text": ("posterior", {"min_scale": "1"}),
    "scale": ("likelihood", {"scale": 1.0}),
}


def small():
    return VAE(
        2, 1, posterior=posteriors.Full, prior=partial(priors.Vamp, components=2),
        likelihood=partial(likelihoods.Normal, scale="optimal"),
        encoder=partial(NET, batch_norm=True), decoder=NET,
    )  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE_RECIPES)
def test_a_recipe_that_does_not_fit_its_weights_is_refused_at_once(run, case):
    vae = small()
    role, arguments = HOSTILE_RECIPES[case]
    vae.recipe["parts"][role]["arguments"] = arguments
    path = run / "model.safetensors"
    path.write_bytes(serialization._pack({**vae.recipe, "name": "v"}, vae.state_dict()))
    with pytest.raises(
        ValueError, match=f"Expected {path} to describe a VAE that can be"
    ) as raised:
        load(run)
    if case in ("memory", "square", "very deep"):
        assert "parts of the size of the weights" in str(raised.value)


@pytest.mark.parametrize(
    "change",
    [{"latent_dim": 10**12}, {"event_shape": [10**6] * 4}, {"event_shape": []}, {"name": ""},
     {"latent_dim": "1"}, {"plate": "x"}, {"covariate_dim": -1}, {"other": 1}, {"parts": {}},
     {"parts": None}, {"name": None}],
    ids=str,
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused_at_once(run, change):
    vae = small()
    path = run / "model.safetensors"
    recipe = {**vae.recipe, "name": "v"} | change
    path.write_bytes(serialization._pack(recipe, vae.state_dict()))
    with pytest.raises(ValueError, match=f"Expected {path} to"):
        load(run)


def flipped(content, rng):
    """Damages a content: bits, a missing or another piece, an end that is cut off or longer."""
    damaged = bytearray(content)
    kind, at = rng.random(), rng.randrange(len(content))
    if kind < 0.7:
        damaged[at] ^= 1 << rng.randrange(8)
    elif kind < 0.8:
        del damaged[at : at + rng.randrange(1, 9)]
    elif kind < 0.9:
        damaged[at:at] = rng.randbytes(rng.randrange(1, 9))
    elif kind < 0.95:
        del damaged[at:]
    else:
        damaged += rng.randbytes(rng.randrange(1, 9))
    return bytes(damaged)


def checked(path, content, read, *, number):
    """Reads damaged contents; returns those that were read, and all others raise one error."""
    rng, kept, errors = random.Random(f"{path.name} {len(content)}"), [], []
    for _ in range(number):
        path.write_bytes(flipped(content, rng))
        try:
            kept.append(read())
        except ValueError as error:
            errors.append(error)
    assert {type(error) for error in errors} - {NotAllowedError} == {ValueError}
    assert not [error for error in errors if str(path.parent) not in str(error)]
    assert not [error for error in errors if len(str(error).splitlines()) > 1]
    return kept


def test_any_damage_to_weights_is_noticed(tmp_path):
    path = tmp_path / "vae.safetensors"
    save(small(), path)
    assert checked(path, path.read_bytes(), lambda: load(path), number=COUNT[0]) == []


@pytest.mark.parametrize("name", ["default", "vamp", "double", "ready_made"])
def test_damage_to_files_of_the_first_format_is_one_error_or_none(tmp_path, name):
    content = (FORMAT1 / f"{name}.safetensors").read_bytes()
    path = tmp_path / "vae.safetensors"
    kept = checked(path, content, lambda: load(path).state_dict(), number=COUNT[0])
    # The recipe is not covered there; the weights are.
    whole = load(FORMAT1 / f"{name}.safetensors").state_dict() if kept else {}
    assert len(kept) < COUNT[0] / 10
    for weights in kept:
        assert all(torch.equal(weights[key], value) for key, value in whole.items())


def test_any_damage_to_the_state_of_a_training_is_noticed(tmp_path):
    fit(VAE(2, 1, encoder=NET, decoder=NET), torch.ones(9, 2), epochs=1, out=tmp_path)
    path = tmp_path / "resume.pt"
    read = partial(resume_file.load_state, path)
    assert checked(path, path.read_bytes(), read, number=COUNT[0]) == []


def test_damage_to_a_state_of_the_first_format_changes_nothing(tmp_path):
    content = (FORMAT1 / "run" / "resume.pt").read_bytes()
    whole = resume_file.load_state(FORMAT1 / "run" / "resume.pt")
    path = tmp_path / "resume.pt"
    for state in checked(path, content, partial(resume_file.load_state, path), number=COUNT[0]):
        assert repr(state) == repr(whole)


def test_any_damage_to_what_data_were_prepared_by_is_noticed(tmp_path):
    held = Preparation.load(FORMAT1 / "run")
    path = tmp_path / "data.json"
    path.write_text(json.dumps(held.to_dict(), indent=2))
    read = partial(Preparation.load, tmp_path)
    for again in checked(path, path.read_bytes(), read, number=COUNT[0]):
        assert again.to_dict() == held.to_dict()


def test_damage_to_what_data_were_prepared_by_of_the_first_format_is_one_error_or_none(tmp_path):
    content = (FORMAT1 / "run" / "data.json").read_bytes()
    path = tmp_path / "data.json"
    for again in checked(path, content, partial(Preparation.load, tmp_path), number=2 * COUNT[0]):
        assert again.event_shape == (2,)
        assert len(again.columns) == 2
        assert all(bool(part.isfinite().all()) for part in again.scaling)


def test_damage_to_a_configuration_is_one_error_or_none(run):
    path = run / "config.yaml"

    def read():
        cfg = read_configuration(run)
        return cfg, build_own_data(run, ())

    kept = checked(path, path.read_bytes(), read, number=COUNT[0])
    assert all(isinstance(found, data.Data) for _, found in kept)


@pytest.mark.parametrize(
    "values",
    [[], None, {}, {"format": "pyro_vae data 1"}, {"event_shape": [2.0]}, {"event_shape": 2},
     {"event_shape": []}, {"event_shape": [-1]}, {"event_shape": [True]}, {"binarize": "x"},
     {"binarize": []}, {"columns": ["a"]}, {"columns": "ab"}, {"columns": [1, 2]}, {"scaling": []},
     {"scaling": {"loc": [0, 0]}}, {"scaling": {"loc": [0, 0], "scale": [1]}},
     {"scaling": {"loc": [0, 0], "scale": [1, 0]}}, {"scaling": {"loc": [0, "a"], "scale": [1, 1]}},
     {"scaling": {"loc": [0, None], "scale": [1, 1]}}, {"scaling": {"loc": 0, "scale": [[1], 2]}},
     {"other": 1}],
    ids=str,
)  # fmt: skip
def test_what_data_were_prepared_by_has_one_form(tmp_path, values):
    whole = json.loads((FORMAT1 / "run" / "data.json").read_text())
    held = whole | values if isinstance(values, dict) and "format" not in values else values
    (tmp_path / "data.json").write_text(json.dumps(held if values != {} else {}))
    with pytest.raises(ValueError, match=r"Expected '.*data\.json' to describe prepared data"):
        Preparation.load(tmp_path)


@pytest.mark.long
def test_no_single_bit_of_a_file_of_weights_changes_unnoticed(tmp_path):
    path = tmp_path / "vae.safetensors"
    save(small(), path)
    whole = path.read_bytes()
    for place in range(8 * len(whole)):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"vae\.safetensors"):
            load(path)


@pytest.mark.long
def test_much_damage_to_every_kind_of_file(tmp_path, run, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "COUNT", [2_000])
    for number, test in enumerate(
        (
            test_any_damage_to_weights_is_noticed,
            test_any_damage_to_the_state_of_a_training_is_noticed,
            test_damage_to_a_state_of_the_first_format_changes_nothing,
            test_any_damage_to_what_data_were_prepared_by_is_noticed,
        )
    ):
        (tmp_path / str(number)).mkdir()
        test(tmp_path / str(number))
    test_damage_to_a_configuration_is_one_error_or_none(run)
