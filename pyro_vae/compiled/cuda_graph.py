"""Compiled functions recorded once as a CUDA graph and replayed, without launches from Python."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["record_graph"]

WARM_UP_CALLS = 3
"""Calls before the recording, in which libraries choose algorithms and allocate workspaces."""


def record_graph(
    run: Callable[..., Sequence[Tensor]], lifted: Sequence[Tensor], tensors: Sequence[Tensor]
) -> Callable[..., Sequence[Tensor]]:
    """Records a function as a CUDA graph if all of its tensors are on one GPU.

    Otherwise the function is returned unchanged. Parameters and other lifted tensors are read and
    changed in place. Each replay draws new noise, because PyTorch's generator supports CUDA graphs.

    Arguments:
        run: The compiled function, called as ``run(*lifted, *tensors)``.
        lifted: The tensors that are the same in every call.
        tensors: The other tensors.
    """
    devices = {tensor.device for tensor in (*lifted, *tensors)}
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        return run
    return Recording(run, lifted, tensors)


class Recording:
    """A CUDA graph of a compiled function.

    Arguments:
        run: The compiled function.
        lifted: The tensors that are the same in every call.
        tensors: The other tensors, which each replay reads from copies in fixed memory.
    """

    def __init__(
        self,
        run: Callable[..., Sequence[Tensor]],
        lifted: Sequence[Tensor],
        tensors: Sequence[Tensor],
    ) -> None:
        self.inputs = [tensor.clone() for tensor in tensors]
        self.num_lifted = len(lifted)
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream), torch.no_grad():
            for _ in range(WARM_UP_CALLS):
                run(*lifted, *self.inputs)
        torch.cuda.current_stream().wait_stream(side_stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph), torch.no_grad():
            self.results = list(run(*lifted, *self.inputs))

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        """Replays the graph.

        Returns:
            The loss, in new memory, and the gradients, which the next replay overwrites.
        """
        for own, tensor in zip(self.inputs, tensors[self.num_lifted :], strict=True):
            own.copy_(tensor)
        self.graph.replay()
        loss, *gradients = self.results
        return [loss.clone(), *gradients]
