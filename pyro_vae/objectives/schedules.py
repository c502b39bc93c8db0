"""Schedules of a scalar of an objective over the optimizer steps."""

import math
from abc import ABC, abstractmethod

from pyro_vae.validation import check_number, check_size

__all__ = ["Constant", "Cosine", "Cyclical", "Linear", "Schedule", "Sigmoid"]


class Schedule(ABC):
    """A number that changes over the first ``steps`` optimizer steps and is constant afterwards.

    :func:`pyro_vae.fit` raises an error if a schedule is longer than the training, which would
    never reach its end value. Early stopping starts after the end of the schedule.

    Arguments:
        start: The value at step 0.
        end: The value from step ``steps`` on.
        steps: The number of steps.

    Raises:
        ValueError: If ``steps`` is negative or a value is not finite.
    """

    def __init__(self, start: float, end: float, steps: int) -> None:
        self.start, self.end = check_number("start", start), check_number("end", end)
        self.steps = check_size("steps", steps, least=0)

    def __call__(self, step: int) -> float:
        """Returns the value at a step, counted from 0."""
        if step >= self.steps:
            return self.end
        return self.start + (self.end - self.start) * self.share(step / self.steps)

    @abstractmethod
    def share(self, time: float) -> float:
        """Returns the fraction of the change completed at a time in [0, 1)."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.start:g}, {self.end:g}, steps={self.steps})"


class Constant(Schedule):
    """A value that never changes.

    Arguments:
        value: The value.

    Example:
        >>> Constant(0.5)(10)
        0.5
    """

    def __init__(self, value: float) -> None:
        value = check_number("value", value)
        super().__init__(value, value, 0)

    def share(self, time: float) -> float:
        """Returns 1."""
        return 1.0


class Linear(Schedule):
    """A straight line, :math:`t`; its arguments are those of :class:`Schedule`.

    Example:
        >>> [Linear(0.0, 1.0, steps=4)(step) for step in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """

    def share(self, time: float) -> float:
        """Returns the time."""
        return time


class Cosine(Schedule):
    r"""Half a cosine, :math:`(1 - \cos \pi t) / 2`; arguments as of :class:`Schedule`.

    Example:
        >>> round(Cosine(0.0, 1.0, steps=4)(2), 6)
        0.5
    """

    def share(self, time: float) -> float:
        """Returns the value of the rescaled cosine."""
        return (1 - math.cos(math.pi * time)) / 2


class Sigmoid(Schedule):
    r"""A logistic curve from -6 to 6, rescaled to begin at 0 and end at 1.

    .. math:: \frac{\sigma(12 t - 6) - \sigma(-6)}{\sigma(6) - \sigma(-6)}

    Its arguments are those of :class:`Schedule`.

    Example:
        >>> round(Sigmoid(0.0, 1.0, steps=4)(2), 6)
        0.5
    """

    def share(self, time: float) -> float:
        """Returns the value of the rescaled logistic curve."""

        def logistic(x: float) -> float:
            return 1 / (1 + math.exp(-x))

        return (logistic(12 * time - 6) - logistic(-6)) / (logistic(6) - logistic(-6))


class Cyclical(Schedule):
    r"""Repeated linear rises: each cycle rises over a fraction ``ratio``, then stays at ``end``.

    References:
        | Cyclical annealing schedule: a simple approach to mitigating KL vanishing (Fu et al.,
          2019), https://arxiv.org/abs/1903.10145

    Arguments:
        start: The value at the start of each cycle.
        end: The value that each cycle reaches.
        steps: The number of steps of all cycles together.
        cycles: The number of cycles.
        ratio: The fraction of a cycle that rises.

    Raises:
        ValueError: If ``cycles`` is not positive or ``ratio`` is not within (0, 1].

    Example:
        >>> [Cyclical(0.0, 1.0, steps=8, cycles=2)(step) for step in range(9)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    """

    def __init__(
        self, start: float, end: float, steps: int, *, cycles: int = 4, ratio: float = 0.5
    ) -> None:
        super().__init__(start, end, steps)
        self.cycles = check_size("cycles", cycles, least=1)
        self.ratio = check_number("ratio", ratio, above=0.0, most=1.0)

    def share(self, time: float) -> float:
        """Returns the completed fraction of the rise in the current cycle."""
        return min(1.0, (time * self.cycles) % 1 / self.ratio)
