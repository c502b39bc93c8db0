"""The roles of columns besides the data: label, covariates, and those of another table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_vae.data.base import Split
from pyro_vae.data.covariates import Covariates, parse_kinds
from pyro_vae.data.preparation import Preparation
from pyro_vae.tables.selection import match_name
from pyro_vae.validation import describe_value, list_names

__all__ = ["choose_encoding", "choose_kinds", "load_preparation", "match_reserved"]


def load_preparation(like: Any) -> Preparation | None:
    """Returns the preparation of another data set, given as such or as the folder of a run."""
    if isinstance(like, (str, Path)):
        return Preparation.load(like)
    if isinstance(like, (Preparation, type(None))):
        return like
    raise ValueError(
        f"Expected like to be a Preparation or the folder of a run, got {describe_value(like)}"
    )


def choose_kinds(
    covariates: Any, size_factor: str | None, like: Preparation | None
) -> dict[str, str | None]:
    """Returns the kind of each covariate, which are those of another data set if it is given."""
    kinds = parse_kinds(covariates, size_factor)
    if like is None:
        return kinds
    own = {} if like.covariates is None else {c.name: c.kind for c in like.covariates.columns}
    if kinds and set(kinds) != set(own):
        raise ValueError(
            f"Expected covariates to be those of the training data, {list(own)}, got {list(kinds)}"
        )
    return dict(own)


def choose_encoding(
    frame: Any, rows: Split, kinds: Mapping[str, str | None], like: Preparation | None
) -> Covariates | None:
    """Returns the encoding of covariates, from the training rows or another data set."""
    if like is not None and like.covariates is not None:
        return like.covariates
    return Covariates.fit(frame.iloc[rows.train.numpy()], kinds) if kinds else None


def match_reserved(
    available: Sequence[str], label: Any, kinds: Mapping[str, str | None]
) -> tuple[str | None, dict[str, str | None]]:
    """Returns the names of label and covariates, or raises a ``ValueError`` for unknown ones."""
    label = None if label is None else match_name(label, available)
    if label is not None and label not in available:
        raise ValueError(f"Expected label to be one of {list_names(available)}, got {label!r}")
    kinds = {match_name(name, available): kind for name, kind in kinds.items()}
    absent = [name for name in kinds if name not in available]
    if absent:
        raise ValueError(
            f"Expected covariates among the columns {list_names(available)}, got "
            f"{list_names(absent)}"
        )
    return label, kinds
