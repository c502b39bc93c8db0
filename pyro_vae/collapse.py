"""When reports and comparisons warn: posterior collapse, and too few effective samples."""

__all__ = ["ACTIVE_VARIANCE", "LEAST_RATE", "LEAST_SAMPLE_SIZE", "is_collapsed"]

ACTIVE_VARIANCE = 0.01
"""The variance of its posterior mean over the data above which a latent dimension is active."""

LEAST_RATE = 0.1
"""The rate, in nats per datum, below which latents carry almost no information on the data."""

LEAST_SAMPLE_SIZE = 10
"""The effective sample size below which the log evidence of a row is unreliable."""


def is_collapsed(active_units: float | None, rate: float | None) -> bool:
    """Whether latents carry almost no information on the data.

    A few inactive dimensions are not a collapse: the ELBO prunes dimensions that the data do not
    need.

    Arguments:
        active_units: The number of active units, or ``None`` if it is not known.
        rate: The rate in nats per datum, or ``None`` if it is not known.

    Example:
        >>> is_collapsed(7, 12.0), is_collapsed(0, 12.0), is_collapsed(2, 0.08)
        (False, True, True)
    """
    return active_units == 0 or (rate is not None and rate < LEAST_RATE)
