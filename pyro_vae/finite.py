"""Reports metrics that are not finite, with the rows and the terms that cause it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

__all__ = [
    "check_finite",
    "check_weights",
    "explain_invalid_parameters",
    "find_nonfinite_rows",
]


def find_nonfinite_rows(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns, for each term, the rows in which it is not finite for at least one particle."""
    return {name: ~value.isfinite().all(0) for name, value in terms.items()}


def check_finite(metric: str, values: Tensor, faults: Mapping[str, Tensor]) -> None:
    """Raises a ``FloatingPointError`` with rows and terms unless all rows are finite."""
    bad = ~values.isfinite()
    if not bool(bad.any()):
        return
    counts = {name: int((rows & bad).sum()) for name, rows in faults.items()}
    causes = [
        f"{name} is not finite for {count} of them" for name, count in counts.items() if count
    ]
    raise FloatingPointError(
        f"The {metric} is not finite for {int(bad.sum())} of {len(bad)} rows, the first of them "
        f"row {int(bad.nonzero()[0])}"
        + (f": {', '.join(causes)}" if causes else "")
        + ". Evaluate in double precision (vae.double(), x.double()); more particles help if "
        "every draw has density zero"
    )


def check_weights(vae: nn.Module) -> None:
    """Raises a ``FloatingPointError`` with the names of nonfinite weights and buffers."""
    names = [name for name, value in vae.state_dict().items() if not bool(value.isfinite().all())]
    if names:
        raise FloatingPointError(
            f"The weights of the VAE are not finite in {', '.join(names[:3])}"
            + (f" and {len(names) - 3} others" if len(names) > 3 else "")
            + ": train again with a lower learning rate or clip_norm"
        )


@contextmanager
def explain_invalid_parameters(name: str) -> Iterator[None]:
    """Names the distribution whose parameters are invalid; PyTorch shows only the tensor."""
    try:
        yield
    except ValueError as error:
        # PyTorch does not define a class for this error.
        if not str(error).startswith("Expected parameter"):
            raise
        raise FloatingPointError(
            f"The parameters of {name} are not finite or not valid: {str(error).splitlines()[0]}"
        ) from error
