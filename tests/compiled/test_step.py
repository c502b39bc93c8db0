"""The compiled step: the eager step's loss, gradients and side effects, given the same noise."""

import subprocess
import sys
import warnings
from contextlib import nullcontext
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_vae
from helpers import tables
from pyro_vae import VAE, compiled, config, data, fit, networks, objectives
from pyro_vae.compiled import graph, matmul, step
from pyro_vae.training import loop, resume_file

ROWS = 12


def made(dtype=torch.float32, **parts):
    torch.manual_seed(0)
    return VAE((1, 4, 4), 2, **({"encoder": partial(networks.MLP, hidden=[5])} | parts)).to(dtype)


def batch(rows=ROWS, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(rows, 1, 4, 4, generator=generator) > 0.5).to(dtype)


def gradients(vae):
    return {name: None if p.grad is None else p.grad.clone() for name, p in vae.named_parameters()}


def buffers(vae):
    return {name: buffer.clone() for name, buffer in vae.named_buffers()}


def norm(values):
    return float(sum(value.double().norm() ** 2 for value in values) ** 0.5)


def assert_close(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        difference = norm([ours[name].double() - value.double()])
        assert difference <= tolerance * max(norm([value]), norm(theirs.values()) / 100), name


def assert_like_eager(made_step, vae, objective, x, tolerance, *, seed):
    """Compares one step with the eager one from the same state, and leaves the eager's state."""
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    torch.manual_seed(seed)
    loss, ours = made_step(x), gradients(vae)
    after, drawn = buffers(vae), torch.get_rng_state()
    assert made_step.engine.startswith("compiled")
    vae.load_state_dict(before)
    vae.zero_grad()
    torch.manual_seed(seed)
    expected = objective.differentiable_loss(vae.model, vae.guide, x)
    (expected / made_step.settings.divide_by).backward()
    assert torch.equal(drawn, torch.get_rng_state())
    assert_close({"loss": loss}, {"loss": expected.detach()}, tolerance)
    assert_close(ours, gradients(vae), tolerance)
    assert_close(after, buffers(vae), tolerance)


def move(vae, seed):
    """Changes all parameters in place, as an optimizer does."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


@pytest.fixture
def as_graph(monkeypatch):
    """Compiles the steps of ``fit`` like ``compile_eagerly``."""
    monkeypatch.setattr(loop, "compile", compile_eagerly)


compile_eagerly = partial(pyro_vae.compile, backend="eager")
"""Runs captured graphs as they are: what is tested does not depend on the machine code."""


BATCH_NORM = {
    "encoder": partial(networks.MLP, hidden=[5], batch_norm=True),
    "decoder": partial(networks.MLP, hidden=[5], batch_norm=True),
}
CONV = {"encoder": networks.ConvEncoder, "decoder": networks.ConvDecoder}
LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("dtype", "tolerance", "parts", "objective"),
    [
        (torch.float64, 1e-9, {}, objectives.ELBO(beta=0.5)),
        pytest.param(torch.float32, 1e-4, BATCH_NORM, objectives.IWAE(5), marks=LONG),
        pytest.param(
            torch.float64, 1e-9, BATCH_NORM, objectives.ELBO(2, analytic=False), marks=LONG
        ),
        pytest.param(torch.float32, 1e-4, CONV, objectives.ELBO(), marks=LONG),
    ],
    ids=["mlp", "iwae", "batch norm", "conv"],
)
def test_machine_code_gives_what_the_eager_step_gives(dtype, tolerance, parts, objective):
    vae = made(dtype, **parts)
    made_step = pyro_vae.compile(objective, vae.model, vae.guide, strict=True, divide_by=ROWS)
    for seed in range(3):
        move(vae, seed)
        x = batch(dtype=dtype, seed=seed)
        assert_like_eager(made_step, vae, objective, x, tolerance, seed=seed)


def test_float32_and_fresh_noise_and_a_beta_that_moves():
    vae, objective = made(), objectives.ELBO(beta=torch.tensor(1.0))
    made_step = compile_eagerly(objective, vae.model, vae.guide, strict=True)
    for seed, beta in enumerate([1.0, 0.0, 3.0]):
        objective.beta.fill_(beta)
        assert_like_eager(made_step, vae, objective, batch(), 1e-4, seed=seed)
    assert len(made_step._cache) == 1
    losses = {float(made_step(batch())) for _ in range(5)}
    assert len(losses) == 5


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_products_by_onednn_are_products(monkeypatch):
    monkeypatch.setattr(matmul, "MIN_MULTIPLICATIONS", 0)
    vae, objective = made(), objectives.ELBO()
    made_step = pyro_vae.compile(objective, vae.model, vae.guide, products="onednn", strict=True)
    assert_like_eager(made_step, vae, objective, batch(), 1e-4, seed=1)
    assert made_step.engine == "compiled-onednn"
    left, right = torch.randn(7, 3), torch.randn(5, 3)
    torch.testing.assert_close(matmul.get_onednn_matmul()(left, right), left @ right.T)
    captured = graph.capture_graph(
        lambda a, b: (torch.addmm(a[0], a, b), a @ b.T), [left[:3], right[:3]]
    )
    assert len(matmul.find_eligible_matmuls(captured.graph)) == 2
    assert matmul.choose_matmul_library(captured.graph) in ("mkl", "onednn")
    monkeypatch.setattr(matmul, "MIN_MULTIPLICATIONS", 3 * 3 * 5 + 1)
    assert not matmul.find_eligible_matmuls(captured.graph)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log1p_to_full_precision(dtype):
    sizes = torch.logspace(-37, 30, 999, dtype=torch.float64)
    x = torch.cat([sizes, -sizes[sizes < 0.999]]).to(dtype)
    # The reference has the error of double precision itself.
    error = (graph.log1p(x).double() / torch.log1p(x.double()) - 1).abs().max()
    assert error < 4 * torch.finfo(dtype).eps
    edges = torch.tensor([0.0, -0.0, -1.0, float("inf"), -2.0, float("nan")], dtype=dtype)
    torch.testing.assert_close(graph.log1p(edges), torch.log1p(edges), equal_nan=True)


@pytest.mark.parametrize(("dtype", "left"), [(torch.float64, 0), (torch.float16, 1)])
def test_log1p_is_replaced_where_ours_is_faster(dtype, left):
    x = torch.rand(50, 3, dtype=dtype)
    captured = graph.capture_graph(lambda x: (torch.log1p(x * 2).sum(),), [x])
    graph.make_log1p_pass()(captured.graph.graph)
    captured.graph.recompile()
    targets = [node.target for node in captured.graph.graph.nodes]
    assert targets.count(torch.ops.aten.log1p.default) == left
    torch.testing.assert_close(captured.graph(x)[0], torch.log1p(x * 2).sum())


def test_a_later_step_finds_the_graph_in_the_cache_of_pytorch():
    from torch._dynamo.utils import counters

    def count(kind):
        return counters["inductor"][f"fxgraph_cache_{kind}"]

    losses, found = [], []
    for _ in range(2):
        before = count("hit"), count("bypass")
        vae = made()
        optimizer = torch.optim.Adam(vae.parameters(), fused=True)
        run = pyro_vae.compile(
            objectives.ELBO(), vae.model, vae.guide, optimizer=optimizer, strict=True
        )
        torch.manual_seed(3)
        losses.append([run(batch()).item() for _ in range(3)])
        found.append((count("hit") - before[0], count("bypass") - before[1]))
    assert losses[0] == losses[1]
    assert found[1] == (1, 0)


def test_comparison_at_the_first_call_leaves_no_trace():
    vae, objective = made(**BATCH_NORM), objectives.GECO(target=5.0)
    made_step = compile_eagerly(objective, vae.model, vae.guide, strict=True)
    torch.manual_seed(3)
    for _ in range(2):
        made_step(batch())
    ours = gradients(vae), buffers(vae), objective.state_dict(), torch.get_rng_state()
    vae, objective = made(**BATCH_NORM), objectives.GECO(target=5.0)
    torch.manual_seed(3)
    for _ in range(2):
        vae.zero_grad()
        objective.differentiable_loss(vae.model, vae.guide, batch()).backward()
    assert_close(ours[0], gradients(vae), 1e-6)
    assert_close(ours[1], buffers(vae), 1e-6)
    assert_close(ours[2], objective.state_dict(), 1e-6)
    assert torch.equal(ours[3], torch.get_rng_state())


def test_one_graph_for_each_kind_of_call():
    vae, objective = made(**BATCH_NORM), objectives.ELBO()
    made_step = compile_eagerly(objective, vae.model, vae.guide, strict=True)

    def graphs(x=None, **kwargs):
        x = batch() if x is None else x
        torch.manual_seed(5)
        loss = made_step(x, **kwargs)
        torch.manual_seed(5)
        eager = objective.differentiable_loss(vae.model, vae.guide, x, **kwargs)
        torch.testing.assert_close(loss, eager.detach())
        return len(made_step._cache)

    assert graphs() == 1
    assert graphs(batch(seed=9)) == 1
    assert graphs(batch(7)) == 2
    assert graphs() == graphs(batch(7)) == 2
    vae.eval()
    assert graphs() == 3
    vae.train()
    assert graphs() == 3
    objective.beta = 0.25
    assert graphs() == 4
    assert graphs(data_size=100) == 5
    assert graphs(data_size=200) == 6
    assert graphs(mask=torch.ones(ROWS, dtype=torch.bool)) == 7
    vae.decoder.layers[0].weight.requires_grad_(False)
    assert graphs() == 8
    assert vae.decoder.layers[0].weight.grad is None
    vae.decoder.layers[0].weight = nn.Parameter(torch.zeros(5, 2))
    assert graphs() == 9
    vae.double()
    assert graphs(batch(dtype=torch.float64)) == 10


def test_a_number_that_changes_with_each_call_ends_in_the_eager_step(monkeypatch):
    monkeypatch.setattr(step, "MAX_GRAPHS", 3)
    vae, objective = made(), objectives.ELBO()
    made_step = compile_eagerly(objective, vae.model, vae.guide)

    def compare(number):
        objective.beta = float(number)
        torch.manual_seed(0)
        loss = made_step(batch())
        torch.manual_seed(0)
        eager = objective.differentiable_loss(vae.model, vae.guide, batch())
        torch.testing.assert_close(loss, eager.detach())

    with pytest.warns(UserWarning, match="3 graphs for different calls exist already") as warned:
        list(map(compare, range(6)))
    assert len(warned) == 1
    assert made_step.engine == "eager"


class Forks(networks.MLP):
    """Decides by the values of its input."""

    def forward(self, x, covariates=None):
        return super().forward(x if x.sum() > 0 else -x)


class Reads(objectives.ELBO):
    """Reads a scalar tensor, which a graph would hold for good."""

    def differentiable_loss(self, *args, **kwargs):
        return super().differentiable_loss(*args, **kwargs) * float(self.beta)


class Picks(networks.MLP):
    """Picks rows by a mask, so that a shape depends on values."""

    def forward(self, x, covariates=None):
        return super().forward(x) + x[x > 0].sum()


class Counts(objectives.ELBO):
    """Counts its calls."""

    calls = 0

    def differentiable_loss(self, *args, **kwargs):
        self.calls += 1
        return super().differentiable_loss(*args, **kwargs)


@pytest.mark.parametrize(
    ("parts", "objective", "reason"),
    [
        ({"encoder": partial(Forks, hidden=[5])}, objectives.ELBO(), "depends on the values"),
        ({"encoder": partial(Picks, hidden=[5])}, objectives.ELBO(), "depends on the values"),
        ({}, Reads(beta=torch.tensor(2.0)), "depends on the values"),
        ({}, Counts(), "replaces a number or a tensor"),
    ],
    ids=["fork", "pick", "read", "count"],
)
def test_what_no_graph_can_hold_is_eager_with_one_warning(parts, objective, reason):
    vae = made(**parts)
    made_step = pyro_vae.compile(objective, vae.model, vae.guide)
    torch.manual_seed(2)
    with pytest.warns(UserWarning, match=reason) as warned:
        losses = [made_step(batch(rows)) for rows in (ROWS, ROWS, 5)]
    assert len(warned) == 1
    ours = gradients(vae)
    torch.manual_seed(2)
    for rows, loss in zip((ROWS, ROWS, 5), losses, strict=True):
        vae.zero_grad()
        expected = objective.differentiable_loss(vae.model, vae.guide, batch(rows))
        expected.backward()
        assert torch.equal(loss, expected.detach())
    assert_close(ours, gradients(vae), 0.0)
    strict = pyro_vae.compile(objective, vae.model, vae.guide, strict=True)
    with pytest.raises(RuntimeError, match=f"Expected a step that can be compiled, but .*{reason}"):
        strict(batch())


def test_without_a_compiler_it_is_eager():
    from torch._inductor import config as inductor

    vae = made()
    made_step = pyro_vae.compile(objectives.ELBO(), vae.model, vae.guide)
    changes = {"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}
    with inductor.patch(changes), pytest.warns(UserWarning, match="no-such-compiler|compiler"):
        made_step(batch())
    assert made_step.engine == "eager"


def test_a_graph_that_gives_something_else_is_not_used():
    def wrong(graph, inputs):
        return lambda *tensors: [value * 1.001 for value in graph(*tensors)]

    vae = made()
    with pytest.warns(UserWarning, match="the loss differs from that of the eager step"):
        pyro_vae.compile(objectives.ELBO(), vae.model, vae.guide, backend=wrong)(batch())

    def forgets(graph, inputs):
        def run(*tensors):
            kept = [tensor.clone() for tensor in tensors]
            results = graph(*tensors)
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)
            return results

        return run

    vae = made(**BATCH_NORM)
    with pytest.warns(UserWarning, match="the state of modules differs"):
        pyro_vae.compile(objectives.ELBO(), vae.model, vae.guide, backend=forgets)(batch())


def test_a_first_loss_that_is_not_finite_is_no_verdict():
    vae, objective = made(), objectives.ELBO(beta=torch.tensor(1.0))
    objective.beta.fill_(torch.nan)
    made_step = compile_eagerly(objective, vae.model, vae.guide, strict=True)
    assert made_step(batch()).isnan()
    assert made_step.engine == "eager"
    objective.beta.fill_(1.0)
    made_step(batch())
    assert made_step.engine == "compiled"


PARTS = {
    **{f"objective {name}": {"objective": name} for name in tables.OBJECTIVES},
    **{f"likelihood {name}": {"likelihood": name} for name in tables.LIKELIHOODS},
    **{
        f"{prior} {posterior}": {"prior": prior, "posterior": posterior}
        for prior in tables.FEW_PRIORS
        for posterior in tables.FEW_POSTERIORS
    },
    **{f"network {name}": {"network": name} for name in tables.NETWORKS},
}
PARTS = {name: choice for name, choice in PARTS.items() if "trace" not in name}


def compare_parts(
    objective="elbo",
    likelihood="bernoulli",
    prior="normal",
    posterior="normal",
    network="mlp",
    backend="eager",
):
    torch.manual_seed(0)
    encoder, decoder = tables.NETWORKS[network]
    vae = VAE(
        tables.EVENT, 3, prior=tables.FEW_PRIORS[prior], posterior=tables.FEW_POSTERIORS[posterior],
        likelihood=tables.LIKELIHOODS[likelihood], encoder=encoder, decoder=decoder,
    )  # fmt: skip
    x = tables.data_for(likelihood)
    vae.initialize(x)
    loss = tables.OBJECTIVES[objective]()
    made_step = pyro_vae.compile(loss, vae.model, vae.guide, strict=True, backend=backend)
    made_step(x)
    move(vae, 2)
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    torch.manual_seed(1)
    ours = {"loss": made_step(x)}
    assert made_step.engine.startswith("compiled")
    compiled_gradients = {n: g for n, g in gradients(vae).items() if g is not None}
    loss.load_state_dict(state)
    vae.zero_grad()
    torch.manual_seed(1)
    eager = loss.differentiable_loss(vae.model, vae.guide, x)
    eager.backward()
    assert_close(ours, {"loss": eager.detach()}, 1e-4)
    assert_close(
        compiled_gradients, {n: g for n, g in gradients(vae).items() if g is not None}, 1e-4
    )


@pytest.mark.parametrize("name", list(PARTS))
def test_every_part_can_be_captured(name):
    compare_parts(**PARTS[name])


@pytest.mark.long
@pytest.mark.parametrize("name", list(PARTS))
def test_machine_code_of_every_part(name):
    compare_parts(**PARTS[name], backend="inductor")


def regression(x, y):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    noise = pyro.param("noise", torch.tensor(0.5), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, noise), obs=y)


def regression_guide(x, y):
    loc = pyro.param("loc", torch.zeros(3))
    scale = pyro.param("scale", torch.ones(3), constraint=dist.constraints.positive)
    pyro.sample("weight", dist.Normal(loc, scale).to_event(1))


def hierarchy(x, y):
    spread = pyro.sample("spread", dist.LogNormal(0.0, 1.0))
    with pyro.plate("groups", 3):
        mean = pyro.sample("mean", dist.Normal(0.0, spread))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ mean, 1.0), obs=y)


class Markov(nn.Module):
    """A latent chain of three steps."""

    def __init__(self):
        super().__init__()
        self.move, self.emit = nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x, y):
        with pyro.plate("data", len(x)):
            z = x.new_zeros(len(x), 2)
            for t in range(3):
                z = pyro.sample(f"z{t}", dist.Normal(self.move(z), 1.0).to_event(1))
                pyro.sample(f"x{t}", dist.Normal(self.emit(z), 1.0).to_event(1), obs=x[:, t, None])


class Reader(nn.Module):
    """Its guide, which reads the series in one go."""

    def __init__(self):
        super().__init__()
        self.read = nn.Linear(3, 12)

    def forward(self, x, y):
        loc, scale = self.read(x).reshape(len(x), 2, 3, 2).unbind(1)
        with pyro.plate("data", len(x)):
            for t in range(3):
                q = dist.Normal(loc[:, t], torch.nn.functional.softplus(scale[:, t]))
                pyro.sample(f"z{t}", q.to_event(1))


OTHER_MODELS = {
    "regression": lambda: (regression, regression_guide),
    "hierarchy": lambda: (hierarchy, AutoNormal(hierarchy)),
    "markov": lambda: (Markov(), Reader()),
}


def compare_other(name, tolerance, backend="eager"):
    torch.manual_seed(0)
    model, guide = OTHER_MODELS[name]()
    x = torch.randn(9, 3)
    y = x.sum(-1) + torch.randn(9)
    objective = objectives.ELBO()
    made_step = pyro_vae.compile(objective, model, guide, strict=True, backend=backend)
    made_step(x, y)
    optimizer = torch.optim.Adam(made_step.parameters, lr=0.1)
    for seed in range(3):
        torch.manual_seed(seed)
        loss = made_step(x, y)
        ours = {str(i): p.grad for i, p in enumerate(made_step.parameters)}
        optimizer.zero_grad()
        torch.manual_seed(seed)
        eager = objective.differentiable_loss(model, guide, x, y)
        eager.backward()
        assert_close({"loss": loss}, {"loss": eager.detach()}, tolerance)
        assert_close(ours, {str(i): p.grad for i, p in enumerate(made_step.parameters)}, tolerance)
        optimizer.step()
    assert made_step.engine.startswith("compiled")
    assert len(made_step._cache) == 1
    return made_step


@pytest.mark.parametrize(("name", "count"), [("regression", 3), ("hierarchy", 4), ("markov", 6)])
def test_models_that_are_no_vae(name, count):
    assert len(compare_other(name, 1e-5).parameters) == count


@pytest.mark.long
@pytest.mark.parametrize("name", list(OTHER_MODELS))
def test_machine_code_of_models_that_are_no_vae(name):
    compare_other(name, 1e-4, backend="inductor")


def test_parameters_made_anew_in_the_store_are_found():
    x, y = torch.randn(9, 3), torch.randn(9)
    made_step = compile_eagerly(objectives.ELBO(), regression, regression_guide, strict=True)
    made_step(x, y)
    pyro.clear_param_store()
    made_step(x, y)
    assert pyro.param("loc").grad is not None


def test_modules_within_functions_are_met():
    first, second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def model(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(second(first(x)), 1.0).to_event(1))

    x, y = torch.randn(9, 3), None
    made_step = compile_eagerly(objectives.ELBO(), model, guide, strict=True)
    made_step(x, y)
    assert first.num_batches_tracked == second.num_batches_tracked == 1
    first.eval()
    made_step(x, y)
    assert (first.num_batches_tracked, second.num_batches_tracked) == (1, 2)
    assert len(made_step._cache) == 2


def test_gradients_are_set_in_tensors_of_their_own():
    shift, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(1))

    class Model(nn.Module):
        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.idle = shift, nn.Parameter(torch.zeros(2)), other

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.one + self.two, 1.0).to_event(1))

    guide = Guide()
    parameters = list(guide.parameters())
    made_step = compile_eagerly(
        objectives.ELBO(), Model(), guide, parameters=parameters, strict=True
    )
    for _ in range(2):
        other.grad = torch.ones(1)
        made_step(torch.randn(5, 2))
        assert other.grad is None
        assert torch.equal(guide.one.grad, guide.two.grad)
        guide.one.grad.zero_()
        assert guide.two.grad.abs().max() > 0


@pytest.mark.parametrize("estimator", ["stl", "dreg"])
@pytest.mark.parametrize("eager", [False, True])
def test_samples_that_estimators_cut_are_no_parameters(estimator, eager):
    vae = made()
    objective = objectives.IWAE(3, estimator=estimator)
    made_step = compile_eagerly(objective, vae.model, vae.guide, strict=True)
    with pyro.poutine.scale(scale=1.0) if eager else nullcontext():
        made_step(batch())
    assert set(map(id, made_step.parameters)) == set(map(id, vae.parameters()))


def test_within_handlers_it_is_eager():
    vae = made()
    made_step = compile_eagerly(objectives.ELBO(), vae.model, vae.guide, strict=True)
    made_step(batch())
    torch.manual_seed(1)
    whole = made_step(batch())
    with pyro.poutine.scale(scale=0.5):
        torch.manual_seed(1)
        half = made_step(batch())
    torch.testing.assert_close(half, whole / 2)


def test_bad_arguments_are_refused():
    vae = made()
    with pytest.raises(ValueError, match="objective to have a differentiable_loss, got str"):
        pyro_vae.compile("elbo", vae.model, vae.guide)
    with pytest.raises(ValueError, match=r"products to be .*, got 'blas'"):
        pyro_vae.compile(objectives.ELBO(), vae.model, vae.guide, products="blas")
    with pytest.raises(ValueError, match="divide_by to be positive"):
        pyro_vae.compile(objectives.ELBO(), vae.model, vae.guide, divide_by=0)
    parameters = list(vae.parameters())
    frozen = pyro_vae.compile(
        objectives.ELBO(), vae.requires_grad_(False).model, vae.guide, parameters=parameters
    )
    with pytest.raises(ValueError, match="a loss that depends on the parameters"):
        frozen(batch())


def test_the_compiler_is_imported_when_it_is_needed():
    code = (
        "import sys, pyro, pyro_vae.training, pyro_vae.compiled; "
        "sys.exit('torch._inductor' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def digits():
    return data.digits(binarize="dynamic")


def trained(digits, **changes):
    torch.manual_seed(3)
    vae = VAE((1, 8, 8), 2, encoder=partial(networks.MLP, hidden=[5], batch_norm=True))
    settings = {
        "objective": objectives.ELBO(),
        "batch_size": 100,
        "clip_norm": 5.0,
        "schedules": {"beta": objectives.Linear(0.0, 1.0, steps=step.MAX_GRAPHS + 4)},
        "checkpoint_seconds": 0.0,
    } | changes
    return vae, fit(vae, digits.train, **settings)


def assert_same_bits(one, other):
    assert one[1].history == other[1].history
    assert one[1].engine == other[1].engine
    for name, value in one[0].state_dict().items():
        assert torch.equal(other[0].state_dict()[name], value), name


@pytest.mark.long
def test_twice_as_many_epochs_or_a_break_between_give_the_same_bits(digits, tmp_path):
    whole = trained(digits, epochs=4, compile="strict")
    assert whole[1].engine.startswith("compiled")
    trained(digits, epochs=2, compile="strict", out=tmp_path)
    # The engine is that of the beginning, whatever is asked for later.
    assert_same_bits(whole, trained(digits, epochs=4, compile=False, out=tmp_path, resume=True))


def test_compiled_training_is_the_eager_one_but_for_rounding(digits, as_graph):
    (ours, fast), (theirs, slow) = (
        trained(digits, epochs=2, compile=engine) for engine in ("strict", False)
    )
    assert (fast.engine, slow.engine) == ("compiled", "eager")
    assert [row["beta"] for row in fast.history] == [row["beta"] for row in slow.history]
    for row, other in zip(fast.history, slow.history, strict=True):
        assert row["train_objective"] == pytest.approx(other["train_objective"], rel=1e-4)
    assert_close(ours.state_dict(), theirs.state_dict(), 1e-2)


def test_a_ragged_last_batch_is_eager(digits, as_graph, monkeypatch):
    sizes, call = [], step.Step.__call__

    def spied(self, x, **kwargs):
        sizes.append(len(x))
        return call(self, x, **kwargs)

    monkeypatch.setattr(step.Step, "__call__", spied)
    _, result = trained(digits, epochs=2, compile="strict")
    assert len(digits.x.train) % 100 > 1
    assert sizes == [100] * (result.steps - 2)


def test_training_that_cannot_be_compiled_has_the_bits_of_the_eager_one(digits):
    eager = trained(digits, objective=Reads(), epochs=2, compile=False)
    with pytest.warns(UserWarning, match="depends on the values"):
        fallen = trained(digits, objective=Reads(), epochs=2, compile=True)
    assert_same_bits(eager, fallen)
    with pytest.raises(RuntimeError, match="Expected a step that can be compiled"):
        trained(digits, objective=Reads(), epochs=2, compile="strict")


def test_scheduled_numbers_are_numbers_again(digits, as_graph):
    objective = objectives.ELBO()
    trained(digits, objective=objective, epochs=2, compile="strict")
    assert isinstance(objective.beta, float)
    assert objective.beta == 1.0


def test_an_objective_with_a_state_goes_on_from_it(digits, as_graph, tmp_path):
    for compile in (False, "strict"):
        runs = []
        for out, breaks in ((tmp_path / f"{compile}-1", (4,)), (tmp_path / f"{compile}-2", (2, 4))):
            for epochs in breaks:
                objective = objectives.GECO(target=15.0, momentum=0.9)
                run = trained(
                    digits, objective=objective, epochs=epochs, schedules=None,
                    compile=compile, out=out, resume=True,
                )  # fmt: skip
            runs.append((run, objective))
        assert_same_bits(runs[0][0], runs[1][0])
        assert torch.equal(runs[0][1].multiplier, runs[1][1].multiplier)


def test_what_is_not_finite_is_found_by_eager_steps(digits, as_graph, tmp_path):
    def breaks(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1e30 if epoch else 1.0)

    with pytest.raises(FloatingPointError, match=r"at step 15 \(epoch 2\): .* of site .* is not"):
        trained(
            digits, epochs=3, compile="strict", lr_schedule=breaks, out=tmp_path, clip_norm=None
        )
    state = resume_file.load_state(tmp_path / "resume.pt")
    assert (state["engine"], state["epoch"]) == ("compiled", 1)


def test_whether_to_compile_is_decided_without_a_clock():
    assert not compiled.worth_compiling(3_600, 100, 30_000)
    assert not compiled.worth_compiling(2_345, 128, 320_000)
    assert compiled.worth_compiling(3_900, 100, 112_484)
    assert compiled.worth_compiling(100_000, 20, 1_000)
    assert compiled.worth_compiling(20_000, 128, 320_000)
    cfg = config.compose(["out=."])
    assert cfg.train.compile == "auto"


def test_a_short_run_of_the_digits_is_eager(digits):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trained(digits, epochs=2, schedules=None)[1].engine == "eager"
    with pytest.raises(ValueError, match="compile to be true, false, auto or strict, got 'fast'"):
        trained(digits, epochs=2, schedules=None, compile="fast")


def test_leaves_that_hold_samples_are_no_parameters():
    vae, x = VAE((8,), 2), torch.ones(20, 8)
    step = compile_eagerly(objectives.IWAE(4, estimator="dreg"), vae.model, vae.guide, strict=True)
    for _ in range(3):
        step(x)
    eager = compile_eagerly(objectives.IWAE(4, estimator="dreg"), vae.model, vae.guide)
    with pyro.poutine.block():
        for _ in range(3):
            eager(x)
    for found in (step, eager):
        assert set(map(id, found.parameters)) == set(map(id, vae.parameters()))
    assert step.engine.startswith("compiled")
    assert eager.engine == "eager"
