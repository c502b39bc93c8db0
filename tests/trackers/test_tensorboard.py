"""Event files of TensorBoard, read back by TensorBoard."""

import numpy as np
import pytest
from PIL import Image

from helpers.tracker_readers import read_tensorboard
from pyro_vae.trackers import TensorBoardTracker, TrackedRun

ROWS = [{"epoch": epoch, "valid_elbo": epoch - 9.5} for epoch in range(1, 8)]
METRICS = {"elbo": -0.75, "kl": [0.5, 0.25], "caveats": [], "data": "moons|x", "gap": None}


def start(folder, history):
    settings = {"seed": 1, "vae": {"prior": {"_target_": "Normal", "flag": True}}, "none": None}
    tracker = TensorBoardTracker()
    tracker.start(TrackedRun("abc", "0" * 32, "study", settings, folder, history))
    return tracker


def log(tracker, rows):
    for row in rows:
        tracker.log(row, row["epoch"])


@pytest.fixture
def figure(tmp_path):
    path = tmp_path / "curves.png"
    Image.fromarray(np.full((4, 6, 3), 200, dtype=np.uint8)).save(path)
    return path


def test_a_killed_run_is_continued_without_the_epochs_that_were_lost(tmp_path, figure):
    log(start(tmp_path, []), ROWS[:5])
    killed = read_tensorboard(tmp_path)
    assert killed.points["valid_elbo"] == [(r["epoch"], r["valid_elbo"]) for r in ROWS[:5]]
    assert killed.outcome == "STATUS_UNKNOWN"
    # The checkpoint has three epochs.
    tracker = start(tmp_path, ROWS[:3])
    log(tracker, ROWS[3:])
    tracker.finish(METRICS, [figure])
    tracked = read_tensorboard(tmp_path)
    assert tracked.points == {
        "epoch": [(r["epoch"], r["epoch"]) for r in ROWS],
        "valid_elbo": [(r["epoch"], r["valid_elbo"]) for r in ROWS],
        "elbo": [(7, -0.75)],
        "kl.0": [(7, 0.5)],
        "kl.1": [(7, 0.25)],
    }
    assert tracked.texts == {"data": "moons\\|x"}
    assert tracked.settings == {"seed": 1, "vae.prior._target_": "Normal", "vae.prior.flag": 1}
    assert (tracked.outcome, tracked.figures) == ("STATUS_SUCCESS", {"curves"})


def test_a_pruned_run_is_marked(tmp_path):
    tracker = start(tmp_path, [])
    log(tracker, ROWS[:2])
    tracker.abort("pruned", "after epoch 3")
    tracked = read_tensorboard(tmp_path)
    assert tracked.outcome == "STATUS_FAILURE"
    assert len(tracked.points["valid_elbo"]) == 2
