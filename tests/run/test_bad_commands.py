"""Wrong command lines: one clear message each, no traceback, and nothing created or lost."""

import contextlib
import io
import shlex
import shutil
import subprocess
import sys

import pytest

from helpers.commands import MAINS, call
from pyro_vae import config
from pyro_vae.run.experiment import run

QUICK = [
    "data=moons", "data.n=60", "vae/likelihood=normal", "vae.latent_dim=1", "train.epochs=1",
    "train.compile=false", "evaluate.num_particles=5", "evaluate.elbo_particles=2",
    "evaluate.baseline_components=0",
]  # fmt: skip
TRAILER = "\n\nSet the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace."

WRONG = r"""
# Options and groups
pyro-vae vae/prior=vampire | Expected vae/prior to be one of
pyro-vae vae/priors=vamp | got 'vae/priors': did you mean vae/prior?
pyro-vae prior=vamp | got 'prior': did you mean vae/prior?
pyro-vae vae=vamp | Expected vae to be one of default, got 'vamp'
pyro-vae vae/encoder=conv vae/decoder=cnn | Expected vae/decoder to be one of
pyro-vae objective=ewae | Expected objective to be one of
pyro-vae objective= | , got ''
pyro-vae data=cifar | Expected data to be one of
pyro-vae experiment=missing | Expected experiment to be one of cells, grey_digits
pyro-vae sweep=missing | Expected sweep to be one of betas, grid
pyro-vae optimizer=rmsprop | Expected optimizer to be one of adam, adamw, sgd, got 'rmsprop'
pyro-vae hydra/launcher=slot | Expected hydra/launcher to be one of basic
pyro-vae hydra/launcher=slurm | Expected the extra slurm for the launcher submitit_slurm, got none
pyro-vae hydra/launcher=submitit_local | Expected the extra slurm for the launcher submitit
pyro-vae hydra/launcher=ray_cluster | Expected the extra ray for the launcher ray, got none
pyro-vae +vae/prior=vamp | Multiple values for vae/prior
pyro-vae latent_dim=4 | got 'latent_dim': did you mean vae.latent_dim?
pyro-vae vae.latent_dims=4 | got 'vae.latent_dims': did you mean vae.latent_dim?
pyro-vae train.lr=1 | got 'train.lr': did you mean optimizer.lr?
pyro-vae optimizer.learning_rate=0.1 | optimizer has lr, betas, eps, fused; +optimizer.
pyro-vae train.schedules.beta=1 | +train.schedules.beta=1 adds it
# The grammar
pyro-vae vae.latent_dim 4 | Expected settings as KEY=VALUE, got 'vae.latent_dim'
pyro-vae my.csv | Expected settings as KEY=VALUE, got 'my.csv'
pyro-vae data.path=my file.csv | Expected settings as KEY=VALUE, got 'file.csv'
pyro-vae '' | Expected settings as KEY=VALUE, got ''
pyro-vae ' ' | Expected settings as KEY=VALUE, got ' '
pyro-vae =3 | Expected settings as KEY=VALUE, got '=3'
pyro-vae größe=3 | got 'größe=3': write names in ASCII
pyro-vae ++++seed=1 | got '++++seed=1'
pyro-vae 'data.path=my file (1).csv' | put it in quotes, 'data.path="my file (1).csv"'
pyro-vae "data.path=it's.csv" | put it in quotes, 'data.path="it'"'"'s.csv"'
pyro-vae 'data.columns=[a,ß]' | put it in quotes, 'data.columns=[a,"ß"]'
pyro-vae '+train.schedules.beta={start: 0.' | close brackets and quotes
pyro-vae 'out=${now:' | close brackets and quotes
pyro-vae seed=0,1 | one job per value, or write a list as 'seed=[0,1]' and text as 'seed="0,1"'
pyro-vae ~nothing | 'nothing' does not exist
pyro-vae +seed=1 | An item is already at 'seed'
pyro-vae 'vae.encoder.hidden={a:1}' | encoder.hidden to be of a different type, got '{a:1}'
# Flags
pyro-vae --epochs 3 | unrecognized arguments: --epochs: settings are KEY=VALUE without dashes
pyro-vae --resume | unrecognized arguments: --resume
pyro-vae --halp | unrecognized arguments: --halp
pyro-vae -c | argument --cfg/-c: expected one argument
pyro-vae --info nothing | invalid choice: 'nothing'
pyro-vae --resolve | can only be used in conjunction with --cfg
pyro-vae --run --multirun | Only one of --run, --multirun
pyro-vae -sc install=tcsh | No completion plugin for 'tcsh'
pyro-vae -h vae.nope=1 | got 'vae.nope': vae has latent_dim, name
pyro-vae --config-dir nowhere | Additional config directory '
pyro-vae --config-dir text.txt | text.txt' not found
pyro-vae --config-dir my_conf experiment=broken | broken.yaml', got an error in line 3, column 1
pyro-vae --config-name nothing | Cannot find primary config 'nothing'
pyro-vae hydra.mode=WALK | MULTIRUN
pyro-vae hydra.run.dir=text.txt | File exists: 'text.txt': choose another folder
# Values
pyro-vae vae.latent_dim=four | Expected latent_dim to be an integer of at least 1, got 'four'
pyro-vae +objective.nonsense=1 | got an unexpected keyword argument 'nonsense'
pyro-vae train._target_=pyro_vae.fitt | Expected train._target_ to be a class or function
pyro-vae train=fast | Expected settings with a _target_, got 'fast'
pyro-vae train.checkpoint_seconds=often | Expected checkpoint_seconds to be zero or more, got
pyro-vae 'vae.latent_dim=${a.b}' | Interpolation key 'a.b' not found
pyro-vae ~seed | Expected the configuration to have the setting 'seed', which is missing
pyro-vae out= | Expected out to name a folder, as in out=FOLDER, got ''
pyro-vae out=null | Expected out to name a folder, as in out=FOLDER, got None
pyro-vae out=text.txt/run | Not a directory
pyro-vae out=done | with the finished run of another configuration
pyro-vae data=table data.path=folder.csv vae/likelihood=normal | Expected data.path to name a file
pyro-vae data=table data.path=words.csv vae/likelihood=normal | 'data.drop=["b d"]'
# Sweeps
pyro-vae -m 'seed=range(3,0)' | Expected a sweep of one job or more, got none
pyro-vae -m 'seed=choise(0,1)' | Unknown function 'choise' Available: bool,choice
pyro-vae -m seed=0, | got 'seed=0,'
pyro-vae -m vae/prior=normal,vampire | Expected vae/prior to be one of
pyro-vae -m hydra/sweeper=optima seed=1,2 | Expected hydra/sweeper to be one of basic, optuna
pyro-vae -m hydra/sweeper=optuna seed=1,2 | hydra.sweeper.seeds=[0,1,2] to judge trials
pyro-vae -m hydra.sweep.dir=text.txt seed=0,1 | File exists: 'text.txt': choose another folder
# Finished runs
pyro-vae-evaluate | Expected run to be the folder of a finished run, as in run=outputs/DATE
pyro-vae-evaluate done | Expected settings as KEY=VALUE, got 'done'
pyro-vae-evaluate --part test run=done | unrecognized arguments: --part
pyro-vae-evaluate run=torn | Expected safetensors in torn/model.safetensors, got a damaged file
pyro-vae-evaluate run=done num_particles=3 | did you mean evaluate.num_particles?
pyro-vae-evaluate run=done seed=-1 | Expected seed to be an integer of at least 0, got -1
pyro-vae-evaluate run=done out=folder | Expected out to name a file, got the folder 'folder'
pyro-vae-evaluate run=done out= | Expected out to name a file, got ''
pyro-vae-evaluate run=done out=text.txt/x.json | got 'text.txt/x.json' in a file
pyro-vae-evaluate run=done data.path=t.csv | choose an option of data first, as in data=NAME
pyro-vae-evaluate run=done data=fast data.path=t.csv | Expected data to be one of
pyro-vae-evaluate run=done allow=os.system | Expected allow to be a list of dotted names
pyro-vae-embed run=done out=folder.csv | Expected out to name a file, got the folder 'folder.csv'
pyro-vae-embed run=done rows_at_once=lots | Expected rows_at_once to be an integer
pyro-vae-embed run=done outt=codes.csv | got 'outt': did you mean out?
pyro-vae-impute run=done | Expected a run on a table
pyro-vae-impute run=done draws=-1 | Expected draws to be an integer of at least 0
pyro-vae-sample run=done | Expected a run on a table
pyro-vae-sample run=done n=0 | Expected n to be an integer of at least 1
pyro-vae-sample run=done covariate=a | got 'covariate': did you mean covariates?
pyro-vae-score run=done out=scores.txt | Expected out to name a .parquet or .csv file
pyro-vae-score run=nowhere | Expected run to be the folder of a finished run
# Projects
pyro-vae-init | the following arguments are required: FOLDER
pyro-vae-init '' | Expected FOLDER to name a new folder, got ''
pyro-vae-init . | Expected FOLDER to name a new folder, got '.'
pyro-vae-init my-project | as in my_project, got 'my-project': use 'my_project'
pyro-vae-init 'my project!' | got 'my project!': use 'my_project'
pyro-vae-init 2nd | Expected FOLDER to have the name of a new Python package, as in my_project, got
pyro-vae-init class | got 'class', which is a keyword of Python
pyro-vae-init torch | got 'torch', which is an installed module
pyro-vae-init pyro_vae | got 'pyro_vae', which is an installed module
pyro-vae-init json | got 'json', which is an installed module
pyro-vae-init scikit_learn | got 'scikit_learn', which is an installed distribution: choose another
pyro-vae-init tests | got 'tests', which is
pyro-vae-init nowhere/study | nowhere' first
pyro-vae-init done | Expected FOLDER to be a new folder, got 'done', which is a folder with files
# Comparisons
pyro-vae-compare | the following arguments are required: FOLDER
pyro-vae-compare missing | Expected FOLDER to be a folder that exists, got 'missing'
pyro-vae-compare '' | Expected FOLDER to name a folder, got ''
pyro-vae-compare done --out '' | Expected --out to name a folder, got ''
pyro-vae-compare done --out text.txt | Expected --out to be a folder, got the file 'text.txt'
pyro-vae-compare done --out text.txt/x | Not a directory: '
pyro-vae-compare done --agianst prior=Vamp | unrecognized arguments: --agianst prior=Vamp
pyro-vae-compare done --against prior | Expected --against to name a factor as FACTOR=LEVEL
"""

LONG = r"""
pyro-vae vae.prior=vamp | Expected prior to be a module or a callable that builds one, got 'vamp'
pyro-vae vae.latent_dim=2.5 | Expected latent_dim to be an integer of at least 1, got 2.5
pyro-vae vae.encoder.hidden=[0] | Expected hidden to be a list of positive integers, got [0]
pyro-vae vae/prior=vamp vae.prior.components=-2 | Expected components to be an integer
pyro-vae optimizer.lr=fast | Expected optimizer and train.lr_schedule to have settings that PyTorch
pyro-vae data=moons | Expected x to be zeros and ones for a Bernoulli likelihood
pyro-vae data=array data.path=bad.npy | Expected 'bad.npy' to be an intact file of arrays
pyro-vae data=table data.path=empty.csv vae/likelihood=normal | Expected 'empty.csv' to be a table
pyro-vae data=table data.path=binary.csv vae/likelihood=normal | Expected 'binary.csv' to be a table
pyro-vae data.valid=-1 | Expected valid and test to be numbers or fractions
pyro-vae train.epochs=1.5 | Expected epochs to be an integer of at least 1, got 1.5
pyro-vae train.patience=soon | Expected patience to be an integer
pyro-vae train.clip_norm=big | Expected clip_norm to be positive, got 'big'
pyro-vae train.schedules=warmup | schedules to map names, such as beta, to schedules, got 'warmup'
pyro-vae +train.learning_rate=1 | Expected train to be settings of pyro_vae.fit
pyro-vae evaluate.num_particles=1e3 | Expected evaluate.num_particles to be an integer
pyro-vae seed=abc | Expected seed to be an integer of at least 0, got 'abc'
pyro-vae threads=all | Expected threads to be an integer of at least 1, got 'all'
pyro-vae device=gpu | Expected device to be one of this machine
pyro-vae vae.latent_dim=0 | Expected latent_dim to be an integer of at least 1, got 0
pyro-vae evaluate.compile=maybe | Expected evaluate.compile to be true, false, auto or strict, got
pyro-vae +evaluate.precision=half | Expected evaluate.precision to be 'float32' or 'bfloat16', got
pyro-vae objective.num_particles=0 | Expected num_particles to be a positive integer, got 0
pyro-vae objective.beta=-1 | Expected beta to be zero or more, got -1
pyro-vae train.epochs=0 | Expected epochs to be an integer of at least 1, got 0
pyro-vae data.binarize=none | got grey-scale values: binarize the data
pyro-vae data.binarize=none vae/likelihood=categorical | Expected x to be one of 256 levels
pyro-vae out=text.txt | Expected out to be a folder, got the file 'text.txt'
pyro-vae out=nometrics | with an unfinished run
pyro-vae resume=maybe | Expected resume to be true or false, got 'maybe'
pyro-vae 'seed=${seed}' | Recursive interpolation detected
pyro-vae vae.prior._target_=os.system | Target 'os.system' is blocklisted
pyro-vae-evaluate run=folder | which has no config.yaml
pyro-vae-evaluate run=nometrics | run its command again with out=nometrics resume=true
pyro-vae-evaluate run=badyaml | Expected 'badyaml/config.yaml' to hold yaml of plain values
pyro-vae-evaluate run=done part=tests | Expected part to be 'train', 'valid', 'test' or
pyro-vae-evaluate run=done data=digits | Expected data of shape (2,), that of run 'done'
pyro-vae-embed run=done out=codes.txt | Expected out to name a .parquet or .csv file
"""


def table(text):
    rows = (line.partition(" | ") for line in text.strip().splitlines() if line[0] != "#")
    return [pytest.param(line, said, id=line) for line, _, said in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("bad")
    with contextlib.redirect_stdout(io.StringIO()):
        run(config.compose([*QUICK, f"out={config.quote_value(str(place / 'done'))}"]))
    (place / "words.csv").write_text("a,b d,c\n1,x,2\n3,y,4\n5,z,5\n")
    (place / "empty.csv").write_text("")
    (place / "binary.csv").write_bytes(bytes(range(256)))
    (place / "bad.npy").write_bytes(b"not an array")
    (place / "text.txt").write_text("text")
    for name in ("folder", "folder.csv", "my_conf/experiment"):
        (place / name).mkdir(parents=True)
    (place / "my_conf/experiment/broken.yaml").write_text("# @package _global_\nseed: [1\n")
    for name in ("torn", "nometrics", "badyaml"):
        shutil.copytree(place / "done", place / name)
    (place / "torn/model.safetensors").write_bytes(b"xx")
    (place / "nometrics/metrics.json").unlink()
    (place / "badyaml/config.yaml").write_text("a: [")
    return place


def files(place):
    return {str(p): p.read_bytes() if p.is_file() else None for p in place.rglob("*")}


def check(line, said, folder):
    before = files(folder)
    code, out, err = call(*shlex.split(line), cwd=folder)
    assert code in (1, 2), err
    message = err.removesuffix(f"{TRAILER}\n").rstrip("\n")
    if message.startswith("usage: "):
        message = message.splitlines()[-1]
    assert said in message
    # Only the items of a list of problems have lines of their own.
    assert all(line.startswith("  ") for line in message.splitlines()[1:])
    assert "Traceback" not in err
    # Hydra says on standard output which jobs of a sweep it launches.
    assert not out or " -m " in line
    assert files(folder) == before


def test_several_problems_of_a_file_are_a_list(tmp_path):
    (tmp_path / "wrong.csv").write_text("a,b,c\n" + "1,x,3\n2,,5\nz,4,oo\n" * 20)
    code, out, err = call("pyro-vae", "data=table", "data.path=wrong.csv", "out=run", cwd=tmp_path)
    assert code == 1
    assert not out
    lines = err.splitlines()
    assert lines[0].endswith("to be a table without problems, got 3:")
    assert [line[:5] for line in lines[1:4]] == ["  1. ", "  2. ", "  3. "]
    assert lines[4].startswith("  To go on without the columns with problems, leave them out (")


def test_there_are_sixty_wrong_lines_of_every_command():
    lines = [param.values[0] for param in table(WRONG)]
    assert len(set(lines)) >= 60
    assert {line.split()[0] for line in lines} == set(MAINS)


@pytest.mark.parametrize(("line", "said"), table(WRONG))
def test_a_wrong_line_is_one_message(line, said, folder):
    check(line, said, folder)


@pytest.mark.long
@pytest.mark.parametrize(("line", "said"), table(LONG))
def test_a_wrong_value_is_one_message(line, said, folder):
    check(line, said, folder)


def test_one_bad_job_of_a_sweep_is_named(tmp_path):
    words = ["pyro-vae", "-m", *QUICK, "isolate=false", "seed=0,-1"]
    code, out, err = call(*words, cwd=tmp_path)
    assert code == 1
    assert "Traceback" not in out + err
    assert "Expected seed to be an integer of at least 0, got -1" in err
    assert "2 jobs in" in out
    assert "1 finished, 1 failed" in out


@pytest.mark.parametrize("program", ["pyro_vae", "pyro_vae.cli.compare"])
def test_a_process_says_the_same(program, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", program, "größe"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Expected" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "value",
    ["plain", "a b", "it's", 'say "no"', "both ' and \"", "a\\", "a\\'b", "C:\\dir\\", "[1], a=b",
     "null", "True", "12", "1e3", "größe", "sepal length (cm)", "a,b", "", "${x}", "#", "a:b", "~"],
)  # fmt: skip
def test_a_quoted_value_is_read_as_it_is(value):
    overrides = (("study", value), ("out", [value, "b"]))
    words = shlex.split(" ".join(config.format_override(*override) for override in overrides))
    cfg = config.compose(words)
    assert cfg.study == value
    assert list(cfg.out) == [value, "b"]


def test_a_hint_can_be_pasted(folder):
    line = "pyro-vae data=table data.path=words.csv vae/likelihood=normal"
    hint = call(*line.split(), cwd=folder).err.partition("leave it out (")[2].partition(")")[0]
    words = shlex.split(f"{line} {hint} data.path={folder}/words.csv out=x")[1:]
    assert list(config.compose(words).data.drop) == ["b d"]


# Within a program that uses Hydra


def test_compose_keeps_the_state_of_hydra(tmp_path):
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.utils import JobRuntime
    from hydra.version import getbase

    (tmp_path / "mine.yaml").write_text("x: 1\n")
    with hydra.initialize_config_dir(str(tmp_path), job_name="mine", version_base=None):
        own, base = GlobalHydra.instance().hydra, getbase()
        assert config.compose(["vae.latent_dim=3", "out=."]).vae.latent_dim == 3
        with pytest.raises(Exception, match="nothing"):
            config.compose(["nothing=3"])
        assert GlobalHydra.instance().hydra is own
        assert JobRuntime.instance().get("name") == "mine"
        assert getbase() is base
        assert hydra.compose("mine").x == 1
    config.compose(["out=."])
    assert not GlobalHydra.instance().is_initialized()


def test_compose_works_in_a_hydra_program(tmp_path):
    (tmp_path / "app.py").write_text(
        "import hydra\n"
        "from pyro_vae import config\n"
        "@hydra.main(version_base=None, config_path=None)\n"
        "def main(cfg):\n"
        "    made = config.compose(['vae/prior=vamp', 'out=.'])\n"
        "    print(made.vae.prior.components, hydra.core.hydra_config.HydraConfig.get().job.name)\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["50", "app"]
