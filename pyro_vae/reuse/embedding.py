"""Embeddings of data, written to a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyro_vae
from pyro_vae.data import Data
from pyro_vae.guard import guard_process_state
from pyro_vae.networks import eval_mode
from pyro_vae.progress import Progress
from pyro_vae.reuse import embedding_table
from pyro_vae.reuse.evaluate_run import build_run_path
from pyro_vae.reuse.finished_run import (
    SelectedRows,
    check_other_file,
    open_run,
    select_rows,
)
from pyro_vae.reuse.row_origin import describe_rows
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import check_size

__all__ = ["embed", "encode_rows"]


@guard_process_state
def embed(
    run: Path | str | VAE,
    data: Data | Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    *,
    part: str = "all",
    rows_at_once: int = 4096,
    device: torch.device | str = "cpu",
    allow: Sequence[str] = (),
) -> Path:
    """Writes the embeddings of data, one row per datum, to a parquet or csv file.

    The columns are ``part``, ``row``, ``label`` if there are labels (as names if they have names),
    ``z_mean_0``, ``z_mean_1``, ... and ``z_scale_0``, ...: mean and standard deviation of
    q(z given x) in each dimension. ``row`` is the number of the row in its source file, from 0.
    Rows without such numbers are counted within their part. All parts are written in the order of
    the source. The parts of a ``dynamic`` set are drawn once by its seed, like those of a ``fixed``
    set. Besides the data, memory is needed for ``rows_at_once`` rows.

    Arguments:
        run: The folder of a finished run, or a VAE.
        data: As in :func:`judge_run`; a data set for a VAE.
        out: The file, with the suffix ``.parquet`` (needs the extra ``parquet``) or ``.csv``;
            ``None`` for ``codes/DATA-PART.parquet`` in the folder of the run.
        part: As in :func:`judge_run`.
        rows_at_once: The number of rows to encode together, and to write as one row group.
        device: The device for a run; a VAE stays on its device.
        allow: As in :func:`judge_run`.

    Returns:
        The path of the file.

    Raises:
        ValueError: As in :func:`judge_run`, and if the file cannot be written. It is raised
            before any work.

    Example:
        >>> import pandas, tempfile
        >>> from pyro_vae import VAE, data
        >>> digits = data.digits()
        >>> vae = VAE(digits.event_shape, latent_dim=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = pandas.read_csv(embed(vae, digits, f"{folder}/codes.csv"))
        >>> list(table.columns), len(table)
        (['part', 'row', 'label', 'z_mean_0', 'z_scale_0'], 1797)
    """
    rows_at_once = check_size("rows_at_once", rows_at_once, least=1)
    if out is not None:
        embedding_table.check_table_path(out)
    if isinstance(run, VAE):
        selected, vae, name = select_rows(run, data, part), run, ""
    else:
        selected, vae, cfg = open_run(run, data, part, device, allow)
        check_other_file(out, data, cfg)
        name = str(run)
    if out is None:
        if not name:
            raise ValueError("Expected out to name a .parquet or .csv file for a VAE, got None")
        out = build_run_path(name, "codes", selected.data.name, part, "parquet")
    facts = {
        "run": name,
        "data": selected.data.name,
        "binarize": selected.data.binarize,
        "part": part,
        "pyro_vae": pyro_vae.__version__,
    }
    path = embedding_table.check_table_path(out)
    rows = len(selected.part)
    with (
        embedding_table.open_table(path, facts) as write,
        Progress("embedding", rows, "rows") as progress,
    ):
        for start in range(0, rows, rows_at_once):
            write(encode_rows(vae, selected, slice(start, start + rows_at_once)))
            progress.reach(min(rows, start + rows_at_once))
    return path


@torch.no_grad()
def encode_rows(vae: VAE, selected: SelectedRows, index: slice) -> dict[str, Any]:
    """Returns rows of the table of embeddings, as a mapping from column names to values."""
    x, mask, covariates = selected.get_rows(index, next(vae.parameters()))
    with eval_mode(vae):
        q = vae.encode(x, covariates, mask)
    columns = describe_rows(selected, index)
    for kind, values in (("mean", q.mean), ("scale", _get_standard_deviation(q))):
        numbers = values.cpu().numpy()
        columns |= {f"z_{kind}_{d}": numbers[:, d] for d in range(vae.latent_dim)}
    return columns


def _get_standard_deviation(q: Any) -> Tensor:
    # The scale of an independent normal is exact, unlike the square root of its variance.
    return q.base_dist.stddev if isinstance(q, torch.distributions.Independent) else q.stddev
