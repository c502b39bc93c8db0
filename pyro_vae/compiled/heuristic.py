"""The decision whether to compile a training step, made without timing."""

__all__ = ["worth_compiling"]

_SECONDS_TO_COMPILE = 20.0
"""The duration of a first compilation, rounded up."""

_SECONDS_SAVED_PER_STEP = 1e-3
"""The time per step that Python spends on building the graph, which compiling saves."""

_MULTIPLICATIONS_PER_SECOND = 2e10
"""The number of row-weight multiplications per step for which compiling saves a further second."""


def worth_compiling(steps: int, rows: int, weights: int) -> bool:
    """Whether a training is long enough for a compiled step.

    The time saved has to exceed the time of compiling. It is estimated as one millisecond per
    step, and more for larger networks. Nothing is timed, so that the same training gives the same
    bits on every machine.

    Arguments:
        steps: The number of optimizer steps.
        rows: The number of rows of a batch, times particles.
        weights: The number of weights.

    Example:
        >>> worth_compiling(3_900, 100, 30_000), worth_compiling(50_000, 128, 320_000)
        (False, True)
    """
    seconds_per_step = _SECONDS_SAVED_PER_STEP + rows * weights / _MULTIPLICATIONS_PER_SECOND
    return steps * seconds_per_step > _SECONDS_TO_COMPILE
