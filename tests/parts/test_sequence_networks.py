"""Laws of the networks for sequences: padding has no effect, gaps and order have one."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from pyro_vae import VAE, likelihoods, networks, objectives, transforms
from pyro_vae.networks import Embedding, GRUDecoder, GRUEncoder, TransformerDecoder
from pyro_vae.networks import TransformerEncoder as Transformer
from pyro_vae.networks.transformer import _compute_positions, _Layer
from pyro_vae.training.argument_checks import choose_engine

ENCODERS = {
    "gru": partial(GRUEncoder, hidden=5),
    "gru_deep": partial(GRUEncoder, hidden=5, layers=3),
    "gru_forward": partial(GRUEncoder, hidden=5, layers=2, bidirectional=False),
    "transformer": partial(Transformer, width=8, heads=2),
    "embedding_gru": partial(Embedding, levels=9, dim=3, network="gru"),
    "embedding_transformer": partial(Embedding, levels=9, dim=3, network="transformer"),
}
DECODERS = {
    "gru": partial(GRUDecoder, hidden=5),
    "gru_deep": partial(GRUDecoder, hidden=5, layers=3),
    "transformer": partial(TransformerDecoder, width=6, heads=2),
}
STEPS = {"numbers": (), "features": (3,), "grids": (2, 3)}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def levels(*shape):
    return torch.randint(9, shape, dtype=torch.float64) / 8


def padded(values: torch.Tensor, mask: torch.Tensor, length: int) -> torch.Tensor:
    """Values and their mask, padded to a length by zeros."""
    pad = values.new_zeros(len(values), length - values.shape[1], *values.shape[2:])
    return torch.cat([values, pad, mask.to(values), pad], 1)


def built(kind: str, length: int, step: tuple[int, ...], like: nn.Module | None = None, **options):
    """A network for masked sequences of a length, with the weights of another."""
    network = ENCODERS[kind]((2 * length, *step), (4,), masked=True, **options).double().eval()
    if like is not None:
        network.load_state_dict(like.state_dict())
    return network


@pytest.mark.parametrize("covariate_dim", [0, 2])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", ENCODERS)
def test_padding_changes_nothing(kind, step, covariate_dim):
    step = STEPS[step]
    observed, mask = levels(6, 5, *step), torch.rand(6, 5, *step) > 0.4
    mask[:, -1] = True
    covariates = [torch.randn(6, covariate_dim).double()] if covariate_dim else []
    options = {"covariate_dim": covariate_dim}
    exact = built(kind, 5, step, **options)
    expected = exact(padded(observed, mask, 5), *covariates)
    for length in (6, 9, 17):
        network = built(kind, length, step, like=exact, **options)
        x = padded(observed, mask, length)
        out = network(x, *covariates)
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)
        other = x.clone()
        other[:, 5:length] = levels(6, length - 5, *step)
        assert torch.equal(network(other, *covariates), out)
        # Values in gaps are no content either.
        gaps = x.clone()
        gaps[:, :5][~mask] = 0.5
        assert torch.equal(network(gaps, *covariates), out)


@pytest.mark.parametrize("kind", ENCODERS)
def test_each_sequence_of_a_batch_has_its_own_length(kind):
    network = built(kind, 7, (3,))
    values, mask = levels(7, 7, 3), torch.ones(7, 7, 3)
    for row in range(7):
        mask[row, row + 1 :] = 0
    together = network(padded(values, mask, 7))
    for row in range(7):
        alone = built(kind, row + 1, (3,), like=network)
        x = padded(values[row : row + 1, : row + 1], mask[row : row + 1, : row + 1], row + 1)
        torch.testing.assert_close(together[row], alone(x)[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ENCODERS)
def test_padding_has_no_gradient(kind):
    network = built(kind, 6, (3,))
    mask = torch.ones(4, 6, 3)
    mask[:, 4:] = 0
    mask[:, 2] = 0
    x = padded(levels(4, 6, 3) * 0.9 + 0.03, mask, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).square().sum(), x)
    assert not gradient[:, 4:6].any()
    assert not gradient[:, 2].any()
    assert gradient[:, [0, 1, 3]].all()


@pytest.mark.parametrize("covariate_dim", [0, 2])
@pytest.mark.parametrize("kind", ENCODERS)
def test_a_sequence_without_observed_values_is_finite(kind, covariate_dim):
    network = built(kind, 6, (3,), covariate_dim=covariate_dim)
    covariates = [torch.randn(4, covariate_dim).double()] if covariate_dim else []
    mask = torch.zeros(4, 6, 3)
    mask[0] = 1
    x = padded(levels(4, 6, 3), mask, 6)
    out = network(x, *covariates)
    out.square().sum().backward()
    gradients = [p.grad for p in network.parameters()]
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(g).all() and g.any() for g in gradients)
    assert torch.equal(out[1], out[2]) == (covariate_dim == 0)
    # All padding is as good as a single step of it.
    short = built(kind, 1, (3,), like=network, covariate_dim=covariate_dim)
    nothing = short(x.new_zeros(4, 2, 3), *covariates)
    torch.testing.assert_close(out[1:], nothing[1:], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_gap_is_not_a_zero_and_is_in_its_place(kind):
    network = built(kind, 5, (3,))
    values, mask = levels(1, 5, 3), torch.ones(1, 5, 3)
    values[:, 1:3] = 0
    outs = [network(padded(values, mask, 5))]
    for step in (1, 2):
        gap = mask.clone()
        gap[:, step] = 0
        outs.append(network(padded(values, gap, 5)))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (outs[i] - outs[j]).abs().max() > 1e-6


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_order_of_steps_matters(kind):
    network = ENCODERS[kind]((6, 3), (4,)).double().eval()
    x = levels(1, 6, 3)
    assert (network(x) - network(x.flip(1))).abs().max() > 1e-6


@pytest.mark.parametrize("kind", ENCODERS)
def test_masked_without_gaps_reads_all_steps(kind):
    network = built(kind, 5, (3,))
    x = (levels(2, 5, 3) * 0.9 + 0.03).requires_grad_()
    out = network(padded(x, torch.ones(2, 5, 3), 5))
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert gradient.all()


@pytest.mark.parametrize("covariate_dim", [0, 2])
@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", DECODERS)
def test_decoders_give_sequences_of_any_form(kind, step, length, covariate_dim):
    z = torch.randn(4, 5)
    covariates = [torch.randn(4, covariate_dim)] if covariate_dim else []
    make = partial(DECODERS[kind], covariate_dim=covariate_dim)
    for numbers in (1, 2):
        shape = (numbers, length, *STEPS[step])
        assert make((5,), shape)(z, *covariates).shape == (4, *shape)
    shape = (length, *STEPS[step])
    out = make((5,), shape, time_dim=0)(z, *covariates)
    assert out.shape == (4, *shape)
    if length > 1:
        assert (out[:, 0] != out[:, 1]).all()


@pytest.mark.parametrize("kind", DECODERS)
def test_the_time_of_a_decoder_is_the_dimension_that_shares_weights(kind):
    # The same weights, moved, are the same function.
    z = torch.randn(4, 5)
    first = DECODERS[kind]((5,), (7, 2, 3), time_dim=0)
    for time_dim, shape in ((1, (2, 7, 3)), (2, (2, 3, 7))):
        other = DECODERS[kind]((5,), shape, time_dim=time_dim)
        other.load_state_dict(first.state_dict())
        assert torch.equal(other(z), first(z).movedim(1, 1 + time_dim))


@pytest.mark.parametrize("kind", [kind for kind in ENCODERS if "embedding" not in kind])
@pytest.mark.parametrize("masked", [False, True])
def test_the_time_of_an_encoder_can_be_another_dimension(kind, masked):
    values, mask = torch.randn(4, 6, 3), torch.rand(4, 6, 3).round()
    first = ENCODERS[kind]((12 if masked else 6, 3), (2,), masked=masked)
    shape = (6 if masked else 3, 6)
    other = ENCODERS[kind](shape, (2,), masked=masked, time_dim=1)
    other.load_state_dict(first.state_dict())
    x = torch.cat([values, mask], 1) if masked else values
    y = torch.cat([values.mT, mask.mT], 1) if masked else values.mT
    torch.testing.assert_close(other(y), first(x))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_states_are_those_of_torch(layers, bidirectional):
    network = GRUEncoder((7, 3), (4,), hidden=5, layers=layers, bidirectional=bidirectional)
    reference = nn.GRU(3, 5, layers, batch_first=True, bidirectional=bidirectional)
    for depth in range(layers):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            parts = [(network.forward_layers, ""), (network.backward_layers, "_reverse")]
            for modules, suffix in parts[: 1 + bidirectional]:
                source = getattr(modules[depth], f"{name}_l0")
                getattr(reference, f"{name}_l{depth}{suffix}").data.copy_(source)
    x = torch.randn(4, 7, 3)
    _, last = reference(x)
    last = last.unflatten(0, (layers, -1))[-1].transpose(0, 1).flatten(1)
    torch.testing.assert_close(network(x), network.last(last))


def test_the_decoder_feeds_z_to_each_step_and_to_the_start():
    network = GRUDecoder((5,), (1, 3, 2), hidden=4)
    z = torch.randn(6, 5)
    cell = nn.GRUCell(5, 4)
    for name, value in cell.named_parameters():
        value.data.copy_(getattr(network.gru, f"{name}_l0"))
    h, outs = (network.first[0](z)).tanh(), []
    for _ in range(3):
        h = cell(z, h)
        outs.append(network.last(h))
    torch.testing.assert_close(network(z), torch.stack(outs, 1)[:, None])


@pytest.mark.parametrize("padding", [0, 2])
def test_a_layer_is_that_of_torch(padding):
    layer = _Layer(8, 2, 0.0).double()
    reference = nn.TransformerEncoderLayer(
        8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True
    ).double()
    norm, first, _, _, second, _ = layer.feedforward
    for target, source in (
        (reference.norm1, layer.attention_norm), (reference.norm2, norm),
        (reference.linear1, first), (reference.linear2, second),
        (reference.self_attn.out_proj, layer.mixing),
    ):  # fmt: skip
        for parameter in source.parameters():
            nn.init.normal_(parameter, std=0.3)
        target.load_state_dict(source.state_dict())
    reference.self_attn.in_proj_weight.data.copy_(layer.projection.weight)
    nn.init.zeros_(reference.self_attn.in_proj_bias)
    h = torch.randn(3, 6, 8).double()
    present = torch.arange(6).expand(3, 6) < 6 - padding
    expected = reference(h, src_key_padding_mask=~present if padding else None)
    out = layer(h, present if padding else None)
    torch.testing.assert_close(out[present], expected[present])


def test_positions_are_sines_and_cosines():
    for width in (1, 2, 5, 8):
        table = _compute_positions(9, width, 50.0)
        for place, column in ((0, 0), (3, 0), (8, width - 1)):
            rate = 50 ** (-(column - column % 2) / width)
            angle = torch.tensor(place * rate)
            expected = angle.cos() if column % 2 else angle.sin()
            torch.testing.assert_close(table[place, column], expected)


@pytest.mark.parametrize("kind", [*ENCODERS, *(f"{kind}_decoder" for kind in DECODERS)])
def test_double_precision_copies_and_states(kind):
    if kind.endswith("_decoder"):
        make, x = partial(DECODERS[kind.removesuffix("_decoder")], (5,), (2, 4, 3)), levels(3, 5)
    else:
        make, x = partial(ENCODERS[kind], (8, 3), (2,), masked=True), levels(3, 8, 3).round()
    network = make().double().eval()
    out = network(x)
    assert out.dtype == torch.float64
    assert torch.equal(copy.deepcopy(network)(x), out)
    other = make().double().eval()
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(x), out)
    torch.testing.assert_close(network.float()(x.float()), out.float(), rtol=1e-4, atol=1e-5)


def test_dropout_is_random_in_training_alone():
    for network, x in (
        (Transformer((6, 3), (4,), dropout=0.5), torch.randn(2, 6, 3)),
        (TransformerDecoder((3,), (1, 6), dropout=0.5), torch.randn(2, 3)),
    ):
        assert not torch.equal(network(x), network(x))
        network.eval()
        assert torch.equal(network(x), network(x))


def masked_vae(encoder, decoder, event=(6, 3)) -> VAE:
    return VAE(
        event, 2, likelihood=likelihoods.Normal, encoder=partial(encoder, masked=True),
        decoder=decoder, input_transform=partial(transforms.Identity, append_mask=True),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["gru", "transformer"])
@pytest.mark.parametrize("event", [(6,), (6, 3)])
def test_the_posterior_of_a_vae_does_not_see_padding(kind, event):
    vae = masked_vae(ENCODERS[kind], DECODERS[kind], event).eval()
    x, mask = torch.randn(4, *event), torch.ones(4, *event, dtype=torch.bool)
    mask[:, 4:] = False
    other = x.clone()
    other[:, 4:] = 50.0
    assert torch.equal(vae.encode(x, mask=mask).mean, vae.encode(other, mask=mask).mean)
    assert not torch.equal(vae.encode(x).mean, vae.encode(other).mean)
    assert vae.decode(torch.zeros(2, 2)).event_shape == event


BAD = {
    "odd": (
        lambda: GRUEncoder((5, 2), (2,), masked=True),
        r"in_shape .* an even number, got \(5, 2\): pass append_mask=True",
    ),
    "odd_transformer": (lambda: Transformer((5, 2), (2,), masked=True), "in_shape .* even"),
    "odd_embedding": (lambda: Embedding((5,), (2,), masked=True), "in_shape .* even"),
    "time": (
        lambda: GRUEncoder((5,), (2,), time_dim=1),
        r"in_shape to have a dimension 1, which is time by time_dim=1, .* got \(5,\)",
    ),
    "time_of_output": (
        lambda: GRUDecoder((2,), (5,)),
        r"out_shape to have a dimension 1, .* as \(numbers, length, \*features\) does, got \(5,\): "
        r"pass the dimension of the steps, time_dim=0",
    ),
    "time_transformer": (lambda: TransformerDecoder((2,), (5,)), "out_shape to have a dimension"),
    "time_negative": (lambda: GRUEncoder((5,), (2,), time_dim=-1), "time_dim .* got -1"),
    "masked": (lambda: GRUEncoder((4,), (2,), masked=1), "masked to be True or False, got 1"),
    "hidden": (lambda: GRUDecoder((4,), (1, 2), hidden=0), "hidden .* got 0"),
    "layers": (lambda: GRUEncoder((4,), (2,), layers=0), "layers .* got 0"),
    "layers_transformer": (lambda: Transformer((4,), (2,), layers=0), "layers .* got 0"),
    "heads": (lambda: Transformer((4,), (2,), width=6), "width .* multiple of heads=4, got 6"),
    "period": (lambda: Transformer((4,), (2,), max_period=0.5), "max_period .* got 0.5"),
    "width": (lambda: TransformerDecoder((4,), (1, 2), width=0), "width .* got 0"),
    "dropout": (lambda: Transformer((4,), (2,), dropout=1.5), "dropout .* got 1.5"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_raise(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=f"Expected {message}"):
        make()


def test_the_networks_are_exported():
    for network in (Embedding, GRUDecoder, GRUEncoder, TransformerDecoder, Transformer):
        assert getattr(networks, network.__name__) is network


@pytest.mark.parametrize(
    ("encoder", "engine"), [(networks.MLP, "compiled"), (networks.GRUEncoder, "eager")]
)
def test_recurrent_networks_are_not_compiled_unless_asked_for(encoder, engine):
    vae = VAE((6, 2), 2, likelihood=likelihoods.Normal, encoder=encoder)
    chosen = [
        choose_engine(compile, vae, objectives.ELBO(), 100, 1_000_000) for compile in ("auto", True)
    ]
    assert chosen == [engine, "compiled"]


@pytest.mark.parametrize(("masked", "append_mask"), [(True, False), (False, True)])
@pytest.mark.parametrize("encoder", [networks.GRUEncoder, networks.TransformerEncoder])
def test_encoder_and_input_transform_agree_on_the_mask(encoder, masked, append_mask):
    with pytest.raises(
        ValueError, match=f"to be the same, got masked={masked} in {encoder.__name__} and append_m"
    ):
        VAE(
            (20, 2), 2, likelihood=likelihoods.Normal, encoder=partial(encoder, masked=masked),
            input_transform=partial(transforms.Identity, append_mask=append_mask),
        )  # fmt: skip
