"""Posterior collapse, by one definition for reports and comparisons."""

__all__ = ["ACTIVE_VARIANCE", "LEAST_RATE", "is_collapsed"]

ACTIVE_VARIANCE = 0.01
"""The variance of its posterior mean over the data above which a latent dimension is active."""

LEAST_RATE = 0.1
"""The rate, in nats per datum, below which latents say next to nothing about their datum."""


def is_collapsed(active_units: float | None, rate: float | None) -> bool:
    """Whether latents say next to nothing about the data.

    Some dimensions without use are not a collapse: the ELBO leaves out those that the data do not
    need.

    Arguments:
        active_units: The number of active units, or ``None`` if it is not known.
        rate: The rate in nats per datum, or ``None`` if it is not known.

    Example:
        >>> is_collapsed(7, 12.0), is_collapsed(0, 12.0), is_collapsed(2, 0.08)
        (False, True, True)
    """
    return active_units == 0 or (rate is not None and rate < LEAST_RATE)
