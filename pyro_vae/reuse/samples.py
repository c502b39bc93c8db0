"""Synthetic rows of a table, written to a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import pyro_vae
from pyro_vae.guard import guard_process_state
from pyro_vae.progress import Progress
from pyro_vae.reuse import embedding_table
from pyro_vae.reuse.evaluate_run import build_run_path
from pyro_vae.reuse.finished_run import open_vae
from pyro_vae.reuse.table_columns import check_table, decode_rows
from pyro_vae.seeding import fork_and_seed_rng
from pyro_vae.validation import check_seed, check_size

__all__ = ["sample"]


@guard_process_state
@torch.no_grad()
def sample(
    run: Path | str,
    n: int = 1000,
    out: Path | str | None = None,
    *,
    covariates: Mapping[str, Any] | None = None,
    seed: int = 0,
    rows_at_once: int = 4096,
    device: torch.device | str = "cpu",
    allow: Sequence[str] = (),
) -> Path:
    """Writes synthetic rows of a run on a table, in the columns, units and words of its file.

    Rows are drawn from p(z) and p(x given z). They have no missing values. Numbers are rounded to
    the decimals of the file, if these are few.

    Arguments:
        run: The folder of a finished run on a table.
        n: The number of rows.
        out: The file, with the suffix ``.csv`` or ``.parquet`` (needs the extra ``parquet``);
            ``None`` for ``samples/DATA-SEED.csv`` in the folder of the run.
        covariates: The value of each covariate for all rows, for a run with covariates, which are
            columns of the file too.
        seed: The seed of the draws.
        rows_at_once: The number of rows to draw together, and to write as one row group.
        device: The device for the computation.
        allow: As in :func:`judge_run`.

    Returns:
        The path of the file.

    Raises:
        ValueError: If the run is missing or not on a table, covariates do not fit, or an argument
            is out of range. It is raised before any work.
    """
    n, seed = check_size("n", n, least=1), check_seed(seed)
    rows_at_once = check_size("rows_at_once", rows_at_once, least=1)
    if out is not None:
        embedding_table.check_table_path(out)
    vae, like, cfg = open_vae(run, device, allow)
    check_table(run, like)
    given = _encode_covariates(like, covariates)
    if out is None:
        name = Path(str(cfg["data"].get("path") or "rows")).name.partition(".")[0]
        out = build_run_path(run, "samples", name, str(seed), "csv")
    path = embedding_table.check_table_path(out)
    facts = {"run": str(run), "seed": str(seed), "pyro_vae": pyro_vae.__version__}
    weight = next(vae.parameters())
    fixed = {} if covariates is None else {str(k): v for k, v in covariates.items()}
    with (
        fork_and_seed_rng(weight.device, seed),
        embedding_table.open_table(path, facts) as write,
        Progress("sampling", n, "rows") as progress,
    ):
        for start in range(0, n, rows_at_once):
            size = min(rows_at_once, n - start)
            c = None if given is None else given.to(weight).expand(size, -1)
            x = vae.sample(size) if c is None else vae.sample(1, covariates=c)[0]
            columns = {name: [value] * size for name, value in fixed.items()}
            write({**columns, **decode_rows(like, x)})
            progress.reach(start + size)
    return path


def _encode_covariates(like: Any, covariates: Any) -> Any:
    """Returns one encoded row of covariates, or ``None`` for a run without them."""
    own = like.covariates
    if own is None:
        if covariates:
            raise ValueError(f"Expected no covariates for a run without them, got {covariates}")
        return None
    if not isinstance(covariates, Mapping) or set(map(str, covariates)) != set(own.names):
        raise ValueError(
            f"Expected covariates to give a value for each of {own.names}, got {covariates!r:.100}"
        )
    return own.encode({str(name): [value] for name, value in covariates.items()})
