"""Whether compiling a step is worth its time, decided without a clock."""

__all__ = ["worth_compiling"]

_SECONDS_TO_COMPILE = 20.0
"""What a first compilation takes, rounded up."""

_SECONDS_SAVED = 1e-3
"""What a compiled step saves of the time that Python takes to build the graph anew."""

_PRODUCTS_A_SECOND = 2e10
"""By how many products of a row and a weight a step has to be larger to save a second more."""


def worth_compiling(steps: int, rows: int, weights: int) -> bool:
    """Tells whether a training is long enough for a compiled step.

    It is where the time that is saved, by a fixed estimate of one millisecond a step and more for
    larger networks, exceeds that of compiling. No clock is asked, so that the same training gives
    the same bits everywhere.

    Arguments:
        steps: The number of optimizer steps.
        rows: The number of rows of a batch, times particles.
        weights: The number of weights.

    Example:
        >>> worth_compiling(3_900, 100, 30_000), worth_compiling(50_000, 128, 320_000)
        (False, True)
    """
    saved = steps * (_SECONDS_SAVED + rows * weights / _PRODUCTS_A_SECOND)
    return saved > _SECONDS_TO_COMPILE
