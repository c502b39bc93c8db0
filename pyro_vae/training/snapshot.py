"""Copies of the state of an optimizer, an objective and a VAE."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["copy_objective_state", "copy_state", "read_objective_settings"]


def read_objective_settings(objective: Any, scheduled: Iterable[str]) -> dict[str, str]:
    """Returns the constant settings of an objective as text, without values that training changes.

    Arguments:
        objective: The objective.
        scheduled: The names of scalars that follow a schedule.
    """
    changing = {*scheduled, *copy_objective_state(objective), "max_plate_nesting", "retain_graph"}
    return {
        name: repr(value.item() if isinstance(value, Tensor) and not value.dim() else value)
        for name, value in sorted(vars(objective).items())
        if not name.startswith("_")
        and name not in changing
        and (value is None or isinstance(value, (bool, int, float, str, Tensor)))
    }


def copy_objective_state(objective: Any) -> dict[str, Tensor]:
    """Returns a copy of the state that an objective keeps between steps, empty if it has none."""
    if not hasattr(objective, "state_dict"):
        return {}
    return copy_state(objective.state_dict())


def copy_state(state: dict[str, Any]) -> dict[str, Any]:
    """Returns a detached copy of a state dict; faster than ``deepcopy``."""
    return pytree.tree_map_only(Tensor, lambda value: value.detach().clone(), dict(state))
