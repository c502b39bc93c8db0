"""Folders that look like runs, for the tests of the comparison: written, not trained."""

import copy
import itertools
import json
import os
import random
import struct
import zlib

import yaml

CONFIG = {
    "seed": 0,
    "threads": 1,
    "device": "cpu",
    "out": "somewhere",
    "resume": False,
    "study": "sweep",
    "isolate": True,
    "train": {
        "_target_": "pyro_vae.fit",
        "_partial_": True,
        "epochs": 3,
        "lr_schedule": None,
        "schedules": None,
        "checkpoint_seconds": 10.0,
    },
    "evaluate": {"num_particles": 50},
    "vae": {
        "_target_": "pyro_vae.VAE",
        "latent_dim": 2,
        "prior": {"_target_": "pyro_vae.priors.Normal", "_partial_": True},
        "likelihood": {"_target_": "pyro_vae.likelihoods.Bernoulli", "grey_scale": False},
        "encoder": {"_target_": "pyro_vae.networks.MLP", "hidden": [200, 200]},
        "decoder": {"_target_": "pyro_vae.networks.MLP", "hidden": [200, 200]},
    },
    "data": {"_target_": "pyro_vae.data.digits", "binarize": "threshold", "root": None, "seed": 0},
    "objective": {"_target_": "pyro_vae.objectives.ELBO", "beta": 1.0},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001},
}
METRICS = {
    "log_evidence": -18.0,
    "elbo": -18.5,
    "rate": 8.0,
    "distortion": 10.5,
    "active_units": 2,
    "latent_dim": 2,
    "effective_sample_size_min": 30.0,
    "log_evidence_rows": 359,
    "log_evidence_particles": 50,
    "mixture_log_evidence": -21.0,
    "kl_per_dimension": [4.0, 4.0],
    "data": "digits",
    "binarize": "threshold",
    "grey_scale": False,
    "rows": {"train": 1258, "valid": 180, "test": 359},
    "parameters": 1000,
    "epochs": 3,
    "seconds": 1.0,
    "seed": 0,
}
CLOCK = itertools.count(1_700_000_000)


def png(width=4, height=2):
    """Returns a grey PNG file."""

    def chunk(kind, body):
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    rows = b"".join(b"\x00" + bytes([120] * width) for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    )


def configuration(settings):
    """Returns a configuration with settings changed, by their dotted paths."""
    config = copy.deepcopy(CONFIG)
    for path, value in settings.items():
        *rooms, last = path.split(".")
        place = config
        for room in rooms:
            if place.get(room) is None:
                place[room] = {}
            place = place[room]
        place[last] = value
    return config


def write(folder, settings=(), metrics=(), *, state="finished", pictures=False, reason="no"):
    """Writes the folder of a run, later than those before it.

    Arguments:
        folder: Where to.
        settings: What differs from the default, by dotted paths.
        metrics: The figures that differ from the default.
        state: ``"finished"``, ``"failed"`` or ``"interrupted"``.
        pictures: Whether it has pictures.
        reason: Why it failed.
    """
    settings = dict(settings)
    folder.mkdir(parents=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(configuration(settings), sort_keys=False))
    os.utime(path, (begun := next(CLOCK), begun))
    if state == "failed":
        failure = {
            "reason": reason,
            "command": f"pyro-vae seed={settings.get('seed', 0)} out={folder}",
            "time": "2026-01-01T00:00:00+00:00",
            "trace": 'Traceback (most recent call last):\n  File "<x>"',
        }
        (folder / "failure.json").write_text(json.dumps(failure))
    if state != "finished":
        return folder
    figures = METRICS | {"seed": settings.get("seed", 0)} | dict(metrics)
    (folder / "metrics.json").write_text(json.dumps(figures))
    (folder / "report.html").write_text("<!doctype html><title>A run</title>")
    if pictures:
        (folder / "figures").mkdir()
        for name in ("samples.png", "reconstructions.png"):
            (folder / "figures" / name).write_bytes(png())
    return folder


def big(root, count=500):
    """Writes a sweep of many runs of all states but running, on two data sets."""
    draw = random.Random(0)
    priors = ("Normal", "NormalLearned", "Mixture", "Vamp")
    product = itertools.product(priors, (2, 4, 8, 16, 32), (0.5, 1.0, 2.0, 4.0), range(7))
    for index, (prior, size, beta, seed) in enumerate(itertools.islice(product, count)):
        settings = {
            "vae.prior._target_": f"pyro_vae.priors.{prior}",
            "vae.latent_dim": size,
            "objective.beta": beta,
            "seed": seed,
        }
        if prior in ("Mixture", "Vamp"):
            settings["vae.prior.components"] = 50
        rate = size**0.5 * 5 / (1 + beta) + priors.index(prior) / 2 + draw.gauss(0, 0.3)
        elbo = -21 + 0.5 * priors.index(prior) + 0.9 * size**0.4 - (beta - 1) ** 2 / 4
        elbo += draw.gauss(0, 0.25)
        metrics = {
            "elbo": elbo,
            "log_evidence": elbo + 0.3 + abs(draw.gauss(0, 0.1)),
            "rate": rate,
            "distortion": -elbo - rate,
            "active_units": min(size, round(rate)),
            "latent_dim": size,
            "effective_sample_size_min": draw.uniform(5, 400),
            "seconds": draw.uniform(10, 60),
        }
        if index % 10 == 9:
            settings["vae.likelihood._target_"] = "pyro_vae.likelihoods.ContinuousBernoulli"
            settings["data.binarize"] = metrics["binarize"] = "none"
            metrics["log_evidence"] += 40
            metrics["elbo"] += 40
            metrics["distortion"] -= 40
        state = "failed" if index % 61 == 7 else "interrupted" if index % 83 == 11 else "finished"
        reason = "ValueError: Expected x to be finite, got nan in 3 of 100 rows"
        write(root / f"{index:012x}", settings, metrics, state=state, pictures=True, reason=reason)
    return root
