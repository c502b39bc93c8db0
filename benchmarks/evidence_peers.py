"""The log evidence beside pythae's ``get_nll`` and a NumPyro ``vmap`` of the same estimate.

    python benchmarks/evidence_peers.py [--rows 200] [--particles 5000] [--threads 1] [--rounds 3]

Needs ``pip install pythae numpyro`` beside pyro_vae. All use the weights of one VAE,
784-200-10-200-784, and the same binary rows. The samples are drawn anew, so the means differ by
their Monte Carlo error. Rounds take turns; times are medians, and the first calls, which compile,
are shown apart. pythae gets a tenth of the rows.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from pyro_vae import VAE, evaluate, networks

PIXELS, HIDDEN, LATENT = 784, 200, 10


def read_layers(network: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns matrices, as (in, out), and biases of a perceptron."""
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
    return [(m.weight.detach().numpy().T, m.bias.detach().numpy()) for m in layers]


def make_pythae(vae: VAE) -> Callable[[torch.Tensor, int], float]:
    """Returns pythae's estimate of the mean over rows, by the networks of a VAE."""
    from pythae import models
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def forward(self, x: torch.Tensor) -> Any:
            q = vae.encode(x)
            scale = q.base_dist.scale if hasattr(q, "base_dist") else q.stddev
            return ModelOutput(embedding=q.mean, log_covariance=2 * scale.log())

    class Decoder(BaseDecoder):
        def forward(self, z: torch.Tensor) -> Any:
            return ModelOutput(reconstruction=vae.decode(z).mean)

    settings = models.VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT, reconstruction_loss="bce")
    model = models.VAE(settings, encoder=Encoder(), decoder=Decoder()).eval()

    def estimate(x: torch.Tensor, particles: int) -> float:
        with torch.no_grad():
            return float(model.get_nll(x, n_samples=particles, batch_size=500))

    return estimate


def make_numpyro(vae: VAE) -> Callable[[torch.Tensor, int], float]:
    """Returns the same estimate by a jitted ``vmap`` over rows, in chunks of samples."""
    import jax
    import jax.numpy as jnp
    import numpyro.distributions as dist

    encoder, decoder = read_layers(vae.encoder), read_layers(vae.decoder)

    def apply(layers: Any, x: Any) -> Any:
        for number, (matrix, bias) in enumerate(layers):
            x = (jax.nn.relu(x) if number else x) @ matrix + bias
        return x

    def weigh(key: Any, x: Any, count: int) -> Any:
        mean, raw = jnp.split(apply(encoder, x), 2)
        q = dist.Normal(mean, jax.nn.softplus(raw) + 1e-4).to_event(1)
        z = q.sample(key, (count,))
        likelihood = dist.Bernoulli(logits=apply(decoder, z)).to_event(1)
        prior = dist.Normal(jnp.zeros(LATENT), 1.0).to_event(1)
        return jax.scipy.special.logsumexp(
            likelihood.log_prob(x) + prior.log_prob(z) - q.log_prob(z)
        )

    @partial(jax.jit, static_argnums=(2, 3))
    def sum_weights(key: Any, x: Any, chunks: int, count: int) -> Any:
        def body(total: Any, key: Any) -> Any:
            keys = jax.random.split(key, len(x))
            new = jax.vmap(lambda k, row: weigh(k, row, count))(keys, x)
            return jnp.logaddexp(total, new), None

        start = jnp.full(len(x), -jnp.inf)
        return jax.lax.scan(body, start, jax.random.split(key, chunks))[0]

    def estimate(x: torch.Tensor, particles: int) -> float:
        rows, count = jnp.asarray(x.reshape(-1, 100, PIXELS).numpy()), 40
        sums = [
            sum_weights(jax.random.PRNGKey(i), chunk, particles // count, count)
            for i, chunk in enumerate(rows)
        ]
        return float(jnp.concatenate(sums).mean() - np.log(particles))

    return estimate


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--particles", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    cores = sorted(os.sched_getaffinity(0))[: given.threads]
    os.sched_setaffinity(0, cores)
    torch.manual_seed(0)
    network = partial(networks.MLP, hidden=[HIDDEN])
    vae = VAE((1, 28, 28), LATENT, encoder=network, decoder=network).eval()
    x = (torch.rand(given.rows, 1, 28, 28) < 0.3).float()

    def ours(compiled: bool) -> Callable[[torch.Tensor, int], float]:
        return lambda x, k: evaluate.log_evidence(vae, x, k, compile=compiled).mean().item()

    few = x[: max(10, given.rows // 10)]
    contenders = {
        "pyro_vae, compiled": (ours(True), x),
        "pyro_vae, eager": (ours(False), x),
        "NumPyro, vmap": (make_numpyro(vae), x),
        "pythae, get_nll": (make_pythae(vae), few),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    means = {}
    for _ in range(given.rounds + 1):
        for name, (estimate, rows) in contenders.items():
            start = time.perf_counter()
            means[name] = estimate(rows, given.particles)
            times[name].append((time.perf_counter() - start) / len(rows))
    print(f"torch {torch.__version__}, {given.threads} thread(s), {given.rounds} rounds")
    print(f"{given.rows} rows, {given.particles} samples; ns per pixel and sample")
    print("| contender | ns | of ours | first call, s | mean, nats |")
    print("| --- | ---: | ---: | ---: | ---: |")
    base = statistics.median(times["pyro_vae, compiled"][1:])
    for name, (_, rows) in contenders.items():
        middle = statistics.median(times[name][1:])
        each = middle / (given.particles * PIXELS) * 1e9
        print(
            f"| {name} | {each:.1f} | {middle / base:.2f} | {times[name][0] * len(rows):.1f} | "
            f"{means[name]:.3f} |"
        )


if __name__ == "__main__":
    main()
