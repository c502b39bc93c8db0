"""Finished runs put to use: judged on other data, and their codes written to a file."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pyro_vae.data import Data
from pyro_vae.evaluate.metrics import scores
from pyro_vae.files.atomic import strict_json, write_whole
from pyro_vae.guard import guard_process_state
from pyro_vae.report.content import active_units
from pyro_vae.reuse.finished_run import opened, preparation, stored_number, unsplit
from pyro_vae.seeding import own_randomness
from pyro_vae.vae.vae import VAE
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
    """Judges a finished run on other data, or once more on its own.

    Tables are standardized as the run's training data were, not by themselves. The caller's random
    state stays as it is. On the run's own data the figures are those of its ``metrics.json``, to
    the bit for the same number of threads.

    Arguments:
        run: The folder of a finished run.
        data: A data set; or the configuration of one, as in ``{"_target_": "pyro_vae.data.table",
            "path": "new.csv"}``, which is prepared as the run's own were; or ``None``, the run's
            own.
        part: ``"train"``, ``"valid"``, ``"test"`` or ``"all"``. For ``"all"`` a table or an array
            that is configured here is not split, and may have any number of rows.
        num_particles: Samples for each row of the log evidence; ``None``, as those that follow:
            as the run was judged.
        elbo_particles: Samples for each row of the ELBO.
        evidence_rows: At most so many rows, the first, for the log evidence.
        seed: The seed of all draws.
        device: Where to compute.
        allow: Dotted names of classes and functions of other packages that the run may use, as
            in :func:`pyro_vae.load`.

    Returns:
        The figures, in nats per datum; the keys are those of ``metrics.json`` where they mean the
        same, with ``run`` and ``part``.

    Raises:
        ValueError: If there is no such run, it is not finished, an argument is out of range, or
            the data do not fit the run; before any work is done.

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
    given = {
        "num_particles": num_particles,
        "elbo_particles": elbo_particles,
        "evidence_rows": evidence_rows,
    }
    asked = {n: check_size(n, v, least=1) for n, v in given.items() if v is not None}
    seed = None if seed is None else check_size("seed", seed, least=0)
    chosen, vae, cfg = opened(run, data, part, device, allow)
    for name in given:
        if name not in asked:
            asked[name] = check_size(name, stored_number(cfg, f"evaluate.{name}"), least=1)
    seed = stored_number(cfg, "seed") if seed is None else seed
    weight = next(vae.parameters())
    x, mask = chosen.rows(slice(None), weight)
    with own_randomness(weight.device, seed):
        figures = scores(vae, x, mask, **asked)
    return {
        "run": str(run),
        "part": part,
        **figures,
        **_circumstances(chosen.data, vae),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "torch": torch.__version__,
    }


def _circumstances(found: Data, vae: VAE) -> dict[str, Any]:
    """Returns what figures were made of."""
    grey = getattr(vae.likelihood, "grey_scale", False)
    sizes = {name: len(rows) for name, rows in found.x._asdict().items()}
    return {
        "data": found.name,
        "binarize": found.binarize,
        "grey_scale": found.binarize == "none" and grey,
        "rows": {"all": sizes["train"]} if unsplit(found) else sizes,
        "latent_dim": vae.latent_dim,
        "parameters": sum(p.numel() for p in vae.parameters()),
    }


def write_evaluation(figures: Mapping[str, Any], out: Path | str | None = None) -> Path:
    """Writes what :func:`judge_run` returned, as strict JSON, whole or not at all.

    Arguments:
        figures: The figures.
        out: The file; ``None``: ``evaluations/DATA-PART.json`` in the folder of the run.

    Returns:
        The file.
    """
    missing = [key for key in ("run", "data", "part") if key not in figures]
    if missing:
        raise ValueError(f"Expected figures as judge_run returns them, got none of {missing}")
    if out is None:
        out = beside(figures["run"], "evaluations", figures["data"], figures["part"], "json")
    path = check_path("out", out).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, strict_json(dict(figures)).encode())
    return path


def beside(run: Path | str, folder: str, name: str, part: str, suffix: str) -> Path:
    """Returns the path of a file about some data in the folder of a run.

    Raises:
        ValueError: If a link leads out of the folder.
    """
    plain = re.sub(r"[^\w.-]+", "_", name).strip("_")
    home = Path(run).expanduser()
    if not Path(os.path.realpath(home / folder)).is_relative_to(os.path.realpath(home)):
        raise ValueError(
            f"Expected '{home / folder}' to lie in the folder of the run, got a link to another "
            f"folder: name the file by out"
        )
    return home / folder / f"{plain}-{part}.{suffix}"


def summary(figures: Mapping[str, Any], path: Path) -> str:
    """Returns the figures that a terminal shows."""
    count, particles = figures["log_evidence_rows"], figures["log_evidence_particles"]
    lines = [
        f"run           {figures['run']}",
        f"log evidence  {figures['log_evidence']:9.3f} +- {figures['log_evidence_se']:.3f} nats "
        f"per datum, {count} rows of {figures['data']} ({figures['part']})",
        f"              +- {figures['log_evidence_monte_carlo_se']:.3f} from the draws, worth "
        f"{figures['effective_sample_size_min']:.1f} of {particles} or more a row",
        f"ELBO          {figures['elbo']:9.3f} (rate {figures['rate']:.3f}, distortion "
        f"{figures['distortion']:.3f})",
        f"active units  {active_units(figures)}",
        f"evaluation    {path}",
    ]
    return "\n".join(lines)
