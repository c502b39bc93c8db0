"""Copies of the state of a training."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_vae.vae.vae import VAE

__all__ = ["copied", "objective_settings", "objective_state", "snapshot"]


def objective_settings(objective: Any, scheduled: Iterable[str]) -> dict[str, str]:
    """Returns as text what an objective was made with, less what changes as training goes on."""
    changing = {*scheduled, *objective_state(objective), "max_plate_nesting", "retain_graph"}
    return {
        name: repr(value.item() if isinstance(value, Tensor) and not value.dim() else value)
        for name, value in sorted(vars(objective).items())
        if not name.startswith("_")
        and name not in changing
        and (value is None or isinstance(value, (bool, int, float, str, Tensor)))
    }


def objective_state(objective: Any) -> dict[str, Tensor]:
    """Returns a copy of what an objective keeps from step to step, if it says so."""
    if not hasattr(objective, "state_dict"):
        return {}
    return {name: value.detach().clone() for name, value in objective.state_dict().items()}


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of what an optimizer holds, in a part of the time of ``deepcopy``."""
    return pytree.tree_map_only(Tensor, lambda value: value.detach().clone(), state)


def snapshot(vae: VAE) -> dict[str, Tensor]:
    """Returns a copy of all weights and buffers."""
    return {name: value.detach().clone() for name, value in vae.state_dict().items()}
