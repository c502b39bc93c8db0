"""A table with imputed values, written to a file."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyro_vae
from pyro_vae import evaluate
from pyro_vae.collapse import LEAST_SAMPLE_SIZE
from pyro_vae.data import Batch, Data, Preparation
from pyro_vae.guard import guard_process_state
from pyro_vae.progress import Progress, announce
from pyro_vae.reuse import embedding_table
from pyro_vae.reuse.evaluate_run import build_run_path
from pyro_vae.reuse.finished_run import SelectedRows, check_other_file, open_run
from pyro_vae.reuse.row_origin import describe_rows
from pyro_vae.reuse.table_columns import check_table, decode_rows, read_source
from pyro_vae.seeding import fork_and_seed_rng
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import check_seed, check_size

__all__ = ["impute"]


@guard_process_state
def impute(
    run: Path | str,
    data: Data | Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    *,
    part: str = "all",
    draws: int = 0,
    num_particles: int = 1000,
    seed: int = 0,
    rows_at_once: int = 4096,
    device: torch.device | str = "cpu",
    allow: Sequence[str] = (),
) -> Path:
    """Writes a table whose missing values are imputed by a run, as :func:`evaluate.impute` does.

    All columns of the source are written, in its units and words, and observed values are
    unchanged. The output is a csv of commas, decimal points and UTF-8, without currencies and other
    units. The last column is the effective sample size of each row. With ``draws``, a multiple
    imputation, the file has that many complete tables one after another, and a first column
    ``draw`` from 1. Data without a file (``Data``) are written with part, row and label instead of
    further columns.

    Arguments:
        run: The folder of a finished run on a table.
        data: As in :func:`judge_run`. Missing values of a configured table are allowed.
        out: The file, with the suffix ``.csv`` or ``.parquet`` (needs the extra ``parquet``);
            ``None`` for ``imputed/DATA-PART.csv`` in the folder of the run.
        part: As in :func:`judge_run`.
        draws: The number of complete tables; 0 for one table of means and most probable words.
        num_particles: The number of samples for each row.
        seed: The seed of the samples.
        rows_at_once: The number of rows to impute together, and to write as one row group.
        device: The device for the computation.
        allow: As in :func:`judge_run`.

    Returns:
        The path of the file.

    Raises:
        ValueError: If the run is missing or not on a table, an argument is out of range, or the
            data do not fit the run. It is raised before any work.
    """
    draws, seed = check_size("draws", draws, least=0), check_seed(seed)
    num_particles = check_size("num_particles", num_particles, least=1)
    rows_at_once = check_size("rows_at_once", rows_at_once, least=1)
    if out is not None:
        embedding_table.check_table_path(out)
    if isinstance(data, Mapping) and data.get("_target_") == "pyro_vae.data.table":
        data = {**data, "missing": "nan"}
    selected, vae, cfg = open_run(run, data, part, device, allow)
    check_other_file(out, data, cfg)
    like = selected.data.preparation
    check_table(run, like)
    source = None if isinstance(data, Data) else read_source(cfg["data"] if data is None else data)
    if out is None:
        out = build_run_path(run, "imputed", selected.data.name, part, "csv")
    path = embedding_table.check_table_path(out)
    facts = {"run": str(run), "data": selected.data.name, "pyro_vae": pyro_vae.__version__}
    weight, rows = next(vae.parameters()), len(selected.part)
    write_rows, smallest = _choose_writer(selected, like, source), float("inf")
    with (
        fork_and_seed_rng(weight.device, seed),
        embedding_table.open_table(path, facts) as write,
        Progress("imputation", rows * max(1, draws), "rows") as progress,
    ):
        # Complete tables follow one another, so each has its own pass over the rows.
        for draw in range(max(1, draws)):
            for start in range(0, rows, rows_at_once):
                index = slice(start, start + rows_at_once)
                batch = selected.get_rows(index, weight)
                values, mask, size = _impute_rows(vae, batch, num_particles, draws > 0)
                first = {"draw": [draw + 1] * len(values)} if draws else {}
                columns = write_rows(index, values, mask)
                write({**first, **columns, "effective_sample_size": size})
                smallest = min(smallest, size.min())
                progress.advance(len(values))
    if smallest < LEAST_SAMPLE_SIZE:
        announce(
            f"The smallest effective sample size of a row is only {smallest:.1f}: increase "
            f"num_particles"
        )
    return path


def _impute_rows(
    vae: VAE, batch: Batch, num_particles: int, is_drawn: bool
) -> tuple[Tensor, Tensor, Any]:
    """Returns imputed rows, their mask of observed values, and effective sample sizes."""
    x, mask, covariates = batch
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    result = evaluate.impute(
        vae, x, mask, num_particles, int(is_drawn), covariates=covariates, progress=False
    )
    values = result.draws[0] if is_drawn else result.x
    return values, mask, result.effective_sample_size.cpu().numpy()


def _choose_writer(
    selected: SelectedRows, like: Preparation, source: Any
) -> Callable[[slice, Tensor, Tensor], dict[str, Any]]:
    """Returns a function from rows, their values and their mask to columns."""

    def write_numbers(index: slice, values: Tensor, mask: Tensor) -> dict[str, Any]:
        return {**describe_rows(selected, index), **decode_rows(like, values)}

    def write_source(index: slice, values: Tensor, mask: Tensor) -> dict[str, Any]:
        numbers = describe_rows(selected, index)["row"]
        table = source.iloc[numbers].reset_index(drop=True)
        observed = mask.cpu().numpy()
        for i, (name, imputed) in enumerate(decode_rows(like, values).items()):
            table[name] = _fill(table[name], imputed, observed[:, i])
        return {str(name): table[name] for name in table.columns}

    return write_numbers if source is None else write_source


def _fill(column: Any, imputed: Any, observed: Any) -> Any:
    """Returns a column with imputed values where it has none; others keep their type."""
    if observed.all() and str(imputed.dtype) != "Int64":
        return column
    filled = column.astype(object).where(observed, imputed.astype(object)).infer_objects()
    # Gaps make floating-point numbers of integers.
    return filled.astype(imputed.dtype) if str(imputed.dtype) == "Int64" else filled
