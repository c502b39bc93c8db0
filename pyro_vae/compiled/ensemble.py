"""One compiled step for several VAEs that differ only in numbers."""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae.compiled.eager_step import EagerStep, Settings
from pyro_vae.compiled.environment import StepEnvironment
from pyro_vae.compiled.graph import (
    Backend,
    Captured,
    NotCapturedError,
    capture_graph,
    compile_graph,
)
from pyro_vae.compiled.graph_builder import GraphBuilder
from pyro_vae.compiled.optimizer_step import Update
from pyro_vae.compiled.signature import Call
from pyro_vae.compiled.tensors import clone_tensors, save_tensors
from pyro_vae.compiled.verify import check_changes, check_close
from pyro_vae.vae.vae import VAE

__all__ = ["EnsembleStep", "find_tensors"]

_FILLS = {
    torch.ops.aten.randn.default: torch.ops.aten.normal_.default,
    torch.ops.aten.randn_like.default: torch.ops.aten.normal_.default,
    torch.ops.aten.rand.default: torch.ops.aten.uniform_.default,
    torch.ops.aten.rand_like.default: torch.ops.aten.uniform_.default,
}
"""The in-place version of each random operation that returns a new tensor."""


class EnsembleStep:
    """The step of one VAE as a graph, mapped by ``vmap`` over the stacked tensors of all.

    Noise is drawn outside of the graph, by one generator per VAE in the order of a step alone, so
    that each VAE is trained as if it were alone, up to rounding.
    """

    def __init__(
        self,
        members: Sequence[tuple[VAE, Any, torch.optim.Optimizer]],
        generators: Sequence[torch.Generator],
        clip_norm: float | None,
        backend: Backend,
        keywords: Sequence[str] = (),
    ) -> None:
        self.members, self.generators, self.backend = members, generators, backend
        self.keywords = keywords
        self.settings = Settings("mkl", "float32", strict=True, divide_by=1.0, validate=False)
        self.updates = [_EnsembleUpdate(optimizer, clip_norm) for *_, optimizer in members]
        self.steps = [
            EagerStep(objective, vae.model, vae.guide, None, self.settings, update)
            for (vae, objective, _), update in zip(members, self.updates, strict=True)
        ]
        self.weights = [list(vae.parameters()) for vae, *_ in members]
        self.buffers = [
            find_tensors(vae, objective)[len(weights) :]
            for (vae, objective, _), weights in zip(members, self.weights, strict=True)
        ]
        self.active = list(range(len(members)))  # Not released yet.
        self.stacks: dict[tuple[int, int], Tensor] = {}
        self.graphs: dict[tuple[torch.Size, ...], Callable[..., Any]] = {}

    def tensors(self, i: int) -> list[Tensor]:
        """Returns the tensors that a step of one VAE reads or changes, in one order for all."""
        update = self.updates[i]
        return [*self.weights[i], *update.tensors(), *self.buffers[i], update.scalars]

    def stack(self) -> None:
        """Makes the tensors of all VAEs views of stacks, until :meth:`release`."""
        for weights, update in zip(self.weights, self.updates, strict=True):
            update.prepare([p for p in weights if p.requires_grad])
        tensors = list(map(self.tensors, self.active))
        forms = [[(t.shape, t.dtype, t.requires_grad) for t in own] for own in tensors]
        if different := [i for i, form in enumerate(forms) if form != forms[0]]:
            raise NotCapturedError(f"VAE {different[0]} differs from the first in its tensors")
        # The numbers of several objectives may be elements of one tensor.
        storages = [t.untyped_storage() if t.dim() else t for own in tensors for t in own]
        addresses = [storage.data_ptr() for storage in storages if storage.data_ptr()]
        if len(set(addresses)) < len(addresses):
            raise NotCapturedError("two tensors of VAEs or objectives share memory")
        groups = list(zip(*tensors, strict=True))
        # Before any tensor is moved, because memory may run out.
        stacks = [torch.stack([tensor.detach() for tensor in group]) for group in groups]
        self.stacks = {_address(stack): stack for stack in stacks if stack.numel()}
        for group, stack in zip(groups, stacks, strict=True):
            for tensor, view in zip(group, stack, strict=True):
                tensor.data = view

    def release(self, i: int) -> None:
        """Gives a VAE memory of its own again; later steps do not change it."""
        self.active.remove(i)
        if self.stacks:
            for tensor in self.tensors(i):
                tensor.data = tensor.data.clone()

    def prepare(self, batches: Sequence[Sequence[Tensor]]) -> None:
        """Builds the graphs for inputs of these shapes, and compares a step with eager ones."""
        for inputs in batches:
            for i, (vae, objective, _) in enumerate(self.members):
                _check_repeatable(i, vae, objective, self._call(i, inputs))
        self.stack()
        for inputs in batches:
            self._build(inputs)

    def _build(self, inputs: Sequence[Tensor]) -> None:
        self.settings.divide_by = inputs[0].shape[1]
        # Pyro has checked model, guide and shapes.
        with pyro.validation_enabled(False):
            # An error of the VAE itself is raised as it is.
            reached = self.steps[0].try_eagerly(self._call(0, inputs))
            try:
                run = self._map(reached, inputs)
            except Exception as error:
                reason = str(error).strip().split("\n")[0] or type(error).__name__
                raise NotCapturedError(reason) from error
            self._verify(run, reached, inputs)
        self.graphs[tuple(tensor.shape for tensor in inputs)] = run

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Makes a step of each VAE on its rows and keywords; returns all losses."""
        with torch.no_grad():
            return self.graphs[tuple(tensor.shape for tensor in inputs)](*inputs)[0]

    def _call(self, i: int, inputs: Sequence[Tensor]) -> Call:
        x, *others = (tensor[i] for tensor in inputs)
        return Call((x,), dict(zip(self.keywords, others, strict=True)))

    def _map(self, reached: list[Tensor], inputs: Sequence[Tensor]) -> Callable[..., Any]:
        """Returns the step of the first, mapped over the tensors of all."""
        one = GraphBuilder(self.steps[0]).capture(self._call(0, inputs), reached)
        noises = _lift_noise(one)
        given = [*inputs, *(drawn := [noise.stack(len(self.steps)) for noise in noises])]
        tensors = [self.stacks.get(_address(tensor), tensor) for tensor in one.lifted]
        dims = [0 if _address(tensor) in self.stacks else None for tensor in one.lifted]
        mapped = torch.func.vmap(one.graph, in_dims=(*dims, *[0] * len(given)))
        restore = save_tensors(self.stacks.values())
        try:
            with torch.no_grad():
                graph = capture_graph(partial(mapped, *tensors), given)
        finally:
            restore()
        # The smaller last batch of an epoch is not worth compiling.
        backend: Backend = "eager" if self.graphs else self.backend
        run = compile_graph(graph, given, backend)

        def step(*batches: Tensor) -> Sequence[Tensor]:
            for update in self.updates:
                update.set_scalars()
            for i, generator in enumerate(self.generators):
                for noise, stack in zip(noises, drawn, strict=True):
                    noise.fill(stack[i], *noise.numbers, generator=generator)
            return run(*graph.lifted, *batches, *drawn)

        return step

    def _verify(
        self, run: Callable[..., Any], reached: list[Tensor], inputs: Sequence[Tensor]
    ) -> None:
        """Raises a ``NotCapturedError`` if a step differs from the eager ones; undoes both."""
        restore = save_tensors(self.stacks.values())
        states = [generator.get_state() for generator in self.generators]
        try:
            with torch.no_grad():
                losses, *gradients = clone_tensors(run(*inputs))
            after = [clone_tensors(self.tensors(i)) for i in self.active]
            restore()
            for i in self.active:
                before, call = clone_tensors(self.tensors(i)), self._call(i, inputs)
                with torch.random.fork_rng([]):
                    torch.set_rng_state(states[i])
                    loss = self.steps[i].backward(*call.args, **call.kwargs)
                check_close(f"loss of VAE {i}", [losses[i]], [loss])
                pairs = zip(self.weights[0], self.weights[i], strict=True)
                own = [weight for first, weight in pairs if any(first is r for r in reached)]
                expected = self.updates[i].clip_gradients(
                    [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
                )
                check_close(f"gradient of VAE {i}", [g[i] for g in gradients], expected)
                # Adam divides a gradient by its size: other rounding of a tiny one changes much.
                for weight, gradient in zip(own, gradients, strict=True):
                    weight.grad = gradient[i]
                self.updates[i].optimizer.step()
                count = len(before) - 1 - len(self.buffers[i])
                check_close(f"state of VAE {i}", after[i][count:-1], self.buffers[i])
                changes = (before[:count], after[i][:count], self.tensors(i)[:count])
                check_changes(f"update of VAE {i}", *changes)
        finally:
            restore()
            for update in self.updates:
                update.optimizer.zero_grad(set_to_none=True)
            for generator, state in zip(self.generators, states, strict=True):
                generator.set_state(state)


class _EnsembleUpdate(Update):
    def compute_clip_factor(self, gradients: Sequence[Tensor], clip_norm: float) -> Tensor:
        factor = super().compute_clip_factor(gradients, clip_norm)
        # PyTorch 2.14 cannot fuse the norms of many with the updates that read them. Sorting is
        # not compiled, and so separates the two.
        return factor.reshape(1).sort().values[0]


def _check_repeatable(i: int, vae: VAE, objective: Any, call: Call) -> None:
    """Raises a ``NotCapturedError`` if a call adds or replaces a setting or tensor."""
    try:
        vae, objective = copy.deepcopy((vae, objective))
    except Exception as error:
        raise NotCapturedError(f"VAE {i} cannot be copied: {error}") from error
    environment = StepEnvironment(vae, vae, vae.model, vae.guide)
    # The tensors are kept, because the id of one that is freed may be used again.
    before, _tensors = environment.key(), environment.tensors()
    with torch.random.fork_rng([]):
        for mode in (False, True):
            vae.train(mode)
            objective.differentiable_loss(vae.model, vae.guide, *call.args, **call.kwargs)
    if environment.key() != before:
        raise NotCapturedError(f"a step of VAE {i} adds or replaces a setting, module or tensor")


def find_tensors(vae: VAE, objective: Any) -> list[Tensor]:
    """Returns the tensors of a VAE and an objective."""
    settings = (value for value in vars(objective).values() if isinstance(value, Tensor))
    return [*vae.parameters(), *vae.buffers(), *settings]


def _address(tensor: Tensor) -> tuple[int, int]:
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())


class _Noise(NamedTuple):
    """The noise of one random operation, filled in as ``fill(tensor, *numbers, generator=...)``."""

    fill: Callable[..., Tensor]
    numbers: tuple[float, ...]
    form: Tensor

    def stack(self, count: int) -> Tensor:
        """Returns an uninitialized tensor for the noise of ``count`` models."""
        shape, strides = self.form.shape, self.form.stride()
        size = (math.prod(shape), *strides)  # Strides determine the order of drawing.
        return torch.empty_strided((count, *shape), size, dtype=self.form.dtype)


def _lift_noise(captured: Captured) -> list[_Noise]:
    """Turns the noise of a graph into inputs, in the order of drawing."""
    graph = captured.graph.graph
    noises: list[_Noise] = []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.nodes):
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            noises.append(_describe_noise(node))
            with graph.inserting_after(last):
                last = graph.placeholder(f"noise_{len(noises) - 1}")
            node.replace_all_uses_with(last)
            graph.erase_node(node)
    captured.graph.recompile()
    return noises


def _describe_noise(node: Any) -> _Noise:
    value = node.meta["val"]
    if node.target in _FILLS:
        return _Noise(_FILLS[node.target], (), value)
    target, *numbers = node.args or (None,)
    is_new = str(getattr(target, "target", "")).startswith(("aten.empty", "aten.new_empty"))
    if not is_new or node.kwargs or any(hasattr(n, "op") for n in numbers):
        raise NotCapturedError(
            f"the noise of {node.target} depends on the values of tensors, or cannot be drawn for "
            f"each model separately"
        )
    return _Noise(node.target, tuple(numbers), value)
