"""NumPyro's SVI: ``update`` under ``jit``, a call a step, or in a ``fori_loop`` over an epoch.

Data and order lie on the device and rows are gathered within the compiled step, as in NumPyro's
example of a VAE. Losses are sums over the batch, and epsilon of Adam is scaled likewise. There are
no greys: its Bernoulli gives them infinite losses. Convolutions are channels-last, as flax's.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from cases import (
    EPSILON,
    LEARNING_RATE,
    PIXELS,
    Case,
    Order,
    conv_shapes,
    mlp_shapes,
    weights,
)
from jax import Array, lax, random
from numpyro.infer import SVI, RenyiELBO, TraceMeanField_ELBO

from contenders.base import Runner

ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}
CHANNELS_LAST = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
Layers = list[tuple[Array, Array]]


def layers(case: Case) -> tuple[Layers, Layers]:
    """Returns matrices, as (in, out), and biases of encoder and decoder."""
    arrays = [jnp.asarray(array.T) for array in weights(case)]
    pairs = list(zip(arrays[::2], arrays[1::2], strict=True))
    encoder = len(mlp_shapes(case)[0]) // 2
    return pairs[:encoder], pairs[encoder:]


def apply(parameters: Layers, x: Array, activation: str) -> Array:
    """Applies a multilayer perceptron."""
    for i, (matrix, bias) in enumerate(parameters):
        x = (x if i == 0 else ACTIVATIONS[activation](x)) @ matrix + bias
    return x


def convolutional_layers(case: Case) -> tuple[Layers, Layers]:
    """Returns the same for the convolutional networks; a kernel as (height, width, in, out)."""
    arrays = [jnp.asarray(a.transpose(2, 3, 1, 0) if a.ndim == 4 else a.T) for a in weights(case)]
    pairs = list(zip(arrays[::2], arrays[1::2], strict=True))
    encoder = len(conv_shapes(case)[0]) // 2
    return pairs[:encoder], pairs[encoder:]


def encode(parameters: Layers, x: Array, case: Case) -> Array:
    """Applies the encoder to rows of pixels."""
    if case.hidden:
        return apply(parameters, x, case.activation)
    x = x.reshape(-1, 28, 28, 1)
    for kernel, bias in parameters[:2]:
        x = lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), **CHANNELS_LAST) + bias
        x = jax.nn.relu(x)
    return apply(parameters[2:], x.transpose(0, 3, 1, 2).reshape(len(x), -1), "relu")


def decode(parameters: Layers, z: Array, case: Case) -> Array:
    """Applies the decoder, up to the logits of rows of pixels."""
    if case.hidden:
        return apply(parameters, z, case.activation)
    x = apply(parameters[:2], z, "relu").reshape(-1, 64, 7, 7).transpose(0, 2, 3, 1)
    for kernel, bias in parameters[2:]:
        # The transpose of a convolution from out to in channels, as in PyTorch.
        settings = {"transpose_kernel": True, **CHANNELS_LAST}
        x = lax.conv_transpose(jax.nn.relu(x), kernel, (2, 2), ((1, 2), (1, 2)), **settings) + bias
    return x.reshape(len(x), PIXELS)


def make(case: Case) -> SVI:
    """Makes the SVI of a VAE."""
    encoder, decoder = layers(case) if case.hidden else convolutional_layers(case)

    def model(x: Array) -> None:
        parameters = numpyro.param("decoder", decoder)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros((len(x), case.latent)), 1).to_event(1))
            logits = decode(parameters, z, case)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Array) -> None:
        parameters = numpyro.param("encoder", encoder)
        with numpyro.plate("data", len(x)):
            loc, raw = jnp.split(encode(parameters, x, case), 2, -1)
            numpyro.sample("z", dist.Normal(loc, jax.nn.softplus(raw) + 1e-4).to_event(1))

    adam = numpyro.optim.Adam(LEARNING_RATE, eps=EPSILON * case.batch)
    particles = case.particles
    loss = RenyiELBO(alpha=0, num_particles=particles) if particles else TraceMeanField_ELBO()
    return SVI(model, guide, adam, loss)


def step(
    svi: SVI, case: Case, data: Array, permutation: Array, i: int, carry: tuple[Any, Array]
) -> tuple[Any, Array]:
    """Makes the step of one batch of an epoch; adds its loss to the total."""
    state, total = carry
    rows = lax.dynamic_slice_in_dim(permutation, i * case.batch, case.batch)
    x = data[rows]
    if case.binarize:
        key, draw = random.split(state.rng_key)
        state = state._replace(rng_key=key)
        x = random.bernoulli(draw, x).astype(x.dtype)
    state, loss = svi.update(state, x)
    return state, total + loss


class SviRunner(Runner):
    """Trains by steps, or by as many of an epoch as are left to do in one call."""

    def __init__(self, case: Case, data: np.ndarray, loop: bool) -> None:
        self.case, self.loop = case, loop
        self.rows_per_call = case.batch
        self.data = jnp.asarray(data).astype(jnp.float32) / (255 if case.epoch else 1)
        self.order = Order(len(data), case.batch)
        self.permutation = jnp.zeros(0, jnp.int32)
        self.svi = make(case)
        self.state = self.svi.init(random.key(0), jnp.zeros((case.batch, PIXELS)))

        def steps(
            carry: tuple[Any, Array], data: Array, permutation: Array, first: int, last: int
        ) -> tuple[Any, Array]:
            body = partial(step, self.svi, case, data, permutation)
            return lax.fori_loop(first, last, body, carry) if loop else body(first, carry)

        self.steps = jax.jit(steps, donate_argnums=0)

    def run(self, calls: int) -> float:
        """Trains for so many steps."""
        carry, left = (self.state, jnp.zeros(())), calls
        while left:
            first, last = self.order.advance(left)
            if first == 0:
                self.permutation = jnp.asarray(self.order.permutation.astype(np.int32))
            for start in [first] if self.loop else range(first, last):
                carry = self.steps(carry, self.data, self.permutation, start, last)
            left -= last - first
        self.state, total = jax.block_until_ready(carry)
        return float(total) / (calls * self.case.batch)


def prepare(case: Case, data: np.ndarray, device: str, loop: bool) -> Runner:
    """Makes the training, on the device that the environment names."""
    return SviRunner(case, data, loop)
