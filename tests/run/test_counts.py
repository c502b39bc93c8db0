"""What a run computes, counted: decoded rows of each figure, graphs, and their operations."""

from collections import Counter

import pytest
import torch

import pyro_vae
from helpers.graphs import count_graph_calls
from pyro_vae import VAE, config, data, evaluate, objectives
from pyro_vae.compiled import inference
from pyro_vae.report import figures
from pyro_vae.report.latents import Latents
from pyro_vae.report.trained_run import TrainedRun
from pyro_vae.run import experiment
from pyro_vae.training.single import FitResult


@pytest.fixture
def decoded(monkeypatch):
    """Counts decoded rows by the function that asks for them, as a hook of a decoder."""
    counts, current = Counter(), ["other"]

    def named(owner, attribute, name):
        original = getattr(owner, attribute)

        def wrapper(*args, **kwargs):
            current.append(name)
            try:
                return original(*args, **kwargs)
            finally:
                current.pop()

        monkeypatch.setattr(owner, attribute, wrapper)

    named(evaluate, "log_evidence", "evidence")
    named(evaluate, "elbo", "elbo")
    named(experiment, "_held_out_objective", "objective")
    named(figures, "draw_figures", "report")

    def count(module, inputs, features):
        counts[current[-1]] += len(features)

    return counts, count


def test_each_figure_decodes_its_samples_once(decoded):
    settings = ["evaluate.num_particles=50", "evaluate.elbo_particles=3", "out=."]
    cfg = config.compose([*settings, "evaluate.baseline_components=0"])
    digits, (counts, count) = data.digits(), decoded
    vae = VAE(digits.event_shape, 5)
    vae.decoder.register_forward_hook(count)
    history = [{"epoch": 1, "train_objective": -20.0, "valid_elbo": -20.0}]
    result = FitResult(history, 1, 1, 0.1, "eager")
    run = TrainedRun(cfg, digits, vae, objectives.ELBO(), result)
    metrics, _ = experiment.evaluate_trained_run(run)
    figures.draw_figures(run, metrics, Latents(run))
    # Four chunks of 90 rows hold the 359, so one row is decoded twice.
    assert counts["evidence"] == 360 * 50
    # One chunk holds all rows.
    assert counts["elbo"] == 359 * 3
    assert counts["objective"] == 359
    # Two proposals for 50 rows up to 30 samples, the next of the figure's counts below 50; then
    # 10 reconstructions, 40 samples, and 11 places on a traversal of each of 5 dimensions.
    assert counts["report"] == 2 * 50 * 30 + 10 + 40 + 5 * 8 + 5 * 11
    # The report of the KL runs model and guide once on two rows.
    assert counts["other"] == 2


def test_an_evaluation_captures_one_graph(monkeypatch):
    count_graph_calls(monkeypatch)
    captured, original = [], inference.capture_graph
    monkeypatch.setattr(
        inference, "capture_graph", lambda *args: captured.append(original(*args)) or captured[-1]
    )
    digits = data.digits()
    vae = VAE(digits.event_shape, 5)
    evaluate.log_evidence(vae, digits.x.test, 400, compile="strict", tolerance=1e-9)
    assert len(captured) == 1
    evaluate.elbo(vae, digits.x.test, 100, compile="strict")
    assert len(captured) == 2
    for graph, _ in captured:
        assert not any("_local_scalar_dense" in str(node.target) for node in graph.graph.nodes)


def test_the_default_step_is_one_graph_of_few_operations():
    digits, graphs = data.digits(), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    vae = VAE(digits.event_shape, 10)
    optimizer = torch.optim.Adam(vae.parameters())
    step = pyro_vae.compile(
        objectives.ELBO(), vae.model, vae.guide, optimizer=optimizer, validate=False,
        backend=backend,
    )  # fmt: skip
    step.loop(digits.x.train[:600].view(6, 100, 1, 8, 8))
    assert len(graphs) == 1
    nodes = [node for node in graphs[0].graph.nodes if node.op == "call_function"]
    targets = Counter(str(node.target) for node in nodes)
    # Four layers forward, their weights' gradients, and three gradients of inputs.
    assert targets["aten.addmm.default"] == 4
    assert targets["aten.mm.default"] == 4 + 3
    assert targets["aten.normal_.default"] == 1
    assert len(nodes) <= 360
