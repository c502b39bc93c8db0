"""Evaluation of finished runs."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pyro_vae.data import Data
from pyro_vae.evaluate.metrics import compute_metrics, describe_protocol
from pyro_vae.files.atomic import strict_json, write_whole
from pyro_vae.guard import guard_process_state
from pyro_vae.report.content import format_active_units, format_condition
from pyro_vae.reuse.finished_run import open_run, preparation, read_stored_integer
from pyro_vae.seeding import fork_and_seed_rng
from pyro_vae.validation import check_path, check_size

__all__ = ["judge_run", "preparation", "summary", "write_evaluation"]


@guard_process_state
def judge_run(
    run: Path | str,
    data: Data | Mapping[str, Any] | None = None,
    *,
    part: str = "test",
    num_particles: int | None = None,
    elbo_particles: int | None = None,
    evidence_rows: int | None = None,
    seed: int | None = None,
    device: torch.device | str = "cpu",
    allow: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluates a finished run on other data, or again on its own.

    Tables are standardized by the statistics of the run's training data. The caller's random state
    does not change. On the run's own data the metrics equal those of its ``metrics.json`` bit for
    bit, with the same number of threads.

    Arguments:
        run: The folder of a finished run.
        data: A data set; or the configuration of one, as in ``{"_target_": "pyro_vae.data.table",
            "path": "new.csv"}``, which gets the preparation of the run's own data; or ``None`` for
            the run's own data.
        part: ``"train"``, ``"valid"``, ``"test"`` or ``"all"``. For ``"all"`` a configured table
            or array is not split, and can have any number of rows.
        num_particles: The number of samples per row for the log evidence. ``None`` takes the
            setting of the run, here and for the next three arguments, and its tolerance.
        elbo_particles: The number of samples per row for the ELBO.
        evidence_rows: The number of first rows for the log evidence, at most.
        seed: The seed of all samples.
        device: The device for the computation.
        allow: Dotted names of classes and functions of other packages that the run may use, as
            in :func:`pyro_vae.load`.

    Returns:
        The metrics, in nats per datum, with the keys of ``metrics.json`` for the same metrics, and
        with ``run`` and ``part``.

    Raises:
        ValueError: If the run is missing or not finished, an argument is out of range, or the data
            do not fit the run. It is raised before any work.

    Example:
        >>> import tempfile
        >>> from pyro_vae import config
        >>> from pyro_vae.run import run
        >>> moons = ["data=moons", "data.n=50", "vae/likelihood=normal", "vae.latent_dim=1"]
        >>> quick = ["train.epochs=1", "evaluate.baseline_components=0"]
        >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +ELLIPSIS
        ...     evidence = run(config.compose([*moons, *quick, f"out={folder}"]))
        ...     judge_run(folder)["log_evidence"] == evidence
        log evidence ...
        True
    """
    sizes = {
        "num_particles": num_particles,
        "elbo_particles": elbo_particles,
        "evidence_rows": evidence_rows,
    }
    settings: dict[str, Any] = {
        n: check_size(n, v, least=1) for n, v in sizes.items() if v is not None
    }
    seed = None if seed is None else check_size("seed", seed, least=0)
    selected, vae, cfg = open_run(run, data, part, device, allow)
    for name in sizes:
        if name not in settings:
            settings[name] = check_size(name, read_stored_integer(cfg, f"evaluate.{name}"), least=1)
    stored = cfg.get("evaluate")
    stored = stored if isinstance(stored, Mapping) else {}
    names = ["compile", "precision"] + ["tolerance"] * (num_particles is None)
    unchanged = {name: stored[name] for name in names if name in stored}
    seed = read_stored_integer(cfg, "seed") if seed is None else seed
    weight = next(vae.parameters())
    x, mask, covariates = selected.get_rows(slice(None), weight)
    with fork_and_seed_rng(weight.device, seed):
        metrics = compute_metrics(vae, x, mask, covariates, **settings, **unchanged)
    return {
        "run": str(run),
        "part": part,
        **metrics,
        **describe_protocol(selected.data, vae),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "torch": torch.__version__,
    }


def write_evaluation(figures: Mapping[str, Any], out: Path | str | None = None) -> Path:
    """Writes the result of :func:`judge_run` as strict JSON, atomically.

    Arguments:
        figures: The result of :func:`judge_run`.
        out: The file; ``None`` for ``evaluations/DATA-PART.json`` in the folder of the run.

    Returns:
        The path of the file.
    """
    missing = [key for key in ("run", "data", "part") if key not in figures]
    if missing:
        raise ValueError(
            f"Expected figures to be a result of judge_run, got a mapping without "
            f"{', '.join(missing)}"
        )
    if out is None:
        out = build_run_path(
            figures["run"], "evaluations", figures["data"], figures["part"], "json"
        )
    path = check_path("out", out).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, strict_json(dict(figures)).encode())
    return path


def build_run_path(run: Path | str, folder: str, name: str, part: str, suffix: str) -> Path:
    """Returns the path in the folder of a run for a file about a part of a data set.

    Raises:
        ValueError: If a link leads out of the folder.
    """
    stem = re.sub(r"[^\w.-]+", "_", name).strip("_")
    root = Path(run).expanduser()
    if not Path(os.path.realpath(root / folder)).is_relative_to(os.path.realpath(root)):
        raise ValueError(
            f"Expected '{root / folder}' to lie in the folder of the run, got a link to another "
            f"folder: pass out to choose another file"
        )
    return root / folder / f"{stem}-{part}.{suffix}"


def summary(figures: Mapping[str, Any], path: Path) -> str:
    """Returns the summary of an evaluation that a terminal shows."""
    count, particles = figures["log_evidence_rows"], figures["log_evidence_particles"]
    lines = [
        f"run           {figures['run']}",
        f"log evidence  {figures['log_evidence']:9.3f} +- {figures['log_evidence_se']:.3f} nats "
        f"per datum{format_condition(figures)}, {count} rows of {figures['data']} "
        f"({figures['part']})",
        f"              +- {figures['log_evidence_monte_carlo_se']:.3f} Monte Carlo error, "
        f"smallest effective sample size {figures['effective_sample_size_min']:.1f} of {particles}",
        f"ELBO          {figures['elbo']:9.3f} (rate {figures['rate']:.3f}, distortion "
        f"{figures['distortion']:.3f})",
        f"active units  {format_active_units(figures)}",
        f"evaluation    {path}",
    ]
    return "\n".join(lines)
