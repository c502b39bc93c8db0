"""Damaged files: each reader gives the result of the whole file, or one of our errors."""

import contextlib
import json
import random
import shutil
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import yaml

from helpers.compare_runs import write
from pyro_vae import VAE, config, data, fit, likelihoods, load, reuse
from pyro_vae.compare import comparison, csv_table, markdown, page
from pyro_vae.run.experiment import run
from pyro_vae.sweeps import job_id, job_status
from pyro_vae.training import resume_file

QUICK = [
    "data=table",
    "data.label=kind",
    "vae/likelihood=normal",
    "vae.latent_dim=1",
    "vae.encoder.hidden=[3]",
    "vae.decoder.hidden=[3]",
    "train.epochs=2",
    "evaluate.num_particles=2",
    "evaluate.elbo_particles=2",
    "evaluate.baseline_components=0",
    "threads=1",
]
FEW = {"num_particles": 2, "elbo_particles": 2, "evidence_rows": 5}
HANGS = 60
"""Seconds after which a reader is taken to hang."""

ODD = [
    None, True, -1, 0, 2**63, 2**64, 10**30, 0.5, -1e308, "", "x", "nan", "1", "${oc.env:HOME}",
    "os.system", "\u202e", [], [1], [[1, "a"]], {}, {"_target_": "os.getcwd"}, {"a": {"b": None}},
    "a" * 2000,
]  # fmt: skip


# ---------------------------------------------------------------------------------------- damage


def flip(draw, content):
    place = draw.randrange(len(content))
    changed = bytes([content[place] ^ 1 << draw.randrange(8)])
    return content[:place] + changed + content[place + 1 :]


def delete(draw, content):
    place = draw.randrange(len(content))
    return content[:place] + content[place + draw.choice((1, 1, 8, 100)) :]


def truncate(draw, content):
    return content[: draw.randrange(len(content))]


def insert(draw, content):
    place = draw.randrange(len(content) + 1)
    more = draw.choice((b"\0", b"\xff\xfe", b"\n", b'"', b"{", b"- &a [*a]\n", b",", b"9" * 30))
    return content[:place] + more + content[place:]


def splice(draw, content):
    start, place = draw.randrange(len(content)), draw.randrange(len(content))
    piece = content[start : start + draw.choice((1, 16, 200))]
    return content[:place] + piece + content[place + len(piece) * draw.randrange(2) :]


def erase(draw, content):
    place, size = draw.randrange(len(content)), draw.choice((1, 32, 512))
    return content[:place] + bytes(len(content[place : place + size])) + content[place + size :]


def repeat(draw, content):
    return content * 2


BYTES = (flip, flip, flip, delete, truncate, insert, splice, erase, repeat)


def places(values):
    """Yields each list or mapping within values, with each of its keys."""
    for key in values if isinstance(values, dict) else range(len(values)):
        yield values, key
        if isinstance(values[key], (dict, list)):
            yield from places(values[key])


def replace(draw, content):
    """Replaces, renames or removes a value of a JSON or yaml file."""
    values = yaml.safe_load(content)
    within, key = draw.choice(list(places(values)))
    kind = draw.randrange(4)
    if kind == 0:
        del within[key]
    elif kind == 1 and isinstance(within, dict):
        within[draw.choice(("", "x", "_target_", "${a}"))] = within.pop(key)
    else:
        within[key] = draw.choice(ODD)
    dump = json.dumps if content.startswith(b"{") else yaml.safe_dump
    return dump(values).encode()


# ---------------------------------------------------------------------------------------- readers


def plain(value):
    """Returns something that is equal for equal results."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return [(key, plain(one)) for key, one in value.items()]
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return repr(value)


def loaded(path):
    vae = load(path)
    return plain([vae.recipe, vae.state_dict()])


def resumed(path):
    made = VAE(2, 1, likelihood=likelihoods.Normal)
    rows = torch.arange(40.0).reshape(20, 2) / 40
    found = fit(made, rows, epochs=2, out=path.parent, resume=True, compile=False)
    return plain([found.history, made.state_dict()])


def without_name(folder):
    """The name of a run of an earlier version, which left its configuration alone."""
    (folder / ".job").unlink(missing_ok=True)
    return job_id.read_run_id(folder)


def compared(path):
    """Compares a damaged run with a whole one, which has to stay as it is."""
    found = comparison.compare([path.parent.parent])
    for text in (page.build_page, csv_table.build_csv):
        text(found, path.parent.parent)
    markdown.build_markdown(found)
    by_name = {one.name: one for one in found.runs}
    assert by_name["whole"].state == "finished"
    assert found.headline()
    # A folder whose configuration is that of something else is no run.
    bad = by_name.get(path.parent.name)
    if bad is None or bad.problem:
        raise ValueError(bad.problem if bad else f"Expected a run, got something else: {path.name}")
    return "compared"


READERS = {
    "load": ("run/model.safetensors", lambda path: loaded(path.parent), True),
    "load a file": ("run/last.safetensors", loaded, True),
    "load_state": ("trained/resume.pt", lambda path: plain(resume_file.load_state(path)), True),
    "fit(resume=True)": ("trained/resume.pt", resumed, True),
    "Preparation.load": ("run/data.json", lambda p: plain(data.Preparation.load(p.parent)), True),
    "reuse.preparation": ("run/data.json", lambda p: plain(reuse.preparation(p.parent)), True),
    "judge_run": (
        "run/config.yaml",
        lambda path: plain(reuse.judge_run(path.parent, **FEW)),
        False,
    ),
    "embed": (
        "run/config.yaml",
        lambda path: reuse.embed(path.parent, out=path.parent / "new.csv").read_bytes(),
        False,
    ),
    "holds config": ("run/config.yaml", lambda path: without_name(path.parent), False),
    "holds": ("named/.job", lambda path: job_id.read_run_id(path.parent), False),
    "folder.metrics": (
        "runs/bad/metrics.json",
        lambda p: plain(job_status.read_metrics(p.parent)),
        False,
    ),
    "folder.state": (
        "runs/bad/metrics.json",
        lambda path: job_status.read_state(path.parent),
        False,
    ),
    "folder.failure": (
        "runs/failed/failure.json",
        lambda p: plain(job_status.read_failure(p.parent)),
        False,
    ),
    "compare metrics": ("runs/bad/metrics.json", compared, False),
    "compare config": ("runs/bad/config.yaml", compared, False),
    "compare failure": ("runs/failed/failure.json", compared, False),
    "table": ("people.csv", lambda path: plain(data.table(path, label="kind")), False),
    "table of codes": (
        "codes.csv",
        lambda path: plain(data.table(path, columns=["z_mean_0", "z_scale_0"], label="label")),
        False,
    ),
    "array npy": ("rows.npy", lambda path: plain(data.array(path)), False),
    "array npz": ("rows.npz", lambda path: plain(data.array(path, labels_key="y")), True),
}
"""For each reader a file, how it is read, and whether a difference is to be noticed."""

ABOUT_VALUES = ("judge_run", "embed", "table", "table of codes", "array npy", "array npz")
"""Readers whose errors may be about a setting or a column, and then do not name the file."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a whole file of each kind."""
    root = tmp_path_factory.mktemp("whole")
    draw = np.random.default_rng(0)
    people = pandas.DataFrame(draw.normal(size=(40, 2)), columns=["height", "weight"])
    people["kind"] = draw.choice(["a", "'=b", "c"], 40)
    people.to_csv(root / "people.csv", index=False)
    np.save(root / "rows.npy", draw.normal(size=(20, 3)))
    np.savez(root / "rows.npz", x=draw.normal(size=(20, 3)), y=np.arange(20))
    threads = torch.get_num_threads()
    run(config.compose([*QUICK, f"data.path={root}/people.csv", f"out={root}/run"]))
    torch.set_num_threads(threads)
    reuse.embed(root / "run", out=root / "codes.csv")
    made = VAE(2, 1, likelihood=likelihoods.Normal)
    rows = torch.arange(40.0).reshape(20, 2) / 40
    fit(made, rows, epochs=2, out=root / "trained", compile=False)
    (root / "named").mkdir()
    (root / "named/.job").write_text("0123456789ab")
    write(root / "runs/whole", {"vae.latent_dim": 3})
    write(root / "runs/bad", {"seed": 1})
    write(root / "runs/failed", {"seed": 2}, state="failed")
    return root


@contextlib.contextmanager
def no_hanging():
    """Raises an error in a reader that does not end."""

    def end(*_):
        raise TimeoutError(f"reads for {HANGS} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(name, root, expected):
    """Returns the outcome of reading a damaged file: ``"error"``, ``"same"`` or ``"differs"``."""
    file, read, checked = READERS[name]
    try:
        with no_hanging():
            found = read(root / file)
    except ValueError as error:
        problem = error
    else:
        problem = None
    if problem is not None:
        assert type(problem) is ValueError, f"{type(problem).__name__}: {problem}"
        assert str(problem).startswith("Expected "), problem
        assert name in ABOUT_VALUES or Path(file).name in str(problem), problem
        return "error"
    assert found == expected or not checked, "a silent difference"
    return "same" if found == expected else "differs"


def fuzz(name, whole, root, count, seed=0):
    """Damages a file many times, and returns the number of each outcome of reading it."""
    file, read, _ = READERS[name]
    shutil.copytree(whole, root, dirs_exist_ok=True)
    expected = read(root / file)
    content = (whole / file).read_bytes()
    draw = random.Random(f"{name} {seed}")
    kinds = (*BYTES, *(replace,) * 9) if file.endswith(("json", "yaml")) else BYTES
    outcomes = Counter()
    for number in range(count):
        damage = draw.choice(kinds)
        changed = damage(draw, content)
        for other in whole.glob(f"{Path(file).parent}/*"):
            # Readers may write to the folder.
            if other.is_file() and Path(file).parent.name == "trained":
                shutil.copy(other, root / Path(file).parent)
        (root / file).write_bytes(changed)
        try:
            outcomes[outcome(name, root, expected)] += 1
        except Exception as error:
            kept = root / f"damaged_{Path(file).name}"
            kept.write_bytes(changed)
            raise AssertionError(f"{name}, {damage.__name__} {number}: {kept}, {error}") from error
    return outcomes


COUNTS = {"judge_run": 6, "embed": 6, "fit(resume=True)": 6, "compare config": 12}


@pytest.mark.parametrize("name", READERS)
def test_damage_is_noticed_or_does_no_harm(name, whole, tmp_path):
    outcomes = fuzz(name, whole, tmp_path, COUNTS.get(name, 20))
    assert outcomes["error"] > 0


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("name", READERS)
def test_much_damage_is_noticed_or_does_no_harm(name, seed, whole, tmp_path):
    outcomes = fuzz(name, whole, tmp_path, 20 * COUNTS.get(name, 20), seed)
    print(f"\n{name}: {dict(outcomes)}")
