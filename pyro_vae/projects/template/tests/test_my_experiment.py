"""The parts of the experiment fit each other and learn, which takes seconds."""

from pyro_vae import evaluate, fit
from pyro_vae.config import build, compose

CHANCE = -22.1
"""The log evidence of independent pixels, in nats per image."""


def test_my_experiment_learns():
    cfg = compose(["experiment=my_experiment", "out=."])
    data = build(cfg.data)
    vae = build(cfg.vae, event_shape=data.event_shape)
    fit(vae, data.train, valid=data.valid, epochs=10, compile=False)
    assert evaluate.log_evidence(vae, data.test.x, num_particles=100).mean() > CHANCE + 2
