"""The recording of machine code, with a stand-in for the GPU that this test does without."""

import contextlib

import pytest
import torch

from pyro_vae.compiled import cuda_graph


class Graph:
    """Repeats what was run while it was recorded, and puts the results where they were."""

    def replay(self):
        for place, value in zip(self.results, self.run(), strict=True):
            place.copy_(value)


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def gpu(monkeypatch):
    """Replaces what only a GPU has."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())


def test_a_processor_has_no_recording():
    def run(weight, x):
        return [weight * x]

    assert cuda_graph.record_graph(run, [torch.ones(2)], [torch.ones(2)]) is run


def test_a_recording_reads_its_arguments_and_changes_none(gpu):
    calls = []

    def run(weight, x):
        calls.append(1)
        weight.add_(1)
        return [(weight * x).sum(), weight * x]

    weight, first, second = torch.zeros(2), torch.ones(2), torch.tensor([2.0, 3.0])
    recording = cuda_graph.Recording(run, [weight], [first])
    recording.graph.run = lambda: run(weight, *recording.inputs)
    recording.graph.results = recording.results
    assert len(calls) == cuda_graph.WARM_UP_CALLS + 1
    weight.zero_()
    loss, gradient = recording(weight, second)
    assert loss == 5.0
    assert gradient.tolist() == [2.0, 3.0]
    again, after = recording(weight, first)
    assert (loss, again) == (5.0, 4.0)
    assert after is gradient
    assert first.tolist() == [1.0, 1.0]
    assert second.tolist() == [2.0, 3.0]
