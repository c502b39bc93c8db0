"""The decisions whether to compile a training step or an evaluation, made without timing."""

from typing import Any

__all__ = ["check_compile", "worth_compiling", "worth_compiling_evaluation"]

_SECONDS_TO_COMPILE = 6.0
"""The duration of a compilation; the second time it takes one second, because of caches on disk."""

_SECONDS_SAVED_PER_STEP = 1.5e-3
"""The time per step that Python spends on building the graph, which compiling saves."""

_MULTIPLICATIONS_PER_SECOND = 5e10
"""The number of row-weight multiplications per step for which compiling saves a further second."""

_SECONDS_TO_COMPILE_EVALUATION = 3.5
"""The same for an evaluation, which has no backward pass."""

_SECONDS_SAVED_PER_OUTPUT = 1.5e-8
"""The time that a graph saves for each output of the decoder, and sample."""

_SECONDS_SAVED_PER_WEIGHT = 2e-11
"""The time that it saves for each weight of the decoder, and sample."""


def check_compile(compile: Any, name: str = "compile") -> None:
    """Raises a ``ValueError`` unless the argument says whether to compile."""
    if not any(compile is c or compile == c for c in (True, False, "auto", "strict")):
        raise ValueError(f"Expected {name} to be true, false, auto or strict, got {compile!r}")


def worth_compiling(steps: int, rows: int, weights: int) -> bool:
    """Whether a training is long enough for a compiled step.

    The time saved has to exceed the time of compiling. It is estimated as 1.5 milliseconds per
    step, and more for larger networks. Nothing is timed, so that the same training gives the same
    bits on every machine.

    Arguments:
        steps: The number of optimizer steps.
        rows: The number of rows of a batch, times particles.
        weights: The number of weights.

    Example:
        >>> worth_compiling(1_000, 100, 30_000), worth_compiling(50_000, 128, 320_000)
        (False, True)
    """
    seconds_per_step = _SECONDS_SAVED_PER_STEP + rows * weights / _MULTIPLICATIONS_PER_SECOND
    return steps * seconds_per_step > _SECONDS_TO_COMPILE


def worth_compiling_evaluation(samples: int, outputs: int, weights: int) -> bool:
    """Whether an evaluation is long enough for a compiled graph.

    Arguments:
        samples: The number of samples of z that are decoded.
        outputs: The size of the decoder's output.
        weights: The number of the decoder's weights.

    Example:
        >>> worth_compiling_evaluation(360 * 1000, 64, 60_000)
        False
        >>> worth_compiling_evaluation(1000 * 5000, 784, 200_000)
        True
    """
    saved = outputs * _SECONDS_SAVED_PER_OUTPUT + weights * _SECONDS_SAVED_PER_WEIGHT
    return samples * saved > _SECONDS_TO_COMPILE_EVALUATION
