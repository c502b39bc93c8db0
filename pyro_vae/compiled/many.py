"""One graph for a step of many models that differ in numbers only."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.compiled.check import check, check_changes
from pyro_vae.compiled.graph import Captured, NotCapturedError, capture, to_machine_code
from pyro_vae.compiled.stand_in import stand_in
from pyro_vae.compiled.state import OF_ALL, described
from pyro_vae.compiled.step import Settings, Step
from pyro_vae.compiled.tensors import copies
from pyro_vae.compiled.update import Update
from pyro_vae.vae import VAE

__all__ = ["ManySteps"]

OF_EACH_STEP = frozenset({"params", "lr", "initial_lr", "betas", "momentum"})
"""What the optimizers' groups may differ in: numbers that the graph reads anew."""

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
        NotCapturedError: If there is no such graph; all is then as before.
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
            [*vae.buffers(), *(v for v in vars(objective).values() if isinstance(v, Tensor))]
            for vae, objective in zip(vaes, objectives, strict=True)
        ]
        alike = zip(*map(self.tensors, range(len(vaes))), strict=True)
        self.stacks = {place(stack): stack for stack in map(stacked, alike)}
        self.held = [self.facts(i) for i in range(len(vaes))]
        self.known: dict[Hashable, Run] = {}
        self.reached: list[Tensor] = []

    def tensors(self, i: int) -> list[Tensor]:
        """Returns the tensors that a step of one VAE reads or changes; for all in one order."""
        update = self.updates[i]
        return [*self.weights[i], *update.tensors(), *self.others[i], update.scalars]

    def facts(self, i: int) -> list[Any]:
        """Returns what the graph holds of one VAE, objective and optimizer for good."""
        vae, objective, optimizer = self.crowd[i]
        return [*of_vae(vae), *of_objective(objective), *of_optimizer(optimizer)]

    def changed(self, i: int) -> bool:
        """Tells whether something that the graph holds for good is no longer what it was."""
        return self.facts(i) != self.held[i]

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
            self.known[key] = self.made(inputs)
        with torch.no_grad():
            return self.known[key](*inputs)[0]

    def made(self, inputs: Sequence[Tensor]) -> Run:
        """Returns the step for inputs of these shapes: machine code for the first, then the graph.

        Batches are all of one size, but for the last of an epoch, which is not worth compiling.
        """
        first = not self.known
        try:
            one, noises = self.one(inputs)
            noise = [inputs[0].new_empty(len(self.steps), *n.shape, dtype=n.dtype) for n in noises]
            mapped = self.mapped(one, [*inputs, *noise])
            run: Run = to_machine_code(mapped, [*inputs, *noise]) if first else mapped.graph
        except Exception as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise NotCapturedError(reason) from error

        def drawn(*given: Tensor) -> Sequence[Tensor]:
            for i, generator in enumerate(self.generators):
                for (fill, _, _, numbers), stack in zip(noises, noise, strict=True):
                    fill(stack[i], *numbers, generator=generator)
            return run(*mapped.lifted, *given, *noise)

        if first:
            self.verify(drawn, inputs)
        if any(map(self.changed, range(len(self.steps)))) and first:
            raise NotCapturedError("a step sets a number of a module or an objective anew")
        return drawn

    def one(self, inputs: Sequence[Tensor]) -> tuple[Captured, list["Noise"]]:
        """Returns the graph of a step of the first VAE, and the noise that is the last inputs."""
        self.settings.divide_by = inputs[0].shape[1]
        args, kwargs = arguments(0, inputs)
        captured, self.reached = self.steps[0].graph(*args, **kwargs)
        return captured, noise_as_inputs(captured)

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
        with torch.no_grad():
            results = copies(run(*inputs))
        found = [copies(self.tensors(i)) for i in range(len(self.steps))]
        self.put_back(before)
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)
        try:
            for i, step in enumerate(self.steps):
                self.verify_one(i, step, inputs, [r[i] for r in results], found[i])
        finally:
            self.put_back(before)

    def verify_one(
        self,
        i: int,
        step: Step,
        inputs: Sequence[Tensor],
        results: Sequence[Tensor],
        found: Sequence[Tensor],
    ) -> None:
        """Compares loss, gradients, buffers and update of one VAE with those of its eager step."""
        start = copies(self.tensors(i))
        with torch.random.fork_rng([]):
            torch.set_rng_state(self.generators[i].get_state())
            args, kwargs = arguments(i, inputs)
            loss = step.backward(*args, **kwargs)
        reached = [p for p in self.weights[i] if p.grad is not None]
        of = {id(p): g for p, g in zip(self.reached, results[1:], strict=True)}
        gradients = [of[id(p)] for p in self.weights[0] if id(p) in of]
        who = f"VAE {i}'s"
        check(f"loss, {who},", results[:1], [loss])
        check(f"gradient, {who},", gradients, [torch.as_tensor(p.grad) for p in reached])
        changed = len(found) - 1 - len(self.others[i])
        check(f"state, {who},", found[changed:-1], self.others[i])
        for parameter, gradient in zip(reached, gradients, strict=True):
            parameter.grad = gradient
        step_of = self.updates[i]
        step_of.eager()
        ended = self.tensors(i)[:changed]
        check_changes(f"update, {who},", start[:changed], found[:changed], ended)
        step_of.optimizer.zero_grad(set_to_none=True)


class UpdateOfMany(Update):
    """An update that can be mapped over the tensors of many."""

    def factor(self, gradients: Sequence[Tensor], clip_norm: float) -> Tensor:
        """Returns what gradients are to be multiplied by, a scalar."""
        factor = super().factor(gradients, clip_norm)
        # PyTorch 2.14 cannot fuse the norms of many with the updates that read them; sorting, which
        # it does not compile, stands between.
        return factor.reshape(1).sort().values[0]


def arguments(i: int, inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Returns the arguments of the step of one VAE."""
    x, *mask = (tensor[i] for tensor in inputs)
    return (x,), {"mask": mask[0]} if mask else {}


class Noise(NamedTuple):
    """Noise that a graph draws.

    Attributes:
        fill: Draws it into a tensor, as ``fill(tensor, *numbers, generator=...)``.
        shape: Its shape.
        dtype: Its dtype.
        numbers: The numbers of its distribution.
    """

    fill: Callable[..., Tensor]
    shape: torch.Size
    dtype: torch.dtype
    numbers: tuple[float, ...]


FILLS = {
    torch.ops.aten.randn.default: torch.ops.aten.normal_.default,
    torch.ops.aten.randn_like.default: torch.ops.aten.normal_.default,
    torch.ops.aten.rand.default: torch.ops.aten.uniform_.default,
    torch.ops.aten.rand_like.default: torch.ops.aten.uniform_.default,
}
"""How noise that is a new tensor is drawn into one that is there."""


def noise_as_inputs(captured: Captured) -> list[Noise]:
    """Makes inputs of the noise that a graph draws, in the order in which it is drawn.

    Raises:
        NotCapturedError: If the distribution of noise depends on tensors.
    """
    graph = captured.graph.graph
    noises: list[Noise] = []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.nodes):
        if node.op != "call_function" or not draws(node.target):
            continue
        noises.append(noise_of(node))
        with graph.inserting_after(last):
            last = graph.placeholder(f"noise_{len(noises) - 1}")
        node.replace_all_uses_with(last)
        graph.erase_node(node)
    captured.graph.recompile()
    return noises


def draws(target: Any) -> bool:
    """Tells whether an operation draws noise."""
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


def noise_of(node: Any) -> Noise:
    """Returns what noise a node draws."""
    value = node.meta["val"]
    if node.target in FILLS:
        return Noise(FILLS[node.target], value.shape, value.dtype, ())
    into, *numbers = node.args or (None,)
    fresh = str(getattr(into, "target", "")).startswith(("aten.empty", "aten.new_empty"))
    if not fresh or any(hasattr(number, "op") for number in numbers):
        raise NotCapturedError(f"the noise of {node.target} depends on the values of tensors")
    return Noise(node.target, value.shape, value.dtype, tuple(numbers))


def check_alike(
    vaes: Sequence[VAE], objectives: Sequence[Any], optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Raises a ``NotCapturedError`` for what differs in more than a graph reads anew."""
    if not Update(optimizers[0], None).captured:
        raise NotCapturedError(
            f"the update of {type(optimizers[0]).__name__} cannot be part of a graph here"
        )
    check_memory(vaes, objectives)
    for vae, optimizer in zip(vaes, optimizers, strict=True):
        theirs = [id(p) for group in optimizer.param_groups for p in group["params"]]
        if theirs != [id(p) for p in vae.parameters() if p.requires_grad]:
            raise NotCapturedError(
                "an optimizer has other parameters than its VAE, or another order"
            )
    for objective in objectives:
        if stand_in(objective) is not objective and objective.vectorize_particles:
            raise NotCapturedError("Pyro's vectorized particles draw noise to find the plates")
    told = {
        "VAE": [list(of_vae(vae)) for vae in vaes],
        "objective": [list(of_objective(objective)) for objective in objectives],
        "optimizer": [list(of_optimizer(optimizer)) for optimizer in optimizers],
    }
    for what, facts in told.items():
        for i, other in enumerate(facts):
            for one, two in zip_longest(facts[0], other):
                if one != two:
                    raise NotCapturedError(f"{what} {i} has {two} where the first has {one}")


def check_memory(vaes: Sequence[VAE], objectives: Sequence[Any]) -> None:
    """Raises a ``NotCapturedError`` for tensors that stacks would tear from others.

    Each tensor becomes a view of a stack; what else looks at its memory would not see it change.
    """
    owner: dict[int, int] = {}
    for vae, objective in zip(vaes, objectives, strict=True):
        plain = [value for module in vae.modules() for value in vars(module).values()]
        found = [*vae.parameters(), *vae.buffers(), *plain, *vars(objective).values()]
        for tensor in found:
            if isinstance(tensor, Tensor) and tensor.numel():
                place_of = tensor.untyped_storage().data_ptr()
                if owner.setdefault(place_of, id(tensor)) != id(tensor):
                    raise NotCapturedError("two tensors share memory")
    tensors = [v for o in objectives for v in vars(o).values() if isinstance(v, Tensor)]
    if len(set(map(id, tensors))) != len(tensors):
        raise NotCapturedError("two objectives share a tensor")
    for vae in vaes:
        for module in vae.modules():
            for key, value in vars(module).items():
                if key not in OF_ALL and isinstance(value, Tensor):
                    raise NotCapturedError(f"the tensor {key} of a module is no buffer")


def of_vae(vae: VAE) -> Iterator[tuple[Any, ...]]:
    """Yields what a graph holds of a VAE for good."""
    for name, module in vae.named_modules():
        yield name, type(module).__name__, module.training
        for key, value in vars(module).items():
            if key not in (*OF_ALL, "recipe") and (fixed := described(value)) is not None:
                yield name, key, fixed
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield name, key, tuple(tensor.shape), tensor.dtype, tensor.requires_grad


def of_objective(objective: Any) -> Iterator[tuple[Any, ...]]:
    """Yields what a graph holds of an objective for good."""
    yield "", type(objective).__name__
    for key, value in vars(objective).items():
        if isinstance(value, Tensor):
            yield key, tuple(value.shape), value.dtype
        elif (fixed := described(value)) is not None:
            yield key, fixed


def of_optimizer(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Any, ...]]:
    """Yields what a graph holds of an optimizer for good."""
    yield "", type(optimizer).__name__
    for i, group in enumerate(optimizer.param_groups):
        yield i, "parameters", len(group["params"])
        yield i, "momentum", bool(group.get("momentum"))
        yield from ((i, k, v) for k, v in group.items() if k not in OF_EACH_STEP)


def stacked(alike: Sequence[Tensor]) -> Tensor:
    """Returns a stack of tensors, of which they become views."""
    stack = torch.stack([tensor.detach() for tensor in alike])
    for tensor, view in zip(alike, stack, strict=True):
        tensor.data = view
    return stack


def place(tensor: Tensor) -> tuple[int, int]:
    """Returns where a tensor lies in memory."""
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())
