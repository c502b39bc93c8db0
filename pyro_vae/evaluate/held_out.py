"""The log evidence of the held-out rows, with which other rows are compared."""

import io
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data import Data
from pyro_vae.evaluate.evidence import Evidence
from pyro_vae.files.atomic import write_whole
from pyro_vae.guard import guard_process_state

__all__ = ["compute_p_values", "read_held_out", "write_held_out"]

_FILE = "held_out.csv"
"""The file in the folder of a run."""


def write_held_out(folder: Path, data: Data, evidence: Evidence) -> None:
    """Writes the log evidence of the held-out rows, one line for each.

    Arguments:
        folder: The folder of the run.
        data: The data.
        evidence: The evidence of the first test rows that have observed values.
    """
    import pandas

    numbers = torch.arange(len(data.x.test))
    if data.row_numbers is not None:
        numbers = data.row_numbers.test.cpu()
    if data.mask is not None:
        numbers = numbers[data.mask.test.flatten(1).any(1).cpu()]
    count = len(evidence.log_evidence)
    columns: dict[str, Any] = {"row": numbers[:count].numpy()}
    for name in ("log_evidence", "standard_error", "effective_sample_size"):
        columns[name] = getattr(evidence, name).cpu().numpy()
    columns["observed"] = _count_observed(data)[:count].numpy()
    text = io.StringIO()
    pandas.DataFrame(columns).to_csv(text, index=False)
    write_whole(folder / _FILE, text.getvalue().encode())


def _count_observed(data: Data) -> Tensor:
    """Returns the number of observed values of each test row that has some."""
    if data.mask is None:
        return torch.full((len(data.x.test),), math.prod(data.event_shape))
    counts = data.mask.test.flatten(1).sum(1).cpu()
    return counts[counts > 0]


def read_held_out(folder: Path) -> tuple[Tensor, Tensor]:
    """Returns the log evidence and the number of observed values of the held-out rows of a run.

    Raises:
        ValueError: If the file is missing or damaged.
    """
    import pandas

    path = folder / _FILE
    try:
        columns = pandas.read_csv(path)
        values, counts = (
            torch.from_numpy(columns[name].to_numpy(dtype="float64", copy=True))
            for name in ("log_evidence", "observed")
        )
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"Expected '{path}' to hold the log evidence of held-out rows, got "
            f"{type(error).__name__}: run the command of the run again with overwrite=true"
        ) from error
    if not len(values) or not bool((values.isfinite() & counts.isfinite()).all()):
        raise ValueError(f"Expected '{path}' to hold finite numbers, got others or none")
    return values, counts


@guard_process_state
def compute_p_values(log_evidence: Tensor, reference: Tensor) -> Tensor:
    r"""Returns the outlier p-value of rows: the share of reference rows that are as unlikely.

    .. math:: p = \frac{1 + \#\{i : r_i \le s\}}{1 + n}

    Counting the row itself makes it a valid p-value, the least of which is :math:`1 / (1 + n)`: for
    a row of the same distribution as the reference rows, which neither the training nor the
    reference has seen, the probability of :math:`p \le a` is at most :math:`a`, whatever the VAE.
    This is an average over reference sets. Rows with more missing values have fewer terms in their
    log evidence, so their gaps need the distribution of those of the reference too.

    References:
        | Testing for outliers with conformal p-values (Bates et al., 2023),
          https://arxiv.org/abs/2104.08279

    Arguments:
        log_evidence: The log evidence :math:`s` of the rows, ``(N,)``.
        reference: The log evidence :math:`r` of the reference rows, ``(n,)``, with as many samples.

    Example:
        >>> compute_p_values(torch.tensor([-9.0, -1.5, 0.0]), torch.tensor([-3.0, -2.0, -1.0]))
        tensor([0.2500, 0.7500, 1.0000], dtype=torch.float64)
    """
    reference = reference.double().sort().values
    count = torch.searchsorted(reference, log_evidence.double().contiguous(), right=True)
    return (1 + count).double() / (1 + len(reference))
