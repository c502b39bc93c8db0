"""Embeddings of data, written to a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyro_vae
from pyro_vae.data import Data, Split
from pyro_vae.guard import guard_process_state
from pyro_vae.masking import fill
from pyro_vae.networks import eval_mode
from pyro_vae.progress import Progress
from pyro_vae.reuse import embedding_table
from pyro_vae.reuse.evaluate_run import beside
from pyro_vae.reuse.finished_run import Chosen, matched, opened, unsplit
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import check_size

__all__ = ["embed", "written"]


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
    """Writes the codes of data, a row for each datum, to a parquet or csv file.

    The columns are ``part``, ``row``, ``label`` if there are labels (by name where they have
    names), ``z_mean_0``, ``z_mean_1``, ... and ``z_scale_0``, ...: mean and standard deviation of
    q(z given x) in each dimension. ``row`` is the number of the row in the source from 0, in its
    own file where training and test rows come from two; rows without such numbers are counted in
    their part. All parts are written in the order of the source. The parts of a ``dynamic`` set are
    drawn once by its seed, as ``fixed`` does. Beside the data, memory is needed for
    ``rows_at_once`` rows.

    Arguments:
        run: The folder of a finished run, or a VAE.
        data: As in :func:`judge_run`; for a VAE a data set.
        out: The file, whose name ends in ``.parquet`` (needs the extra ``parquet``) or ``.csv``;
            ``None``: ``codes/DATA-PART.parquet`` in the folder of the run.
        part: As in :func:`judge_run`.
        rows_at_once: The number of rows that are encoded, and written as one group.
        device: Where to compute; a VAE stays where it is.
        allow: As in :func:`judge_run`.

    Returns:
        The file.

    Raises:
        ValueError: As :func:`judge_run`, and if the file cannot be written; before any work.

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
        embedding_table.check_path(out)
    if isinstance(run, VAE):
        chosen, vae, name = matched(run, data, part), run, ""
    else:
        chosen, vae, _ = opened(run, data, part, device, allow)
        name = str(run)
    if out is None:
        if not name:
            raise ValueError("Expected out to name a .parquet or .csv file for a VAE, got None")
        out = beside(name, "codes", chosen.data.name, part, "parquet")
    facts = {
        "run": name,
        "data": chosen.data.name,
        "binarize": chosen.data.binarize,
        "part": part,
        "pyro_vae": pyro_vae.__version__,
    }
    path = embedding_table.check_path(out)
    rows = len(chosen.part)
    with (
        embedding_table.writer(path, facts) as write,
        Progress("embedding", rows, "rows") as progress,
    ):
        for start in range(0, rows, rows_at_once):
            write(written(vae, chosen, slice(start, start + rows_at_once)))
            progress.reach(min(rows, start + rows_at_once))
    return path


@torch.no_grad()
def written(vae: VAE, chosen: Chosen, some: slice) -> dict[str, Any]:
    """Returns some rows of the table of codes, by the names of their columns."""
    x, mask = chosen.rows(some, next(vae.parameters()))
    with eval_mode(vae):
        q = vae.encode(fill(x, mask))
    columns = {**_origin(chosen, some), **_label(chosen, some)}
    for kind, values in (("mean", q.mean), ("scale", _spread(q))):
        numbers = values.cpu().numpy()
        columns |= {f"z_{kind}_{d}": numbers[:, d] for d in range(vae.latent_dim)}
    return columns


def _spread(q: Any) -> Tensor:
    """Returns the standard deviation of each dimension."""
    # Of an independent normal it is the scale itself, not the root of its square.
    return q.base_dist.stddev if isinstance(q, torch.distributions.Independent) else q.stddev


def _origin(chosen: Chosen, some: slice) -> dict[str, Any]:
    """Returns the columns that say where rows come from."""
    numbers, split = chosen.data.row_numbers, not unsplit(chosen.data)
    names = Split._fields if split else ("all",) * 3
    row = chosen.place[some] if numbers is None else chosen.take(numbers, some)
    return {"part": [names[part] for part in chosen.part[some].tolist()], "row": row.numpy()}


def _label(chosen: Chosen, some: slice) -> dict[str, Any]:
    """Returns the column of labels, if there are any."""
    labels, names = chosen.data.labels, chosen.data.label_names
    if labels is None:
        return {}
    values = chosen.take(labels, some)
    if names is None:
        return {"label": values.numpy()}
    return {"label": [names[value] for value in values.tolist()]}
