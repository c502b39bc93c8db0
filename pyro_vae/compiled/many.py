"""One graph for a step of many models that differ in numbers only."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pyro
import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from pyro_vae.compiled.alike import Facts, check_alike, different, facts_of, tensors_of
from pyro_vae.compiled.call import Call
from pyro_vae.compiled.check import check, check_changes
from pyro_vae.compiled.graph import Captured, NotCapturedError, capture, to_machine_code
from pyro_vae.compiled.noise import Noise, noise_as_inputs
from pyro_vae.compiled.step import Settings, Step
from pyro_vae.compiled.tensors import copies
from pyro_vae.compiled.update import Update
from pyro_vae.vae import VAE

__all__ = ["ManySteps"]

Run = Callable[..., Sequence[Tensor]]


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
        updates = [UpdateOfMany(optimizer, clip_norm) for optimizer in optimizers]
        self.settings = Settings("mkl", "float32", True, 1.0)
        self.steps = [
            Step(objective, vae.model, vae.guide, None, self.settings, update)
            for vae, objective, update in zip(vaes, objectives, updates, strict=True)
        ]
        self.updates = updates
        for vae, update in zip(vaes, updates, strict=True):
            update.prepare([p for p in vae.parameters() if p.requires_grad])
        self.weights = [list(vae.parameters()) for vae in vaes]
        self.others = [
            [*vae.buffers(), *tensors_of(objective)]
            for vae, objective in zip(vaes, objectives, strict=True)
        ]
        self.stacks = {place(stack): stack for stack in self.stacked() if stack.numel()}
        self.held = [self.facts(i) for i in range(len(vaes))]
        self.known: dict[Hashable, Run] = {}
        self.reached: list[Tensor] = []

    def tensors(self, i: int) -> list[Tensor]:
        """Returns the tensors that a step of one VAE reads or changes; for all in one order."""
        update = self.updates[i]
        return [*self.weights[i], *update.tensors(), *self.others[i], update.scalars]

    def stacked(self) -> list[Tensor]:
        """Returns stacks of the tensors of all, which become views of them."""
        alike = list(zip(*map(self.tensors, range(len(self.steps))), strict=True))
        # Before any tensor is moved, as there may be too little memory.
        stacks = [torch.stack([tensor.detach() for tensor in tensors]) for tensors in alike]
        for tensors, stack in zip(alike, stacks, strict=True):
            for tensor, view in zip(tensors, stack, strict=True):
                tensor.data = view
        return stacks

    def facts(self, i: int) -> list[Facts]:
        """Returns what the graph holds of one VAE, objective and optimizer for good."""
        vae, objective, _ = self.crowd[i]
        named = (*vae.named_parameters(), *vae.named_buffers(), *vars(objective).items())
        which = {name: id(value) for name, value in named if isinstance(value, Tensor)}
        return [*map(facts_of, self.crowd[i]), which]

    def changed(self, i: int) -> str | None:
        """Returns the name of something that the graph holds for good and that is another now."""
        pairs = zip(self.held[i], self.facts(i), strict=True)
        return next(filter(None, (different(held, now) for held, now in pairs)), None)

    def check_settled(self) -> None:
        """Raises a ``NotCapturedError`` if a step has set something anew that the graph holds."""
        for i in range(len(self.steps)):
            if name := self.changed(i):
                raise NotCapturedError(f"a step of VAE {i} sets {name} anew")

    def release(self, i: int) -> None:
        """Gives a VAE tensors of its own again; what the steps to come do, it no longer sees."""
        for tensor in self.tensors(i):
            tensor.data = tensor.data.clone()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Makes a step of each VAE.

        Arguments:
            inputs: A batch for each, ``(vaes, rows, *event_shape)``, and its mask, if there is one.

        Returns:
            The loss of each, ``(vaes,)``.

        Raises:
            NotCapturedError: In the first step.
        """
        for update in self.updates:
            update.set_scalars()
        key = tuple(tensor.shape for tensor in inputs)
        if key not in self.known:
            # Pyro's checks of model, guide and shapes pay once.
            with pyro.validation_enabled(is_validation_enabled() and not self.known):
                self.known[key] = self.made(inputs)
        with torch.no_grad():
            return self.known[key](*inputs)[0]

    def made(self, inputs: Sequence[Tensor]) -> Run:
        """Returns the step for inputs of these shapes: machine code for the first, then the graph.

        Batches are all of one size, but for the last of an epoch, which is not worth compiling.
        """
        self.settings.divide_by = inputs[0].shape[1]
        call = arguments(0, inputs)
        # What the VAE itself raises is no fault of the graph.
        self.reached = self.steps[0].tried(call)
        self.check_settled()
        try:
            drawn = self.drawn(call, inputs)
        except Exception as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise NotCapturedError(reason) from error
        self.verify(drawn, inputs)
        self.check_settled()
        return drawn

    def drawn(self, call: Call, inputs: Sequence[Tensor]) -> Run:
        """Returns a step that draws the noise of each, given the call of the first."""
        one = self.steps[0].graph(call, self.reached)
        noises = noise_as_inputs(one)
        noise = [inputs[0].new_empty(len(self.steps), *n.shape, dtype=n.dtype) for n in noises]
        mapped = self.mapped(one, [*inputs, *noise])
        run: Run = mapped.graph if self.known else to_machine_code(mapped, [*inputs, *noise])

        def drawn(*given: Tensor) -> Sequence[Tensor]:
            self.draw(noises, noise)
            return run(*mapped.lifted, *given, *noise)

        return drawn

    def draw(self, noises: Sequence[Noise], stacks: Sequence[Tensor]) -> None:
        """Draws noise into stacks, for each VAE from its own generator."""
        for i, generator in enumerate(self.generators):
            for (fill, _, _, numbers), stack in zip(noises, stacks, strict=True):
                fill(stack[i], *numbers, generator=generator)

    def mapped(self, one: Captured, inputs: Sequence[Tensor]) -> Captured:
        """Returns the graph of one VAE, mapped over the tensors of all."""
        tensors = [self.stacks.get(place(tensor), tensor) for tensor in one.lifted]
        dims = [0 if place(tensor) in self.stacks else None for tensor in one.lifted]
        over_all = torch.func.vmap(one.graph, in_dims=(*dims, *[0] * len(inputs)))
        with torch.no_grad():
            before = copies(self.stacks.values())
            try:
                return capture(lambda *given: over_all(*tensors, *given), inputs)
            finally:
                self.put_back(before)

    @torch.no_grad()
    def put_back(self, tensors: Sequence[Tensor]) -> None:
        """Goes back to copies of the stacks."""
        for stack, copy in zip(self.stacks.values(), tensors, strict=True):
            stack.copy_(copy)

    def verify(self, run: Run, inputs: Sequence[Tensor]) -> None:
        """Compares the graph with an eager step of each VAE, and leaves no trace.

        Raises:
            NotCapturedError: If it gives something else.
        """
        before = copies(self.stacks.values())
        states = [generator.get_state() for generator in self.generators]
        try:
            with torch.no_grad():
                results = copies(run(*inputs))
            found = [copies(self.tensors(i)) for i in range(len(self.steps))]
            self.put_back(before)
            for i in range(len(self.steps)):
                self.verify_one(i, states[i], inputs, [r[i] for r in results], found[i])
        finally:
            self.put_back(before)
            for generator, state in zip(self.generators, states, strict=True):
                generator.set_state(state)

    def verify_one(
        self,
        i: int,
        noise: Tensor,
        inputs: Sequence[Tensor],
        results: Sequence[Tensor],
        found: Sequence[Tensor],
    ) -> None:
        """Compares loss, gradients, buffers and update of one VAE with those of its eager step."""
        start = copies(self.tensors(i))
        call = arguments(i, inputs)
        with torch.random.fork_rng([]):
            torch.set_rng_state(noise)
            loss = self.steps[i].backward(*call.args, **call.kwargs)
        reached, gradients = self.paired(i, results[1:])
        expected = [torch.as_tensor(parameter.grad) for parameter in reached]
        check(f"loss of VAE {i}", results[:1], [loss])
        check(f"gradient of VAE {i}", gradients, expected)
        changed = len(found) - 1 - len(self.others[i])
        check(f"state of VAE {i}", found[changed:-1], self.others[i])
        for parameter, gradient in zip(reached, gradients, strict=True):
            parameter.grad = gradient
        update = self.updates[i]
        update.eager()
        ended = self.tensors(i)[:changed]
        check_changes(f"update of VAE {i}", start[:changed], found[:changed], ended)
        update.optimizer.zero_grad(set_to_none=True)

    def paired(self, i: int, found: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the parameters of one VAE that have a gradient, and what was found for these."""
        of = dict(zip(map(id, self.reached), found, strict=True))
        reached: list[Tensor] = []
        gradients = []
        for own, first in zip(self.weights[i], self.weights[0], strict=True):
            if (own.grad is not None) != (id(first) in of):
                raise NotCapturedError(f"the loss of VAE {i} depends on other parameters")
            if own.grad is not None:
                reached.append(own)
                gradients.append(of[id(first)])
        return reached, gradients


class UpdateOfMany(Update):
    """An update that can be mapped over the tensors of many."""

    def factor(self, gradients: Sequence[Tensor], clip_norm: float) -> Tensor:
        """Returns what gradients are to be multiplied by, a scalar."""
        factor = super().factor(gradients, clip_norm)
        # PyTorch 2.14 cannot fuse the norms of many with the updates that read them; sorting, which
        # it does not compile, stands between.
        return factor.reshape(1).sort().values[0]


def arguments(i: int, inputs: Sequence[Tensor]) -> Call:
    """Returns the call of the step of one VAE."""
    x, *mask = (tensor[i] for tensor in inputs)
    return Call((x,), {"mask": mask[0]} if mask else {})


def place(tensor: Tensor) -> tuple[int, int]:
    """Returns where a tensor lies in memory."""
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())
