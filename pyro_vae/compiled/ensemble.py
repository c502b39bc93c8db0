"""One compiled step for several VAEs that differ only in numbers."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pyro
import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from pyro_vae.compiled.eager_step import EagerStep, Settings
from pyro_vae.compiled.graph import Backend, NotCapturedError, capture_graph, compile_graph
from pyro_vae.compiled.graph_builder import GraphBuilder
from pyro_vae.compiled.noise import lift_noise
from pyro_vae.compiled.optimizer_step import Update
from pyro_vae.compiled.signature import Call
from pyro_vae.compiled.tensors import clone_tensors, save_tensors
from pyro_vae.compiled.verify import check_changes, check_close
from pyro_vae.vae.vae import VAE

__all__ = ["EnsembleStep"]

_LATER_TOLERANCE = 0.01
"""The relative difference from eager steps that is allowed after the first step.

Rounding may switch a rectified unit on or off, which among many steps happens to some.
"""

_Run = Callable[..., Sequence[Tensor]]


class EnsembleStep:
    """The step of one VAE as a graph, mapped by ``vmap`` over the stacked tensors of all.

    Noise is drawn outside of the graph, by one generator per VAE in the order of a step alone, so
    that each VAE is trained as if it were alone, up to rounding.

    Arguments:
        members: VAEs, objectives and optimizers that differ only in numbers.
        generators: The source of noise of each.
        clip_norm: The norm to which the gradient of each VAE is clipped.
        backend: As of :func:`pyro_vae.compile`.

    Attributes:
        active: The indices of the VAEs that have not been released.
    """

    def __init__(
        self,
        members: Sequence[tuple[VAE, Any, torch.optim.Optimizer]],
        generators: Sequence[torch.Generator],
        clip_norm: float | None,
        backend: Backend,
    ) -> None:
        self.generators, self.backend = generators, backend
        self.settings = Settings("mkl", "float32", strict=True, divide_by=1.0, validate=False)
        self.updates = [_EnsembleUpdate(optimizer, clip_norm) for *_, optimizer in members]
        self.steps = [
            EagerStep(objective, vae.model, vae.guide, None, self.settings, update)
            for (vae, objective, _), update in zip(members, self.updates, strict=True)
        ]
        self.vaes = [vae for vae, *_ in members]
        self.weights = [list(vae.parameters()) for vae, *_ in members]
        self.buffers = [[*vae.buffers(), *_tensors_of(objective)] for vae, objective, _ in members]
        for weights, update in zip(self.weights, self.updates, strict=True):
            update.prepare([p for p in weights if p.requires_grad])
        self.active = list(range(len(members)))
        self.stacks: dict[tuple[int, int], Tensor] = {}
        self.keys: list[Hashable] = []
        self.graphs: dict[Hashable, tuple[_Run, list[Tensor]]] = {}
        _check_memory(members)

    def tensors(self, i: int) -> list[Tensor]:
        """Returns the tensors that a step of one VAE reads or changes, in one order for all."""
        update = self.updates[i]
        return [*self.weights[i], *update.tensors(), *self.buffers[i], update.scalars]

    def stack(self, inputs: Sequence[Tensor]) -> None:
        """Makes the tensors of all VAEs views of stacks, until :meth:`release`.

        Arguments:
            inputs: As of :meth:`__call__`; what an eager step makes lazily is made by these.
        """
        self.settings.divide_by = inputs[0].shape[1]
        for i, (step, vae) in enumerate(zip(self.steps, self.vaes, strict=True)):
            before = _identify(vae)
            step.try_eagerly(_call(i, inputs))
            # Lazy parts have been made with other noise than in a training of this VAE alone.
            if _identify(vae) != before:
                raise NotCapturedError(
                    f"the first step of VAE {i} adds or replaces a module or tensor"
                )
        forms = [
            [(t.shape, t.dtype, t.requires_grad) for t in self.tensors(i)] for i in self.active
        ]
        if different := [i for i, form in enumerate(forms) if form != forms[0]]:
            raise NotCapturedError(f"VAE {different[0]} differs from the first in its tensors")
        groups = list(zip(*map(self.tensors, self.active), strict=True))
        # Before any tensor is moved, because memory may run out.
        stacks = [torch.stack([tensor.detach() for tensor in tensors]) for tensors in groups]
        self.stacks = {_address(stack): stack for stack in stacks if stack.numel()}
        for tensors, stack in zip(groups, stacks, strict=True):
            for tensor, view in zip(tensors, stack, strict=True):
                tensor.data = view
        self.keys = [self._key(i) for i in self.active]

    def release(self, i: int) -> None:
        """Gives a VAE memory of its own again; later steps do not change it."""
        self.active.remove(i)
        if self.stacks:
            for tensor in self.tensors(i):
                tensor.data = tensor.data.clone()

    def _key(self, i: int) -> Hashable:
        tensors = self.tensors(i)
        settings = self.steps[i].environment.key(), self.updates[i].key()
        return *settings, *map(id, tensors), *map(_address, tensors)

    def check_unchanged(self) -> None:
        """Raises a ``NotCapturedError`` if a VAE, its objective or its optimizer was changed."""
        for i in self.active:
            if self._key(i) != self.keys[i]:
                raise NotCapturedError(f"a setting, attribute or tensor of VAE {i} was replaced")

    def __call__(self, *inputs: Tensor, compare: bool = False) -> Tensor:
        """Makes a step of each VAE, and returns the losses, ``(vaes,)``.

        Arguments:
            inputs: A batch for each, ``(vaes, rows, *event_shape)``, and its mask, if any.
            compare: Whether to compare the step with eager ones, as the first of its shape is.

        Raises:
            NotCapturedError: If the step cannot be captured, or differs from the eager ones.
        """
        for update in self.updates:
            update.set_scalars()
        shape = tuple(tensor.shape for tensor in inputs)
        is_new = shape not in self.graphs
        if compare or is_new:
            self.settings.divide_by = inputs[0].shape[1]
            # Pyro checks model, guide and shapes once.
            with pyro.validation_enabled(is_validation_enabled() and not self.graphs):
                graph = self._capture(inputs) if is_new else self.graphs[shape]
                self._verify(*graph, inputs, 0.0 if is_new else _LATER_TOLERANCE)
            self.check_unchanged()
            self.graphs[shape] = graph
        with torch.no_grad():
            return self.graphs[shape][0](*inputs)[0]

    def _capture(self, inputs: Sequence[Tensor]) -> tuple[_Run, list[Tensor]]:
        """Returns the step of all, and the parameters of the first that its gradients belong to."""
        # An error of the VAE itself is raised as it is.
        reached = self.steps[0].try_eagerly(_call(0, inputs))
        self.check_unchanged()
        try:
            return self._map(reached, inputs), reached
        except Exception as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise NotCapturedError(reason) from error

    def _map(self, reached: list[Tensor], inputs: Sequence[Tensor]) -> _Run:
        """Returns the step of the first, mapped over the tensors of all."""
        one = GraphBuilder(self.steps[0]).capture(_call(0, inputs), reached)
        noises = lift_noise(one)
        drawn = [noise.stack(len(self.steps)) for noise in noises]
        tensors = [self.stacks.get(_address(tensor), tensor) for tensor in one.lifted]
        dims = [0 if _address(tensor) in self.stacks else None for tensor in one.lifted]
        mapped = torch.func.vmap(one.graph, in_dims=(*dims, *[0] * (len(inputs) + len(drawn))))
        restore = save_tensors(self.stacks.values())
        try:
            with torch.no_grad():
                graph = capture_graph(lambda *given: mapped(*tensors, *given), [*inputs, *drawn])
        finally:
            restore()
        # The smaller last batch of an epoch is not worth compiling.
        backend: Backend = "eager" if self.graphs else self.backend
        run = compile_graph(graph, [*inputs, *drawn], backend)

        def step(*batches: Tensor) -> Sequence[Tensor]:
            for i, generator in enumerate(self.generators):
                for noise, stack in zip(noises, drawn, strict=True):
                    noise.fill(stack[i], *noise.numbers, generator=generator)
            return run(*graph.lifted, *batches, *drawn)

        return step

    def _verify(
        self, run: _Run, reached: list[Tensor], inputs: Sequence[Tensor], tolerance: float
    ) -> None:
        """Raises a ``NotCapturedError`` if a step differs from the eager ones; undoes both."""
        restore = save_tensors(self.stacks.values())
        states = [generator.get_state() for generator in self.generators]
        try:
            with torch.no_grad():
                losses, *gradients = clone_tensors(run(*inputs))
            after = [clone_tensors(self.tensors(i)) for i in range(len(self.steps))]
            restore()
            for i in self.active:
                call = _call(i, inputs)
                with torch.random.fork_rng([]):
                    torch.set_rng_state(states[i])
                    loss = self.steps[i].backward(*call.args, **call.kwargs)
                check_close(f"loss of VAE {i}", [losses[i]], [loss], tolerance)
                self._verify_update(i, reached, [g[i] for g in gradients], after[i], tolerance)
        finally:
            restore()
            for generator, state in zip(self.generators, states, strict=True):
                generator.set_state(state)

    def _verify_update(
        self,
        i: int,
        reached: Sequence[Tensor],
        gradients: Sequence[Tensor],
        after: Sequence[Tensor],
        tolerance: float,
    ) -> None:
        """Compares gradients, buffers and update of one VAE after its eager backward pass."""
        update, count = self.updates[i], len(after) - 1 - len(self.buffers[i])
        index = {id(parameter): k for k, parameter in enumerate(self.weights[0])}
        own = [self.weights[i][index[id(parameter)]] for parameter in reached]
        if [id(p) for p in self.weights[i] if p.requires_grad and p.grad is not None] != list(
            map(id, own)
        ):
            raise NotCapturedError(f"the loss of VAE {i} depends on different parameters")
        expected = [torch.as_tensor(parameter.grad) for parameter in own]
        check_close(f"gradient of VAE {i}", gradients, expected, tolerance)
        check_close(f"state of VAE {i}", after[count:-1], self.buffers[i], tolerance)
        start = clone_tensors(self.tensors(i)[:count])
        for parameter, gradient in zip(own, gradients, strict=True):
            parameter.grad = gradient
        update.step_eagerly()
        check_changes(f"update of VAE {i}", start, after[:count], self.tensors(i)[:count])
        update.optimizer.zero_grad(set_to_none=True)


class _EnsembleUpdate(Update):
    def compute_clip_factor(self, gradients: Sequence[Tensor], clip_norm: float) -> Tensor:
        factor = super().compute_clip_factor(gradients, clip_norm)
        # PyTorch 2.14 cannot fuse the norms of many with the updates that read them. Sorting is
        # not compiled, and so separates the two.
        return factor.reshape(1).sort().values[0]


def _check_memory(members: Sequence[tuple[VAE, Any, Any]]) -> None:
    """Raises a ``NotCapturedError`` for tensors that stacks would separate."""
    tensors = [t for vae, *_ in members for t in (*vae.parameters(), *vae.buffers())]
    addresses = [t.untyped_storage().data_ptr() for t in tensors if t.numel()]
    # The numbers of several objectives may be elements of one tensor.
    addresses += [t.data_ptr() for _, objective, _ in members for t in _tensors_of(objective)]
    if len(set(addresses)) < len(addresses):
        raise NotCapturedError("two tensors of VAEs or objectives share memory")


def _tensors_of(objective: Any) -> list[Tensor]:
    return [value for value in vars(objective).values() if isinstance(value, Tensor)]


def _identify(vae: VAE) -> list[int]:
    return list(map(id, (*vae.modules(), *vae.parameters(), *vae.buffers())))


def _call(i: int, inputs: Sequence[Tensor]) -> Call:
    x, *mask = (tensor[i] for tensor in inputs)
    return Call((x,), {"mask": mask[0]} if mask else {})


def _address(tensor: Tensor) -> tuple[int, int]:
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())
