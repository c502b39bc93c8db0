"""The parts of the experiment fit each other and learn, which takes seconds."""

import pyro_vae
from pyro_vae.config import build, compose

CHANCE = -22.1
"""The log evidence of independent pixels, in nats per image."""


def test_my_experiment_learns() -> None:
    """Twenty epochs are enough to learn something about the bars."""
    cfg = compose(["experiment=my_experiment", "out=."])
    data = build(cfg.data)
    vae = build(cfg.vae, event_shape=data.event_shape)
    optimizer = build(cfg.optimizer)
    pyro_vae.fit(vae, data.train, optimizer=optimizer, epochs=20, compile=False)
    evidence = pyro_vae.evaluate.log_evidence(vae, data.test.x, num_particles=100)
    assert evidence.mean() > CHANCE + 2
