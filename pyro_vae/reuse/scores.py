"""The log evidence of rows with outlier p-values, written to a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

import pyro_vae
from pyro_vae import evaluate
from pyro_vae.data import Batch, Data
from pyro_vae.evaluate.held_out import read_held_out
from pyro_vae.files.untrusted import read_json
from pyro_vae.guard import guard_process_state
from pyro_vae.progress import Progress, announce
from pyro_vae.reuse import embedding_table
from pyro_vae.reuse.evaluate_run import build_run_path
from pyro_vae.reuse.finished_run import check_other_file, open_run
from pyro_vae.reuse.row_origin import describe_rows
from pyro_vae.seeding import fork_and_seed_rng
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import check_seed, check_size

__all__ = ["score"]

_LEVEL = 0.001
"""The level of the test of different gaps."""


@guard_process_state
def score(
    run: Path | str,
    data: Data | Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    *,
    part: str = "all",
    num_particles: int | None = None,
    seed: int = 0,
    rows_at_once: int = 4096,
    device: torch.device | str = "cpu",
    allow: Sequence[str] = (),
) -> Path:
    """Writes the log evidence of each row, with its error and an outlier p-value.

    The columns are ``part``, ``row``, ``label`` if there are labels, ``log_evidence`` in nats,
    ``standard_error`` and ``effective_sample_size`` of its samples, ``observed``, the number of
    observed values, and ``p_value``, which :func:`pyro_vae.evaluate.compute_p_values` computes from
    the held-out rows of the run. A warning is printed if the rows have other numbers of observed
    values, for which the p-values are not valid. Those of the run's own rows are not valid either.
    The log evidence is in the units of the run: of standardized values if it standardized them, of
    the table with ``vae/likelihood=columns``. A row without any value has the log evidence 0.

    Arguments:
        run: The folder of a finished run.
        data: As in :func:`judge_run`.
        out: The file, with the suffix ``.csv`` or ``.parquet`` (needs the extra ``parquet``);
            ``None`` for ``scores/DATA-PART.csv`` in the folder of the run.
        part: As in :func:`judge_run`.
        num_particles: The number of samples for each row; ``None`` for as many as for the held-out
            rows, with which the rows are then comparable.
        seed: The seed of the samples.
        rows_at_once: The number of rows to score together, and to write as one row group.
        device: The device for the computation.
        allow: As in :func:`judge_run`.

    Returns:
        The path of the file.

    Raises:
        ValueError: If the run is missing or not finished, an argument is out of range, or the data
            do not fit the run. It is raised before any work.
    """
    seed, rows_at_once = check_seed(seed), check_size("rows_at_once", rows_at_once, least=1)
    if num_particles is not None:
        num_particles = check_size("num_particles", num_particles, least=1)
    if out is not None:
        embedding_table.check_table_path(out)
    selected, vae, cfg = open_run(run, data, part, device, allow)
    check_other_file(out, data, cfg)
    folder = Path(str(run)).expanduser()
    reference, counts = read_held_out(folder)
    observed = torch.zeros(len(selected.part))
    if num_particles is None:
        stored = read_json(folder / "metrics.json", largest=2**24)
        num_particles = check_size(
            "log_evidence_particles", stored.get("log_evidence_particles"), least=1
        )
    if out is None:
        out = build_run_path(run, "scores", selected.data.name, part, "csv")
    path = embedding_table.check_table_path(out)
    facts = {"run": str(run), "data": selected.data.name, "pyro_vae": pyro_vae.__version__}
    weight, rows = next(vae.parameters()), len(selected.part)
    with (
        fork_and_seed_rng(weight.device, seed),
        embedding_table.open_table(path, facts) as write,
        Progress("scores", rows, "rows") as progress,
    ):
        for start in range(0, rows, rows_at_once):
            index = slice(start, start + rows_at_once)
            columns = _score_rows(vae, selected.get_rows(index, weight), num_particles, reference)
            observed[index] = torch.from_numpy(columns["observed"]).float()
            write({**describe_rows(selected, index), **columns})
            progress.reach(min(rows, start + rows_at_once))
    _warn_of_other_gaps(observed, counts)
    return path


def _score_rows(vae: VAE, batch: Batch, num_particles: int, reference: Tensor) -> dict[str, Any]:
    """Returns the columns of some rows."""
    x, mask, covariates = batch
    result = evaluate.log_evidence(
        vae, x, num_particles, mask=mask, covariates=covariates, diagnostics=True
    )
    known = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    count = known.flatten(1).sum(1)
    log_evidence = torch.where(count > 0, result.log_evidence, 0.0)
    columns = {
        "log_evidence": log_evidence,
        "standard_error": torch.where(count > 0, result.standard_error, 0.0),
        "effective_sample_size": result.effective_sample_size,
        "observed": count,
        "p_value": evaluate.compute_p_values(log_evidence.cpu(), reference),
    }
    return {name: values.cpu().numpy() for name, values in columns.items()}


def _warn_of_other_gaps(observed: Tensor, counts: Tensor) -> None:
    """Warns if rows have other numbers of observed values than the reference."""
    if stats.ks_2samp(observed.numpy(), counts.numpy()).pvalue < _LEVEL:
        announce(
            f"The rows have {observed.double().mean():.1f} observed values on average, the "
            f"held-out rows of the run {counts.mean():.1f}: the p-values are not valid"
        )
