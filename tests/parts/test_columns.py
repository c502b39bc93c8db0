"""Tables of mixed columns: known evidence, gaps, order, units, and all ways of training."""

import copy
import math
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam
from scipy import stats
from torch import nn

from pyro_vae import (
    VAE,
    data,
    evaluate,
    fit,
    likelihoods,
    load,
    objectives,
    priors,
    save,
    transforms,
)
from pyro_vae.data import Column
from pyro_vae.distributions import Mixed

COLUMNS = [
    Column("height", "real"),
    Column("city", "categorical", ("Bern", "Oslo", "Rome")),
    Column("income", "positive"),
    Column("visits", "count"),
    Column("smoker", "binary", ("no", "yes")),
    Column("size", "ordinal", ("s", "m", "l", "xl")),
    Column("weight", "real"),
    Column("pet", "categorical", ("cat", "dog")),
]


def make_rows(n=60, seed=0, columns=COLUMNS):
    """Rows of all kinds in double precision, in units far from one."""
    rng = np.random.default_rng(seed)
    values = {
        "real": lambda c: rng.normal(170, 10, n),
        "positive": lambda c: np.exp(rng.normal(10, 1, n)),
        "count": lambda c: rng.poisson(7, n),
        "binary": lambda c: rng.integers(0, 2, n),
        "categorical": lambda c: rng.integers(0, len(c.levels), n),
        "ordinal": lambda c: rng.integers(0, len(c.levels), n),
    }
    return torch.tensor(np.stack([values[c.kind](c) for c in columns], 1).astype(float))


def make_mask(x, seed=1):
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) > 0.3


class Steps(nn.Module):
    """A decoder that is constant between the quantiles of z: a mixture with known weights."""

    def __init__(self, features):
        super().__init__()
        self.features = nn.Parameter(features)

    def forward(self, z, covariates=None):
        count = len(self.features)
        u = 0.5 * (1 + torch.erf(z[..., 0] / math.sqrt(2)))
        return self.features[(u * count).long().clamp(max=count - 1)]


def make_mixture(families, components=4, seed=0):
    """A VAE that is a mixture of components of equal weight, started from rows."""
    torch.manual_seed(seed)
    part = likelihoods.Columns((len(COLUMNS),), columns=COLUMNS, dispersion="element", **families)
    vae = VAE(
        (len(COLUMNS),), 1, likelihood=part,
        input_transform=partial(transforms.Columns, columns=COLUMNS),
        decoder=Steps(torch.randn(components, *part.feature_shape)),
    ).double()  # fmt: skip
    for parameter in part.parameters():
        nn.init.normal_(parameter, std=0.5)
    vae.initialize(make_rows())
    return vae


def score_by_hand(vae, x):
    """Log densities of each column under each component, from SciPy and the parameters."""
    part = vae.likelihood
    scored = torch.zeros(len(vae.decoder.features), *x.shape, dtype=torch.float64)
    start = 0
    for name, child in part.parts.items():
        size = child.feature_shape.numel()
        piece = vae.decoder.features[:, start : start + size].detach()
        start += size
        h = piece.reshape(-1, *child.feature_shape)
        for j, i in enumerate(indices(part, name)):
            for k in range(len(h)):
                scored[k, :, i] = torch.as_tensor(
                    score_column(name, child, h[k, ..., j].numpy(), j, x[:, i].numpy())
                )
    return scored


def softplus(x):
    return np.log1p(np.exp(-abs(x))) + max(x, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def score_column(name, child, h, j, x):
    """The log density of one column, by the formulas of the documentation."""
    if name in ("normal", "student_t", "laplace", "log_normal"):
        a, b = child.unit_loc[j].item(), child.unit_scale[j].item()
        raw = (child.raw_scale if name == "normal" else child.scale.raw).detach()[j].item()
        loc, scale = a + b * h[0], b * (softplus(raw) + 1e-3)
        if name == "student_t":
            df = 2 + 3 * np.exp(
                math.log(998 / 3) * np.tanh(child.df.raw.detach()[j].item() / math.log(998 / 3))
            )
            return stats.t.logpdf(x, df, loc, scale)
        if name == "log_normal":
            return stats.norm.logpdf(np.log(x), loc, scale) - np.log(x)
        return {"normal": stats.norm, "laplace": stats.laplace}[name].logpdf(x, loc, scale)
    if name == "gamma":
        bound = math.log(1e6)
        k = np.exp(bound * np.tanh(child.concentration.raw.detach()[j].item() / bound))
        log_mean = 60 * np.tanh(child.unit_scale[j].item() * h[0] / 60)
        mean = np.exp(child.unit_loc[j].item() + log_mean)
        return stats.gamma.logpdf(x, k, scale=mean / k)
    if name in ("poisson", "negative_binomial", "zero_inflated_negative_binomial"):
        mean = np.exp(20 * np.tanh(h[0] / 20) + child.log_mean[j].item())
        if name == "poisson":
            return stats.poisson.logpmf(x, mean)
        bound = math.log(1e8)
        theta = np.exp(bound * np.tanh(child.inverse_dispersion.raw.detach()[j].item() / bound))
        counted = stats.nbinom.pmf(x, theta, theta / (theta + mean))
        if name == "negative_binomial":
            return np.log(counted)
        gate = sigmoid(h[1] - 2)
        return np.log(gate * (x == 0) + (1 - gate) * counted)
    if name == "bernoulli":
        logit = h[0] + child.logit[j].item()
        return np.log(np.where(x == 1, sigmoid(logit), sigmoid(-logit)))
    if name.startswith("categorical"):
        logits = h + child.log_frequency[j].numpy()
        return (logits - np.log(np.exp(logits).sum()))[x.astype(int)]
    first = child.first_threshold.detach()[j].item()
    steps = np.array([softplus(v) for v in child.raw_steps.detach()[j].numpy()]) + 1e-3
    above = sigmoid(h[0] - np.concatenate([[first], first + steps.cumsum()]))
    probs = np.concatenate([[1.0], above]) - np.concatenate([above, [0.0]])
    return np.log(probs)[x.astype(int)]


FAMILIES = [
    {},
    {"real": "student_t", "positive": "gamma", "count": "poisson"},
    {"real": "laplace", "count": "zero_inflated_negative_binomial"},
]


@pytest.mark.parametrize("families", FAMILIES)
@pytest.mark.parametrize("gaps", [False, True])
def test_the_evidence_is_that_of_the_enumerated_mixture(families, gaps):
    vae = make_mixture(families)
    x = make_rows(20, seed=5)
    mask = make_mask(x) if gaps else None
    scores = score_by_hand(vae, x)
    if gaps:
        mask[0] = False
        scores = torch.where(mask, scores, 0.0)
    exact = scores.sum(-1).logsumexp(0) - math.log(len(vae.decoder.features))
    torch.manual_seed(0)
    result = evaluate.log_evidence(
        vae, x, 20_000, proposal="prior", mask=mask, diagnostics=True, max_elements=10**6
    )
    # Four standard errors of each row; components without weight make the error relative.
    error = 4.5 * result.standard_error + 1e-9
    assert ((result.log_evidence - exact).abs() < error).all()


def test_the_density_of_each_column_is_that_of_its_formula():
    for families in FAMILIES:
        vae = make_mixture(families, seed=3)
        x = make_rows(30, seed=6)
        z = torch.tensor([[-2.0], [-0.3], [0.3], [2.0]]).double()
        elements = vae.decode(z.unsqueeze(1)).base_dist.log_prob(x)
        assert torch.allclose(elements, score_by_hand(vae, x), rtol=1e-9, atol=1e-9)


def test_a_linear_gaussian_model_with_gaps_has_its_evidence():
    torch.manual_seed(0)
    columns = [Column(f"c{i}", "real") for i in range(4)]
    x = torch.randn(200, 2).double() @ torch.randn(2, 4).double() * 20 + 100
    x += torch.randn(200, 4)
    vae = VAE(
        (4,),
        2,
        decoder=nn.Linear(2, 4),
        likelihood=partial(likelihoods.Columns, columns=columns, dispersion="element"),
    ).double()
    vae.initialize(x)
    part = vae.likelihood.parts["normal"]
    b = part.unit_scale
    w = b[:, None] * vae.decoder.weight.detach()
    mean = part.unit_loc + b * vae.decoder.bias.detach()
    noise = b * (nn.functional.softplus(part.raw_scale.detach()) + 1e-3)
    covariance = w @ w.T + noise.square().diag()
    rows = x[:30]
    mask = make_mask(rows)
    mask[:, 0] = True
    result = evaluate.log_evidence(vae, rows, 20_000, mask=mask, proposal="prior",
                                   diagnostics=True, max_elements=10**6)  # fmt: skip
    for i, row in enumerate(rows):
        o = mask[i]
        exact = torch.distributions.MultivariateNormal(mean[o], covariance[o][:, o]).log_prob(
            row[o]
        )
        assert abs(result.log_evidence[i] - exact) < 5 * result.standard_error[i]


def permute(columns, order):
    return [columns[i] for i in order]


def test_an_order_of_columns_changes_nothing_but_their_order():
    """The same parameters, moved along with their columns, give the same densities and inputs."""
    order = [6, 2, 0, 7, 5, 4, 1, 3]
    torch.manual_seed(0)
    one = likelihoods.Columns((8,), columns=COLUMNS, dispersion="element").double()
    other = likelihoods.Columns(
        (8,), columns=permute(COLUMNS, order), dispersion="element"
    ).double()
    x = make_rows()
    one.initialize(x)
    other.initialize(x[:, order])
    for name, child in one.parts.items():
        place = [indices(one, name).index(i) for i in order if i in indices(one, name)]
        state = child.state_dict().items()
        other.parts[name].load_state_dict({k: v[place] if v.dim() else v for k, v in state})
    features = torch.randn(5, *one.feature_shape).double()
    pieces = dict(zip(one.parts, features.split(one.sizes, -1), strict=True))
    moved = []
    for name, child in other.parts.items():
        place = [indices(one, name).index(i) for i in order if i in indices(one, name)]
        shaped = pieces[name].unflatten(-1, child.feature_shape)
        moved.append(shaped[..., place].flatten(1))
    p, q = one(features), other(torch.cat(moved, -1))
    mine = p.base_dist.log_prob(x[:5])
    assert torch.allclose(mine[:, order], q.base_dist.log_prob(x[:5, order]), rtol=1e-12)
    assert torch.allclose(p.mean[:, order], q.mean)
    inputs = transforms.Columns((8,), columns=COLUMNS).double()
    inputs.initialize(x)
    others = transforms.Columns((8,), columns=permute(COLUMNS, order)).double()
    others.initialize(x[:, order])
    assert torch.equal(inputs(x).sort(1).values, others(x[:, order]).sort(1).values)


def indices(part, name):
    """The columns of a part, in the order of the table."""
    return part.position.split([c.event_shape.numel() for c in part.parts.values()])[
        list(part.parts).index(name)
    ].tolist()


def test_values_that_are_missing_do_not_matter():
    torch.manual_seed(0)
    vae = VAE((8,), 2, likelihood=partial(likelihoods.Columns, columns=COLUMNS)).double()
    x = make_rows()
    vae.initialize(x)
    mask = make_mask(x)
    other = torch.where(mask, x, torch.full_like(x, torch.nan))
    torch.manual_seed(1)
    one = evaluate.log_evidence(vae, x, 10, mask=mask)
    torch.manual_seed(1)
    assert torch.equal(one, evaluate.log_evidence(vae, other, 10, mask=mask))
    loss = Trace_ELBO().differentiable_loss(vae.model, vae.guide, other, mask=mask)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in vae.parameters() if p.grad is not None)


@pytest.mark.parametrize("dispersion", ["shared", "element", "network"])
def test_probabilities_of_levels_sum_to_one(dispersion):
    torch.manual_seed(0)
    part = likelihoods.Columns((8,), columns=COLUMNS, dispersion=dispersion).double()
    part.initialize(make_rows())
    p = part(torch.randn(3, *part.feature_shape).double())
    for index, column in enumerate(COLUMNS):
        if column.levels:
            x = make_rows(1).repeat(len(column.levels), 1)
            x[:, index] = torch.arange(len(column.levels))
            total = p.base_dist.log_prob(x.unsqueeze(1))[..., index].exp().sum(0)
            assert torch.allclose(total, torch.ones(3).double())


def test_features_of_zero_give_the_frequencies_of_the_training_rows():
    x = make_rows(500)
    part = likelihoods.Columns((8,), columns=COLUMNS).double()
    part.initialize(x)
    p = part(torch.zeros(1, *part.feature_shape).double())
    for index in (1, 4, 5, 7):
        column = COLUMNS[index]
        rows = make_rows(1).repeat(len(column.levels), 1)
        rows[:, index] = torch.arange(len(column.levels))
        own = p.base_dist.log_prob(rows)[:, index].exp()
        counts = torch.stack([(x[:, index] == k).sum() + 0.5 for k in range(len(own))])
        # A thresholds' least distance shifts the frequencies of ordered levels a little.
        assert torch.allclose(own, (counts / counts.sum()).double(), atol=2e-3)


def test_draws_agree_with_densities_and_moments():
    torch.manual_seed(0)
    part = likelihoods.Columns((8,), columns=COLUMNS).double()
    part.initialize(make_rows())
    with torch.no_grad():
        p = part(0.3 * torch.randn(*part.feature_shape).double()).base_dist
    x = p.sample((200_000,))
    assert x.dtype == torch.float64
    part.check(x)
    for index, column in enumerate(COLUMNS):
        if column.levels:
            for level in range(len(column.levels)):
                rows = make_rows(1)[0].clone()
                rows[index] = level
                prob = p.log_prob(rows)[index].exp()
                error = (prob * (1 - prob) / len(x)).sqrt()
                assert abs((x[:, index] == level).double().mean() - prob) < 5 * error
        else:
            error = x[:, index].std() / math.sqrt(len(x))
            assert abs(x[:, index].mean() - p.mean[index]) < 5 * error
            assert p.variance[index] == pytest.approx(x[:, index].var().item(), rel=0.1)
    assert torch.equal(p.mean[[1, 5]], torch.stack([x[:, i].mode().values for i in (1, 5)]))


def test_a_mixed_distribution_broadcasts_and_checks():
    parts = [pyro.distributions.Normal(torch.zeros(4, 2), 1.0),
             pyro.distributions.Bernoulli(torch.full((4, 1), 0.3))]  # fmt: skip
    d = Mixed(parts, torch.tensor([2, 0, 1]))
    assert d.batch_shape == (4, 3)
    assert d.expand((5, 4, 3)).sample((7,)).shape == (7, 5, 4, 3)
    assert d.expand((5, 4, 3)).log_prob(torch.ones(3)).shape == (5, 4, 3)
    assert torch.equal(d.mean[0], torch.tensor([0.3, 0.0, 0.0]))
    assert torch.equal(d.summarize(d.expectations)[0], torch.tensor([0.0, 0.0, 0.0]))
    assert repr(d) == "Mixed(Normal, Bernoulli)"
    with pytest.raises(ValueError, match="support"):
        d.log_prob(torch.tensor([0.5, 0.0, 0.0]))
    with pytest.raises(ValueError, match="Expected batch_shape to end in"):
        d.expand((4, 5))
    for wrong in (torch.tensor([0, 1]), torch.tensor([0.0, 1.0, 2.0]), [0, 1, 2]):
        with pytest.raises(ValueError, match="Expected order to be a permutation of the 3 elem"):
            Mixed(parts, wrong)
    for wrong in ([], [parts[0], 3], [parts[0].to_event(1)], [pyro.distributions.Normal(0.0, 1.0)]):
        with pytest.raises(ValueError, match="Expected parts to be distributions"):
            Mixed(wrong, torch.tensor([0, 1]))


@pytest.mark.parametrize("compile", [False, pytest.param("strict", marks=pytest.mark.long)])
def test_a_table_trains_by_each_engine_and_is_saved(tmp_path, compile):
    rows = make_rows(300).float()
    mask = make_mask(rows)
    torch.manual_seed(0)
    vae = VAE((8,), 2, likelihood=partial(likelihoods.Columns, columns=COLUMNS))
    result = fit(vae, data.Rows(rows, mask), epochs=20, batch_size=50, compile=compile, seed=0)
    losses = [row["train_objective"] for row in result.history]
    assert losses[-1] > losses[0] + 0.5
    save(vae, tmp_path / "table.safetensors")
    other = load(tmp_path / "table.safetensors")
    assert other.likelihood.columns == vae.likelihood.columns
    assert isinstance(other.input_transform, transforms.Columns)
    torch.manual_seed(1)
    one = evaluate.log_evidence(vae, rows, 20, mask=mask)
    torch.manual_seed(1)
    assert torch.equal(one, evaluate.log_evidence(other, rows, 20, mask=mask))


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO, partial(objectives.IWAE, 3)])
@pytest.mark.parametrize("plate", [True, None])
def test_a_table_trains_in_pyro(loss, plate):
    pyro.clear_param_store()
    rows, vae = make_rows(50).float(), VAE(
        (8,), 2, plate=plate,
        likelihood=partial(likelihoods.Columns, columns=COLUMNS, dispersion="element"),
        prior=partial(priors.Mixture, components=2),
    )  # fmt: skip
    vae.initialize(rows)

    def wrap(program):
        def inner(x):
            with pyro.plate("rows", len(x)):
                return program(x)

        return program if plate else inner

    before = copy.deepcopy(vae.state_dict())
    svi = SVI(wrap(vae.model), wrap(vae.guide), Adam({"lr": 1e-2}), loss())
    assert math.isfinite(svi.step(rows))
    changed = [k for k, v in vae.state_dict().items() if not torch.equal(v, before[k])]
    assert {"likelihood.parts.ordinal_4.raw_steps", "likelihood.parts.normal.raw_scale"} <= set(
        changed
    )


def test_the_encoder_may_see_which_values_are_observed():
    transform = partial(transforms.Columns, append_mask=True)
    vae = VAE((8,), 2, likelihood=partial(likelihoods.Columns, columns=COLUMNS),
              input_transform=transform).double()  # fmt: skip
    x = make_rows()
    vae.initialize(x)
    assert vae.input_transform.out_shape == (4 + 1 + 3 + 4 + 2 + 8,)
    inputs = vae.input_transform.encode(x, make_mask(x))
    assert torch.equal(inputs[:, -8:], make_mask(x).double())
    assert torch.equal(vae.input_transform.encode(x, None)[:, -8:], torch.ones_like(x))
    # A value of a level and a missing value of this column differ in the inputs.
    none = torch.zeros(1, 8, dtype=torch.bool)
    assert not vae.input_transform.encode(x[:1], none)[:, :-8].any()
    assert torch.equal(vae.encode(x[:1], mask=none).mean, vae.encode(x[1:2], mask=none).mean)


@pytest.mark.parametrize("name", ["Identity", "Standardize", "Log1p"])
@pytest.mark.parametrize("event", [(5,), (2, 8, 8)])
def test_other_transforms_append_the_mask_too(name, event):
    part = getattr(transforms, name)(event, append_mask=True)
    assert part.out_shape == (2 * event[0], *event[1:])
    x, mask = torch.rand(3, *event), torch.rand(3, *event) > 0.5
    inputs = part.encode(x, mask)
    assert inputs.shape == (3, *part.out_shape)
    assert torch.equal(inputs[:, event[0] :], mask.float())
    assert not inputs[:, : event[0]][~mask].any()


def test_families_of_single_columns():
    part = likelihoods.Columns(
        (8,), columns=COLUMNS, families={"visits": "poisson", "weight": "student_t"}
    )
    assert list(part.parts) == [
        "normal", "categorical_3", "log_normal", "poisson", "bernoulli", "ordinal_4", "student_t",
        "categorical_2",
    ]  # fmt: skip


def test_the_measure_follows_from_the_kinds():
    def measure(*kinds):
        levels = {"categorical": ("a", "b", "c")}
        columns = [Column(f"{i}", kind, levels.get(kind, ())) for i, kind in enumerate(kinds)]
        return likelihoods.Columns((len(kinds),), columns=columns).measure

    assert measure("real", "positive") == "density"
    assert measure("count", "categorical") == "mass"
    assert measure("count", "real") == "mixed"


WRONG = {
    "none": ({"columns": None}, r"columns, the kinds of the columns .* columns=data.schema"),
    "word": ({"columns": "height"}, "columns to be a list of columns, got 'height'"),
    "empty": ({"columns": []}, "columns to be a list of columns"),
    "number": ({"columns": [*COLUMNS[:7], 3]}, r"a column with .*'name', 'kind'.*, got 3"),
    "kind": ({"columns": [*COLUMNS[:7], ("a", "normal")]}, "the kind of column 'a' to be 'real'"),
    "levels": ({"columns": [*COLUMNS[:7], ("a", "categorical", ["x"])]}, "at least two levels"),
    "repeated": ({"columns": [*COLUMNS[:7], ("a", "categorical", ["x", "x"])]}, "different texts"),
    "binary": ({"columns": [*COLUMNS[:7], ("a", "binary", ["x", "y", "z"])]}, "two levels, got 3"),
    "real": ({"columns": [*COLUMNS[:7], ("a", "real", ["x", "y"])]}, "to have no levels"),
    "twice": ({"columns": [*COLUMNS[:7], COLUMNS[0]]}, "different names, got 'height' twice"),
    "count": ({"columns": COLUMNS[:7]}, r"event_shape \(7,\), the number of columns, got \(8,\)"),
    "family": ({"real": "gamma"}, "real to be 'normal', 'student_t' or 'laplace', got 'gamma'"),
    "unknown": ({"families": {"age": "normal"}}, "families of columns among 'height', .*'age'"),
    "of column": ({"families": {"city": "normal"}}, "the family of 'city' to be 'categorical'"),
    "list": ({"families": ["normal"]}, "families to be a mapping"),
    "dispersion": ({"dispersion": 1.0}, "dispersion to be 'shared', 'element' or 'network'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_columns_are_named(name):
    options, message = WRONG[name]
    with pytest.raises(ValueError, match=f"Expected .*{message}"):
        likelihoods.Columns((8,), **{"columns": COLUMNS, **options})


VALUES = {0: math.inf, 1: 3.0, 2: 0.0, 3: 1.5, 4: 2.0, 5: -1.0}


@pytest.mark.parametrize("index", VALUES)
def test_values_outside_of_a_column_are_refused_by_name(index):
    part = likelihoods.Columns((8,), columns=COLUMNS)
    x = make_rows().float()
    part.check(x)
    x[3, index] = VALUES[index]
    with pytest.raises(ValueError, match=f"Expected column '{COLUMNS[index].name}' of x to be"):
        part.check(x)


def test_shapes_that_do_not_fit_are_named():
    part = likelihoods.Columns((8,), columns=COLUMNS)
    with pytest.raises(ValueError, match=r"features of shape \(\*batch, 15\), got \(5, 7\)"):
        part(torch.zeros(5, 7))
    for call in (part.check, part.initialize):
        with pytest.raises(ValueError, match=r"Expected x of shape \(\*batch, 8\), got \(3, 5\)"):
            call(torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"Expected columns, the kinds .* got None"):
        transforms.Columns((8,))
    other = [*COLUMNS[:7], Column("pet", "categorical", ("cat", "dog", "cow"))]
    with pytest.raises(ValueError, match="input_transform to have the columns of the likelihood"):
        VAE((8,), 2, likelihood=partial(likelihoods.Columns, columns=COLUMNS),
            input_transform=partial(transforms.Columns, columns=other))  # fmt: skip


@pytest.mark.parametrize("count", ["negative_binomial", "poisson"])
def test_a_column_without_any_value_leaves_finite_weights(count):
    columns = [Column("a", "real"), Column("n", "count")]
    x = torch.stack([torch.randn(50), torch.full((50,), torch.nan)], 1)
    vae = VAE((2,), 1, likelihood=partial(likelihoods.Columns, columns=columns, count=count))
    fit(vae, data.Rows(x, ~x.isnan()), epochs=1, batch_size=25)
    assert evaluate.elbo(vae, x, mask=~x.isnan()).elbo.isfinite().all()


def test_imputed_binary_columns_are_codes():
    vae = VAE((8,), 2, likelihood=partial(likelihoods.Columns, columns=COLUMNS)).double()
    x = make_rows()
    vae.initialize(x)
    result = evaluate.impute(vae, x, make_mask(x), 20, draws=2)
    for column, values in zip(COLUMNS, result.x.T, strict=True):
        if column.levels:
            assert column.contains(values).all()
    vae.check(result.draws[1])
    with pytest.raises(ValueError, match="Expected mask, which is True where"):
        evaluate.impute(vae, x, None)


@pytest.mark.parametrize("dispersion", ["shared", "element"])
def test_counts_start_from_the_dispersion_of_the_training_rows(dispersion):
    rng = np.random.default_rng(0)
    theta = np.array([0.5, 5.0, 80.0])
    mean = np.array([4.0, 20.0, 300.0])
    x = torch.tensor(
        rng.negative_binomial(theta, theta / (theta + mean), (20_000, 3)).astype(float)
    )
    x[::3, 1] = torch.nan
    columns = [Column(f"c{i}", "count") for i in range(3)]
    part = likelihoods.Columns((3,), columns=columns, dispersion=dispersion).double()
    part.initialize(x)
    found = part.parts["negative_binomial"].inverse_dispersion(torch.zeros(1, 3), -2).detach()
    expected = theta if dispersion == "element" else np.exp(np.log(theta).mean())
    np.testing.assert_allclose(found.numpy(), expected, rtol=0.1)
    before = copy.deepcopy(part.state_dict())
    part.initialize(x * 2)
    assert all(torch.equal(value, before[key]) for key, value in part.state_dict().items())
