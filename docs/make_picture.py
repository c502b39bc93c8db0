"""Makes README's picture: python docs/make_picture.py."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from pyro_vae import VAE, data, evaluate, fit, plots

torch.manual_seed(0)
digits = data.digits(binarize="threshold")
vae = VAE(digits.event_shape, latent_dim=10)
fit(vae, digits.x.train, valid=digits.x.valid, epochs=300, patience=30)

figure = Figure(figsize=(10, 4.4), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=[1.35, 1])
above, below = left.subplots(2, 1, height_ratios=[2.3, 5])
x = digits.x.test[:10]
plots.reconstructions(x.numpy(), vae.reconstruct(x).numpy(), ax=above)
plots.samples(vae.sample(50, mean=True).numpy(), columns=10, ax=below)
above.set_title("held-out digits and their reconstructions", loc="left", fontsize=10)
below.set_title("samples", loc="left", fontsize=10)
codes = evaluate.posterior_means(vae, digits.x.test).numpy()
ax = plots.latent(codes, digits.labels.test.numpy(), ax=right.subplots())
ax.set_title("codes of held-out digits", loc="left", fontsize=10)
figure.savefig(Path(__file__).parent / "digits.png", dpi=110)
