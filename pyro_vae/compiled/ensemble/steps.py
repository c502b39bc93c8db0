"""One graph for a step of many models that differ in numbers only."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from pyro_vae.compiled.eager_step import EagerStep, Settings
from pyro_vae.compiled.ensemble.alike import (
    Facts,
    check_alike,
    check_facts,
    different,
    facts_of,
    names_of,
    of_objective,
    of_optimizer,
    tensors_of,
)
from pyro_vae.compiled.graph import Captured, NotCapturedError, capture, to_machine_code
from pyro_vae.compiled.graph_builder import GraphBuilder
from pyro_vae.compiled.inspection import Look
from pyro_vae.compiled.noise import noise_as_inputs
from pyro_vae.compiled.optimizer_step import Update
from pyro_vae.compiled.signature import Call
from pyro_vae.compiled.tensors import copies
from pyro_vae.compiled.verify import check, check_changes
from pyro_vae.vae.vae import VAE

__all__ = ["ManySteps"]

_TOLERANCE_AGAIN = 0.01
"""Up to which part of a norm the results of a later step may differ from the eager ones.

Rounding may switch a unit on or off, of which among many steps there will be some.
"""

_Run = Callable[..., Sequence[Tensor]]


class _Known(NamedTuple):
    """A step for inputs of some shapes.

    Attributes:
        run: The step, called with a batch for each VAE; returns losses and gradients of all.
        reached: The parameters of the first VAE that the gradients are of.
    """

    run: _Run
    reached: Sequence[Tensor]


class _Given(NamedTuple):
    """What a step of one VAE is made with, to be compared.

    Attributes:
        noise: The state of its generator.
        call: Its arguments.
        least: What part of a norm may differ at least.
    """

    noise: Tensor
    call: Call
    least: float


class ManySteps:
    """A step of several VAEs at once: that of the first as a graph, mapped over the tensors of all.

    Weights, buffers, the optimizers' states, and the objectives' numbers that are tensors are
    stacked. The tensors of each VAE become views of the stacks, so that each is up to date after
    every step. Noise is drawn outside of the graph, for each from a generator of its own, in the
    order of a step alone: but for rounding, each VAE is trained as if it were alone. Gradients are
    those of the mean over the rows.

    Arguments:
        vaes: VAEs that are made alike.
        objectives: An objective for each, alike but for scalar tensors.
        optimizers: An optimizer for each, alike but for learning rates and betas or momentum.
        generators: Where the noise of each comes from.
        clip_norm: The norm to which the gradient of each VAE is clipped.

    Attributes:
        going: The places of the VAEs that have not been released.

    Raises:
        NotCapturedError: If there is no such graph.
    """

    def __init__(
        self,
        vaes: Sequence[VAE],
        objectives: Sequence[Any],
        optimizers: Sequence[torch.optim.Optimizer],
        generators: Sequence[torch.Generator],
        *,
        clip_norm: float | None,
    ) -> None:
        check_alike(vaes, objectives, optimizers)
        self.crowd = list(zip(vaes, objectives, optimizers, strict=True))
        self.generators = generators
        self.settings = Settings("mkl", "float32", strict=True, divide_by=1.0, validate=False)
        self.updates = [_UpdateOfMany(optimizer, clip_norm) for optimizer in optimizers]
        self.steps = [
            EagerStep(objective, vae.model, vae.guide, None, self.settings, update)
            for vae, objective, update in zip(vaes, objectives, self.updates, strict=True)
        ]
        for vae, update in zip(vaes, self.updates, strict=True):
            update.prepare([p for p in vae.parameters() if p.requires_grad])
        self.weights = [list(vae.parameters()) for vae in vaes]
        self.others = [
            [*vae.buffers(), *tensors_of(objective)]
            for vae, objective in zip(vaes, objectives, strict=True)
        ]
        self.going = list(range(len(vaes)))
        self.stacks: dict[tuple[int, int], Tensor] = {}
        self.held: dict[int, Facts] = {}
        self.known: dict[Hashable, _Known] = {}

    def tensors(self, i: int) -> list[Tensor]:
        """Returns the tensors that a step of one VAE reads or changes; for all in one order."""
        update = self.updates[i]
        return [*self.weights[i], *update.tensors(), *self.others[i], update.scalars]

    def stack(self) -> None:
        """Makes views of stacks of the tensors of all; to be undone by :meth:`release`."""
        alike = list(zip(*map(self.tensors, self.going), strict=True))
        # Before any tensor is moved, as there may be too little memory.
        stacks = [torch.stack([tensor.detach() for tensor in tensors]) for tensors in alike]
        self.stacks = {_place(stack): stack for stack in stacks if stack.numel()}
        for tensors, stack in zip(alike, stacks, strict=True):
            for tensor, view in zip(tensors, stack, strict=True):
                tensor.data = view
        self.held = {i: self.settled(i) for i in self.going}

    def release(self, i: int) -> None:
        """Gives a VAE tensors of its own again; what the steps to come do, it no longer sees."""
        self.going.remove(i)
        if self.stacks:
            for tensor in self.tensors(i):
                tensor.data = tensor.data.clone()

    def places(self, i: int) -> Facts:
        """Returns which tensors one VAE, its objective and its optimizer have, and where."""
        vae, objective, _ = self.crowd[i]
        state = ((f"state {k}", tensor) for k, tensor in enumerate(self.updates[i].tensors()))
        of = ((f"objective.{name}", value) for name, value in vars(objective).items())
        own = (*vae.named_parameters(), *vae.named_buffers(), *of, *state)
        return {n: ((id(t), _place(t)), t) for n, t in own if isinstance(t, Tensor)}

    def settled(self, i: int) -> Facts:
        """Returns what stays as it is while one VAE is trained: its tensors, and settings."""
        vae, objective, optimizer = self.crowd[i]
        look = Look(names_of(vae, objective))
        return self.places(i) | of_objective(objective, look) | of_optimizer(optimizer, look)

    def check_settled(self) -> None:
        """Raises a ``NotCapturedError`` if something between two steps has set something anew."""
        for i in self.going:
            if name := different(self.held[i], self.settled(i)):
                raise NotCapturedError(f"{name} of VAE {i} is set anew between two steps")

    @contextmanager
    def unchanged(self, which: Sequence[int], *, lazily: bool = False) -> Iterator[None]:
        """Raises a ``NotCapturedError`` if steps within set anew what a graph holds for good.

        Arguments:
            which: The VAEs that make steps.
            lazily: Whether settings may change, but not which tensors there are.
        """

        def seen(i: int) -> Facts:
            return self.places(i) if lazily else facts_of(*self.crowd[i]) | self.places(i)

        before = {i: seen(i) for i in which}
        yield
        for i, known in before.items():
            if name := different(known, seen(i)):
                raise NotCapturedError(f"a step of VAE {i} sets {name} anew")

    def __call__(self, *inputs: Tensor, compare: bool = False) -> Tensor:
        """Makes a step of each VAE.

        Arguments:
            inputs: A batch for each, ``(vaes, rows, *event_shape)``, and its mask, if there is one.
            compare: Whether to compare the step with an eager one of each VAE, as the first of its
                kind always is.

        Returns:
            The loss of each, ``(vaes,)``.

        Raises:
            NotCapturedError: If there is no such graph, or no longer.
        """
        for update in self.updates:
            update.set_scalars()
        key = tuple(tensor.shape for tensor in inputs)
        if compare or key not in self.known:
            self.settings.divide_by = inputs[0].shape[1]
            # Pyro's checks of model, guide and shapes pay once.
            with pyro.validation_enabled(is_validation_enabled() and not self.known):
                again = key in self.known
                known = self.known[key] if again else self.made(inputs)
                self.verify(known, inputs, _TOLERANCE_AGAIN if again else 0.0)
            self.known[key] = known
        with torch.no_grad():
            return self.known[key].run(*inputs)[0]

    def made(self, inputs: Sequence[Tensor]) -> _Known:
        """Returns the step for inputs of these shapes: machine code for the first, then the graph.

        Batches are all of one size, but for the last of an epoch, which is not worth compiling.
        """
        call = _arguments(0, inputs)
        # What the VAEs themselves raise is no fault of the graph.
        self.warm_up(inputs)
        with self.unchanged([0]):
            reached = self.steps[0].try_eagerly(call)
        try:
            return _Known(self.mapped(call, reached, inputs), reached)
        except Exception as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise NotCapturedError(reason) from error

    def warm_up(self, inputs: Sequence[Tensor]) -> None:
        """Lets each VAE make what it makes lazily, which has to be alike, too."""
        with self.unchanged(self.going, lazily=True):
            for i in self.going:
                self.steps[i].try_eagerly(_arguments(i, inputs))
        check_facts([facts_of(*self.crowd[i]) for i in self.going])
        self.held = {i: self.settled(i) for i in self.going}

    def mapped(self, call: Call, reached: list[Tensor], inputs: Sequence[Tensor]) -> _Run:
        """Returns the step of all, given the call of the first and what it gives gradients of."""
        one = GraphBuilder(self.steps[0]).capture(call, reached)
        noises = noise_as_inputs(one)
        drawn = [noise.stack(len(self.steps)) for noise in noises]
        graph = self.over_all(one, [*inputs, *drawn])
        run: _Run = graph.graph if self.known else to_machine_code(graph, [*inputs, *drawn])

        def step(*given: Tensor) -> Sequence[Tensor]:
            for i, generator in enumerate(self.generators):
                for noise, stack in zip(noises, drawn, strict=True):
                    noise.fill(stack[i], *noise.numbers, generator=generator)
            return run(*graph.lifted, *given, *drawn)

        return step

    def over_all(self, one: Captured, inputs: Sequence[Tensor]) -> Captured:
        """Returns the graph of one VAE, mapped over the tensors of all."""
        tensors = [self.stacks.get(_place(tensor), tensor) for tensor in one.lifted]
        dims = [0 if _place(tensor) in self.stacks else None for tensor in one.lifted]
        each = torch.func.vmap(one.graph, in_dims=(*dims, *[0] * len(inputs)))
        with torch.no_grad():
            before = copies(self.stacks.values())
            try:
                return capture(lambda *given: each(*tensors, *given), inputs)
            finally:
                self.put_back(before)

    @torch.no_grad()
    def put_back(self, tensors: Sequence[Tensor]) -> None:
        """Goes back to copies of the stacks."""
        for stack, copy in zip(self.stacks.values(), tensors, strict=True):
            stack.copy_(copy)

    def verify(self, known: _Known, inputs: Sequence[Tensor], least: float) -> None:
        """Compares a step with an eager one of each VAE, and leaves no trace in tensors.

        Arguments:
            known: The step.
            inputs: Its inputs.
            least: What part of a norm may differ at least.

        Raises:
            NotCapturedError: If it gives something else.
        """
        before = copies(self.stacks.values())
        states = [generator.get_state() for generator in self.generators]
        try:
            with torch.no_grad():
                results = copies(known.run(*inputs))
            found = [copies(self.tensors(i)) for i in range(len(self.steps))]
            self.put_back(before)
            with self.unchanged(self.going):
                for i in self.going:
                    given = _Given(states[i], _arguments(i, inputs), least)
                    self.verify_one(i, given, known, [r[i] for r in results], found[i])
        finally:
            self.put_back(before)
            for generator, state in zip(self.generators, states, strict=True):
                generator.set_state(state)

    def verify_one(
        self,
        i: int,
        given: _Given,
        known: _Known,
        results: Sequence[Tensor],
        found: Sequence[Tensor],
    ) -> None:
        """Compares loss, gradients, buffers and update of one VAE with those of its eager step."""
        start = copies(self.tensors(i))
        with torch.random.fork_rng([]):
            torch.set_rng_state(given.noise)
            loss = self.steps[i].backward(*given.call.args, **given.call.kwargs)
        reached, gradients = self.paired(i, known, results[1:])
        expected = [torch.as_tensor(parameter.grad) for parameter in reached]
        changed = len(found) - 1 - len(self.others[i])
        check(f"loss of VAE {i}", results[:1], [loss], given.least)
        check(f"gradient of VAE {i}", gradients, expected, given.least)
        check(f"state of VAE {i}", found[changed:-1], self.others[i], given.least)
        for parameter, gradient in zip(reached, gradients, strict=True):
            parameter.grad = gradient
        update = self.updates[i]
        update.eager()
        ended = self.tensors(i)[:changed]
        check_changes(f"update of VAE {i}", start[:changed], found[:changed], ended)
        update.optimizer.zero_grad(set_to_none=True)

    def paired(
        self, i: int, known: _Known, found: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the parameters of one VAE that have a gradient, and what was found for these."""
        of = dict(zip(map(id, known.reached), found, strict=True))
        reached: list[Tensor] = []
        gradients = []
        for own, first in zip(self.weights[i], self.weights[0], strict=True):
            has_gradient = own.requires_grad and own.grad is not None
            if has_gradient != (id(first) in of):
                raise NotCapturedError(f"the loss of VAE {i} depends on other parameters")
            if has_gradient:
                reached.append(own)
                gradients.append(of[id(first)])
        return reached, gradients


class _UpdateOfMany(Update):
    """An update that can be mapped over the tensors of many."""

    def factor(self, gradients: Sequence[Tensor], clip_norm: float) -> Tensor:
        """Returns what gradients are to be multiplied by, a scalar."""
        factor = super().factor(gradients, clip_norm)
        # PyTorch 2.14 cannot fuse the norms of many with the updates that read them; sorting, which
        # it does not compile, stands between.
        return factor.reshape(1).sort().values[0]


def _arguments(i: int, inputs: Sequence[Tensor]) -> Call:
    """Returns the call of the step of one VAE."""
    x, *mask = (tensor[i] for tensor in inputs)
    return Call((x,), {"mask": mask[0]} if mask else {})


def _place(tensor: Tensor) -> tuple[int, int]:
    """Returns where a tensor lies in memory."""
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())
