"""Graphs of evaluations without machine code."""

from functools import partial

from pyro_vae.compiled.inference import CompiledFunction
from pyro_vae.evaluate import scoring

__all__ = ["count_graph_calls"]


def count_graph_calls(monkeypatch):
    """Makes evaluations run their graphs eagerly; returns a list that grows with each call."""
    calls = []

    def run_graph(graph, inputs):
        def run(*tensors):
            calls.append(tensors)
            return graph(*tensors)

        return run

    monkeypatch.setattr(scoring, "CompiledFunction", partial(CompiledFunction, backend=run_graph))
    return calls
