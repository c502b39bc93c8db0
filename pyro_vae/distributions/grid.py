"""The constraint to equidistant levels in the unit interval."""

from pyro.distributions import constraints
from torch import Tensor

__all__ = ["Grid"]


class Grid(constraints.Constraint):
    """The values ``0, 1 / (levels - 1), ..., 1``."""

    is_discrete = True

    def __init__(self, levels: int) -> None:
        self.levels = levels
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each value lies on the grid, to a thousandth of a level."""
        steps = value * (self.levels - 1)
        return ((steps - steps.round()).abs() < 1e-3) & (value >= 0) & (value <= 1)

    def __repr__(self) -> str:
        return f"Grid(levels={self.levels})"
