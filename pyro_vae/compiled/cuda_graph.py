"""Machine code recorded once as a CUDA graph, and replayed: no launch waits for Python."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["recorded"]

WARM_UP = 3
"""Calls before the recording, in which libraries choose algorithms and make their workspaces."""


def recorded(
    run: Callable[..., Sequence[Tensor]], lifted: Sequence[Tensor], tensors: Sequence[Tensor]
) -> Callable[..., Sequence[Tensor]]:
    """Returns machine code as a recording, or as it is if its tensors are not all on one GPU.

    Parameters and other lifted tensors are read and changed where they are. Noise is drawn anew by
    each replay, since PyTorch's generator knows of the recording.

    Arguments:
        run: The machine code, called as ``run(*lifted, *tensors)``.
        lifted: The tensors that are the same in every call.
        tensors: Those that are not.
    """
    devices = {tensor.device for tensor in (*lifted, *tensors)}
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        return run
    return Recording(run, lifted, tensors)


class Recording:
    """A CUDA graph of machine code.

    Arguments:
        run: The machine code.
        lifted: The tensors that are the same in every call.
        tensors: Those that are not, which get places of the recording's own.
    """

    def __init__(
        self,
        run: Callable[..., Sequence[Tensor]],
        lifted: Sequence[Tensor],
        tensors: Sequence[Tensor],
    ) -> None:
        self.places = [tensor.clone() for tensor in tensors]
        self.lifted = len(lifted)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside), torch.no_grad():
            for _ in range(WARM_UP):
                run(*lifted, *self.places)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph), torch.no_grad():
            self.results = list(run(*lifted, *self.places))

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Replays the graph.

        Returns:
            The loss, in a tensor of its own, and the gradients, where the next replay writes to.
        """
        for place, tensor in zip(self.places, inputs[self.lifted :], strict=True):
            place.copy_(tensor)
        self.graph.replay()
        loss, *gradients = self.results
        return [loss.clone(), *gradients]
