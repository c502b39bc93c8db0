"""Tables of scikit-learn with values that are missing completely at random."""

import torch

from pyro_vae.data.base import Data, Split
from pyro_vae.data.preparation import Scaling
from pyro_vae.validation import check_choice, check_number, check_seed

__all__ = ["incomplete"]

_NAMES = ("iris", "wine", "breast_cancer", "diabetes")


def incomplete(name: str = "iris", *, share: float = 0.5, seed: int = 0) -> Data:
    """Returns a table of scikit-learn of which a share of the values is missing at random.

    The protocol is that of the notebook of MIWAE: each column is standardized by the mean and
    standard deviation of the complete table, then exactly this share of all values is removed. All
    rows are training rows, and the same rows are the test rows, whose gaps are imputed. The
    evidence of a run is therefore not that of new rows.

    References:
        | MIWAE: deep generative modelling and imputation of incomplete data sets (Mattei and
          Frellsen, 2019), https://arxiv.org/abs/1812.02633

    Arguments:
        name: ``"iris"``, ``"wine"``, ``"breast_cancer"`` or ``"diabetes"``.
        share: The share of missing values; 0 gives the complete table, with the same scaling.
        seed: The seed of the choice of missing values.

    Raises:
        ValueError: If the name is unknown, or the share is not in [0, 1).

    Example:
        >>> iris = incomplete("iris")
        >>> iris.x.train.shape, round(iris.mask.train.double().mean().item(), 3)
        (torch.Size([150, 4]), 0.5)
    """
    from sklearn import datasets

    name = check_choice("name", name, _NAMES)
    share = check_number("share", share, least=0.0, most=1.0)
    seed = check_seed(seed)
    bunch = getattr(datasets, f"load_{name}")()
    complete = torch.tensor(bunch.data, dtype=torch.float64)
    count = int(share * complete.numel())
    if count == complete.numel():
        raise ValueError(f"Expected share to be less than 1, got {share}")
    order = torch.randperm(complete.numel(), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(complete.numel(), dtype=torch.bool)
    mask[order[:count]] = False
    mask = mask.reshape(complete.shape)
    scaling = Scaling.fit(complete, torch.ones_like(mask))
    x = ((complete - scaling.loc) / scaling.scale).where(mask, 0.0).to(torch.get_default_dtype())
    numbers = torch.arange(len(x))
    labels = torch.tensor(bunch.target) if hasattr(bunch, "target_names") else None
    return Data(
        name=f"{name}, {share:.0%} missing",
        binarize="none",
        x=Split(x, x[:0], x),
        labels=None if labels is None else Split(labels, labels[:0], labels),
        source=f"scikit-learn's {name}, standardized, {share:.0%} of the values missing",
        mask=Split(mask, mask[:0], mask),
        scaling=scaling,
        columns=tuple(map(str, bunch.feature_names)),
        label_names=tuple(map(str, bunch.target_names)) if labels is not None else None,
        row_numbers=Split(numbers, numbers[:0], numbers),
    )
