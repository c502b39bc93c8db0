"""The trial of networks before a training: what it refuses, and that it leaves no trace."""

from functools import partial

import pytest
import torch
from torch import nn

from pyro_vae import VAE, fit, networks, posteriors, priors
from pyro_vae.objectives import ELBO, IWAE

X = (torch.rand(12, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()
NORMED = partial(networks.MLP, hidden=[4], batch_norm=True)
PLAIN = partial(networks.MLP, hidden=[4])


class Counting(nn.Module):
    """A network with a buffer that counts its calls, in training mode or not."""

    def __init__(self, in_shape, out_shape):
        super().__init__()
        self.layer = networks.MLP(in_shape, out_shape, hidden=[4])
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.layer(x)


@pytest.mark.parametrize("role", ["encoder", "decoder"])
@pytest.mark.parametrize("objective", [ELBO(), IWAE(3), IWAE(3, vectorize_particles=False)])
def test_batch_norm_over_one_row(role, objective):
    vae = VAE((6,), 2, **{"encoder": PLAIN, "decoder": PLAIN, role: NORMED})
    # The decoder gets a row for each of several particles that are drawn at once.
    if role == "decoder" and objective.num_particles > 1 and objective.vectorize_particles:
        fit(vae, X[:2], objective=objective, epochs=1, batch_size=1)
        return
    with pytest.raises(ValueError, match=f"at least 2 rows for the batch norm of the {role}"):
        fit(vae, X, objective=objective, epochs=1, batch_size=1)


def test_a_decoder_of_the_user_gets_one_latent_vector():
    layers = [nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 6), nn.Unflatten(1, (1, 6))]
    vae = VAE((6,), 2, encoder=PLAIN, decoder=lambda *_: nn.Sequential(*layers))
    with pytest.raises(ValueError, match="at least 2 rows for the batch norm of the decoder"):
        fit(vae, X, epochs=1, batch_size=1)


def test_the_trial_leaves_buffers_as_they_were():
    vae = VAE((6,), 2, encoder=Counting, decoder=Counting)
    with pytest.raises(ValueError, match="optimizer"):
        fit(vae, X, epochs=1, optimizer=torch.optim.LBFGS)
    assert vae.encoder.calls == vae.decoder.calls == 0


def test_pseudo_inputs_leave_the_buffers_of_the_encoder_as_they_were():
    prior = partial(priors.Vamp, components=3)
    vae = VAE((6,), 2, prior=prior, encoder=Counting, decoder=PLAIN)
    vae.prior_distribution()
    assert vae.encoder.calls == 0
    vae.encode(X)
    assert vae.encoder.calls == 1


@pytest.mark.parametrize("optimizer", [torch.optim.LBFGS, torch.optim.SparseAdam])
def test_a_refused_optimizer_leaves_parts_that_start_from_data_as_they_were(optimizer):
    vae = VAE((6,), 2, prior=partial(priors.Vamp, components=3))
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    with pytest.raises(ValueError, match="optimizer to step by dense gradients"):
        fit(vae, X, epochs=1, optimizer=optimizer)
    torch.testing.assert_close(dict(vae.state_dict()), before)


def test_a_schedule_that_makes_none_is_refused():
    with pytest.raises(ValueError, match=r"Expected lr_schedule to build a .* got None"):
        fit(VAE((6,), 2), X, epochs=1, lr_schedule=lambda optimizer: None)


def test_rows_given_for_both_purposes_are_named_by_the_first():
    with pytest.raises(ValueError, match=r"weights, torch\.float32") as caught:
        fit(VAE((6,), 2), (rows := X.double()), valid=rows, epochs=1)
    assert "(in valid)" not in str(caught.value)


def test_a_part_may_have_two_roles():
    class Both(posteriors.Normal, priors.Normal):
        def __init__(self):
            priors.Normal.__init__(self, 2)

    both = Both()
    assert VAE((6,), 2, prior=both).prior is both
    with pytest.raises(ValueError, match="Expected encoder to be made for that role, got Both"):
        VAE((6,), 2, encoder=both)
