"""Files that earlier versions wrote still load, and their trainings still resume."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from pyro_vae import config, load, reuse, save
from pyro_vae.cli import compare
from pyro_vae.sweeps import run_id
from pyro_vae.training import resume_file

DATA = Path(__file__).parent
FILES = [
    (folder.name, file.stem)
    for folder in sorted(DATA.glob("format*"))
    for file in sorted(folder.glob("*.safetensors"))
    if file.stem != "ready_made"
]
FORMATS = ["format1", "format2"]


@pytest.fixture
def old(request, tmp_path, monkeypatch):
    folder = shutil.copytree(DATA / request.param, tmp_path / "old")
    monkeypatch.chdir(folder)
    return folder


def test_files_of_both_formats_are_there():
    assert {folder for folder, _ in FILES} == set(FORMATS)
    assert len(FILES) == 7


@pytest.mark.parametrize(("folder", "name"), FILES)
def test_an_old_vae_loads_embeds_as_before_and_is_saved_in_the_new_format(folder, name, tmp_path):
    vae = load(DATA / folder / f"{name}.safetensors")
    like = next(vae.parameters())
    if vae.event_shape == (1, 8, 8):
        x = (torch.arange(192.0).reshape(3, 1, 8, 8) % 3).to(like)
    else:
        x = (torch.arange(12.0).reshape(3, 2, 2) / 12).to(like)
    q = vae.encode(x, torch.ones(3, 2).to(like) if vae.covariate_dim else None)
    means = json.loads((DATA / folder / "means.json").read_text())[name]
    torch.testing.assert_close(q.mean, torch.tensor(means).to(like), rtol=1e-5, atol=1e-6)
    save(vae, tmp_path / "new.safetensors")
    assert b"pyro_vae 2" in (tmp_path / "new.safetensors").read_bytes()
    again = load(tmp_path / "new.safetensors").state_dict()
    assert all(torch.equal(again[key], value) for key, value in vae.state_dict().items())


def test_a_file_of_the_first_format_without_a_recipe_says_so():
    with pytest.raises(
        ValueError, match=r"to describe each part, got no description of \['prior'\]"
    ):
        load(DATA / "format1" / "ready_made.safetensors")


@pytest.mark.parametrize("old", FORMATS, indirect=True)
def test_an_old_run_is_evaluated_embedded_and_resumed(old):
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert reuse.judge_run("run")["elbo"] == pytest.approx(metrics["elbo"], rel=1e-4)
    assert reuse.preparation("run").columns == ("height", "weight")
    reuse.embed("run", out="codes.csv")
    cfg = OmegaConf.load("run/config.yaml")
    rows = config.build(cfg.data)

    def train(epochs, **options):
        torch.manual_seed(cfg.seed)
        vae = config.build(cfg.vae, event_shape=rows.event_shape)
        result = config.build(cfg.train)(
            vae, rows.train, valid=rows.valid, objective=config.build(cfg.objective),
            optimizer=config.build(cfg.optimizer), seed=cfg.seed, epochs=epochs, **options,
        )  # fmt: skip
        return result.history

    resumed, whole = train(4, out="run", resume=True), train(4)
    for one, other in zip(resumed, whole, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    assert resume_file.load_state(Path("run/resume.pt"))["epoch"] == 4


@pytest.mark.parametrize("old", ["format2"], indirect=True)
def test_the_jobs_of_an_old_sweep_keep_their_names_and_are_compared(old, capsys):
    jobs = sorted(Path("sweep").iterdir())
    assert len(jobs) == 2
    for job in jobs:
        assert run_id(OmegaConf.load(job / "config.yaml")) == job.name
    assert compare.main(["sweep"]) in (None, 0)
    assert "2 runs" in capsys.readouterr().out
