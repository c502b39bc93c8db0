"""Projects of users: created, found by every command, and refused when they are broken."""

import ast
import re
import runpy
import shlex
import subprocess
import sys

import hydra
import pytest
from omegaconf import OmegaConf

import pyro_vae
from helpers.commands import call
from helpers.projects import install_project
from pyro_vae import config
from pyro_vae.projects import create, create_project
from pyro_vae.run import run

QUICK = [
    "experiment=my_experiment", "data.n=60", "train.epochs=2", "train.compile=false",
    "evaluate.num_particles=10", "evaluate.elbo_particles=2", "evaluate.baseline_components=0",
]  # fmt: skip
NAMES = ["priors.MyPrior", "networks.MyEncoder", "data.my_data"]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs projects in this process."""
    (tmp_path / "site").mkdir()
    names = []

    def install_here(name, **settings):
        names.append(name)
        for path in install_project(name, tmp_path / "site", **settings):
            monkeypatch.syspath_prepend(path)
        return tmp_path / "site" / name / name / "conf"

    yield install_here
    for module in [m for m in sys.modules if m.partition(".")[0] in names]:
        del sys.modules[module]


def compose_elsewhere(folder, *overrides, searchpath=()):
    """Composes the configuration of another application."""
    text = OmegaConf.to_yaml({"defaults": [{"vae": "default"}, "_self_"], "data": None})
    (folder / "main.yaml").write_text(f"{text}hydra:\n  searchpath: {list(searchpath)}\n")
    with config._isolate_hydra(), hydra.initialize_config_dir(str(folder), version_base="1.3"):
        return hydra.compose("main", overrides=list(overrides))


def test_every_file_of_a_project_has_its_name(tmp_path):
    project = create_project(tmp_path / "study")
    files = [path for path in project.rglob("*") if path.is_file()]
    assert len(files) == 11
    assert not [path for path in files if "my_project" in f"{path}{path.read_text('utf-8')}"]
    assert [path.name for path in tmp_path.iterdir()] == ["study"]


def test_an_empty_folder_is_filled_and_a_full_one_is_kept(tmp_path):
    (tmp_path / "study").mkdir()
    create_project(tmp_path / "study")
    with pytest.raises(ValueError, match="which is a folder with files"):
        create_project(tmp_path / "study")
    (tmp_path / "other").write_text("text")
    with pytest.raises(ValueError, match="which is a file"):
        create_project(tmp_path / "other")


def test_a_project_is_written_all_or_not_at_all(tmp_path, monkeypatch):
    def fill_half(copy, name):
        (copy / name).mkdir(parents=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(create, "_fill_template", fill_half)
    with pytest.raises(OSError, match="No space"):
        create_project(tmp_path / "study")
    assert not list(tmp_path.iterdir())


def test_commands_list_and_compose_the_options_without_importing_the_project(install, tmp_path):
    install("study")
    shown = call("pyro-vae", "--help", cwd=tmp_path).out
    assert re.search(r"^vae/prior: .*\bmy_prior\b", shown, re.MULTILINE)
    assert re.search(r"^experiment: .*\bmy_experiment\b", shown, re.MULTILINE)
    assert "my_data" in call("pyro-vae-embed", "--help", cwd=tmp_path).out
    cfg = config.compose(["experiment=my_experiment", "vae.prior.components=3", "out=."])
    assert cfg.vae.prior == {
        "_target_": "study.priors.MyPrior", "_partial_": True, "components": 3, "spread": 1.0,
    }  # fmt: skip
    assert cfg.data._target_ == "study.data.my_data"
    assert "study" not in sys.modules
    err = call("pyro-vae", "my_data=1", cwd=tmp_path).err
    assert "Expected a setting that exists" in err


def test_options_have_the_defaults_of_the_classes(install):
    install("study")
    cfg = OmegaConf.to_container(config.compose(["experiment=my_experiment", "out=."]))
    for node in (cfg["vae"]["prior"], cfg["vae"]["encoder"], cfg["data"]):
        defaults = hydra.utils.get_object(node["_target_"])
        function = defaults.__init__ if isinstance(defaults, type) else defaults
        settings = (function.__kwdefaults__ or {}) | {"n": 2000, "covariate_dim": 0}
        for name, value in node.items():
            if not name.startswith("_"):
                assert settings[name] == value, name


@pytest.mark.long
def test_the_test_of_the_template_passes(install):
    conf = install("study")
    test = runpy.run_path(str(conf.parent.parent / "tests" / "test_my_experiment.py"))
    test["test_my_experiment_learns"]()


def test_an_error_names_all_that_a_run_needs_to_be_allowed(install, tmp_path):
    install("study")
    run(config.compose([*QUICK, f"out={tmp_path}/run"]))
    names = [f"study.{name}" for name in NAMES]
    with pytest.raises(ValueError, match="Expected prior, encoder to be classes of") as raised:
        pyro_vae.load(tmp_path / "run")
    allow = ast.literal_eval(str(raised.value).rpartition("allow=")[2].rstrip(")"))
    assert allow == names[:2]
    pyro_vae.load(tmp_path / "run", allow=allow)

    words = ["run=run", "evaluate.num_particles=5", f"allow=[{names[1]}]"]
    done = call("pyro-vae-evaluate", *words, cwd=tmp_path)
    assert done.code == 1
    command = done.err.splitlines()[0].partition("if you trust the run, type ")[2]
    names = [names[1], names[0], names[2]]
    assert shlex.split(command) == ["pyro-vae-evaluate", *words[:2], f"allow=[{','.join(names)}]"]
    done = call(*shlex.split(command), cwd=tmp_path)
    assert done.code == 0, done.err
    assert call("pyro-vae-compare", "run", cwd=tmp_path).code == 0
    # Data of the command line are trusted, and the run's own are not built.
    done = call("pyro-vae-embed", "run=run", "data=my_data", "data.n=60", cwd=tmp_path)
    assert "study.data" not in done.err
    assert done.err.count("study.priors.MyPrior,study.networks.MyEncoder]'") == 1


def break_clash(install):
    conf = install("study")
    (conf / "vae/prior/vamp.yaml").write_text("_target_: study.priors.MyPrior\n")


def break_clash_of_two(install):
    install("study")
    install("study2")


BROKEN = {
    "clash": (break_clash, r"got 'vae/prior/vamp.yaml' in pyro_vae and in study.conf: rename '/"),
    "clash of two": (break_clash_of_two, "in study.conf and in study2.conf: rename"),
    "no package": (lambda install: install("study", entry="gone.conf"), "pip uninstall study"),
    "no folder": (lambda install: install("study", entry="study.gone"), "have the folder study.go"),
    "no path": (lambda install: install("study", entry="study"), "have the folder study, which"),
    "no name": (lambda install: install("study", entry=".a:b"), "have the folder .a:b, which"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_project_is_one_message_of_the_commands_of_this_package(install, tmp_path, case):
    break_it, message = BROKEN[case]
    break_it(install)
    with pytest.raises(ValueError, match=message):
        config.compose(["out=."])
    done = call("pyro-vae", "--help", cwd=tmp_path)
    assert (done.code, done.out) == (1, "")
    assert re.search(message, done.err.splitlines()[0])
    assert compose_elsewhere(tmp_path, "vae/prior=vamp").vae.prior.components == 50


MISTAKES = {
    "import": (
        "priors.py", "import not_there", "got 'study.priors.MyPrior' (ModuleNotFoundError: No "
        "module named 'not_there')",
    ),
    "syntax": ("priors.py", "def", "got 'study.priors.MyPrior' (SyntaxError: "),
    "partial": (
        "conf/data/my_data.yaml", "_partial_: true", "Expected data to build a pyro_vae.data.Data",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_project_is_one_message_with_its_cause(install, tmp_path, mistake):
    file, line, message = MISTAKES[mistake]
    conf = install("study")
    with (conf.parent / file).open("a") as text:
        text.write(f"\n{line}\n")
    done = call("pyro-vae", *QUICK, "out=run", cwd=tmp_path)
    assert done.code == 1
    assert message in done.err.splitlines()[0]


def test_other_applications_see_no_projects(install, tmp_path):
    install("study")
    with pytest.raises(hydra.errors.MissingConfigException, match="Could not find"):
        compose_elsewhere(tmp_path, "vae/prior=my_prior")


def test_other_applications_ask_for_three_groups_and_get_no_others(tmp_path):
    groups = ["pyro_vae://groups"]
    wanted = ["+objective=iwae", "+optimizer=adam", "+data@sets.a=moons"]
    cfg = compose_elsewhere(tmp_path, *wanted, searchpath=groups)
    assert cfg.objective._target_ == "pyro_vae.objectives.IWAE"
    assert cfg.optimizer._target_ == "torch.optim.Adam"
    assert cfg.sets.a._target_ == "pyro_vae.data.moons"
    # The name of a group that is not there becomes a plain value.
    cfg = compose_elsewhere(tmp_path, "+experiment=cells", "+sweep=grid", searchpath=groups)
    assert (cfg.experiment, cfg.sweep) == ("cells", "grid")
    assert compose_elsewhere(tmp_path, "+objective=iwae").objective == "iwae"
    with pytest.raises(hydra.errors.MissingConfigException):
        compose_elsewhere(tmp_path, "hydra/launcher=slots", searchpath=groups)
    with pytest.raises(ValueError, match="to have pyro_vae://groups, got 'pyro_vae://all'"):
        compose_elsewhere(tmp_path, searchpath=["pyro_vae://all"])


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweep_over_the_prior_runs_in_any_folder(tmp_path, monkeypatch, launcher):
    (tmp_path / "site").mkdir()
    paths = install_project("study", tmp_path / "site")
    for path in paths:
        monkeypatch.setenv("PYTHONPATH", path, prepend=":")
    sweep = ["-m", *QUICK, f"hydra/launcher={launcher}", "vae/prior=normal,my_prior", "seed=0"]
    command = [sys.executable, "-m", "pyro_vae", *sweep]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 finished" in done.stdout
