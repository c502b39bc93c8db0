"""Handwritten digits that need no download."""

import torch

from pyro_vae.data.base import Data, build_data, split_row_numbers

__all__ = ["digits"]


def digits(
    *,
    binarize: str = "threshold",
    covariates: str | None = None,
    valid: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
) -> Data:
    """Returns scikit-learn's digits: 1,797 real images of 8 x 8 pixels in 17 levels of grey.

    References:
        | Optical recognition of handwritten digits (Alpaydin and Kaynak, 1998),
          https://doi.org/10.24432/C50P49

    Arguments:
        binarize: ``"threshold"``, ``"fixed"`` or ``"dynamic"``: zeros and ones; ``"none"``: the
            levels, l / 16.
        covariates: ``"label"`` for the digit as a covariate, or ``None``.
        valid: The fraction of rows kept for validation.
        test: The fraction of rows kept for the test.
        seed: The seed of the split, and of a fixed binarization.

    Raises:
        ValueError: If ``binarize`` is not a protocol or the fractions leave a part empty.

    Example:
        >>> digits().x.train.shape
        torch.Size([1258, 1, 8, 8])
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.get_default_dtype()).unsqueeze(1) / 16
    rows = split_row_numbers(len(x), valid=valid, test=test, seed=seed)
    return build_data(
        "digits",
        rows.select(x),
        rows.select(torch.tensor(bunch.target)),
        binarize=binarize,
        seed=seed,
        source="scikit-learn's copy of the UCI optical recognition of handwritten digits",
        row_numbers=rows,
        covariates=covariates,
    )
