"""Wrong calls, as a new user types them: each raises one error of one line, before any work."""

import re
from functools import partial

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae
from pyro_vae import (
    VAE,
    AutoVAEGuide,
    VAETransformer,
    compile,
    config,
    data,
    evaluate,
    fit,
    fit_many,
    kl,
    likelihoods,
    load,
    networks,
    objectives,
    plots,
    posteriors,
    priors,
    report,
    reuse,
    save,
)
from pyro_vae.evaluate import baseline
from pyro_vae.training.loop import Training

IMAGES = torch.ones(20, 1, 8, 8)
TABLE = np.random.default_rng(0).normal(size=(20, 4))


class Pair(nn.Module):
    """An encoder that returns mean and log variance apart, as many tutorials have it."""

    def __init__(self, in_shape, out_shape):
        super().__init__()
        self.layer = nn.Linear(in_shape.numel(), out_shape[-1])

    def forward(self, x):
        return self.layer(x.flatten(1)), self.layer(x.flatten(1))


class Lazy(nn.Module):
    """An encoder whose weights have no shape before its first call."""

    def __init__(self, in_shape, out_shape):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.LazyLinear(out_shape.numel()), nn.Unflatten(1, out_shape)
        )

    def forward(self, x):
        return self.layers(x)


def image_vae(**options):
    return VAE((1, 8, 8), 2, **options)


def plane_vae(**options):
    return VAE(4, 2, likelihood=likelihoods.Normal, **options)


NAMES = {
    "AutoVAEGuide": AutoVAEGuide, "VAE": VAE, "VAETransformer": VAETransformer, "X": IMAGES,
    "T": TABLE, "baseline": baseline, "compile": compile, "config": config,
    "data": data, "dist": dist, "evaluate": evaluate, "fit": fit, "fit_many": fit_many,
    "kl": kl, "likelihoods": likelihoods,
    "load": load, "networks": networks, "nn": nn, "np": np, "o": objectives, "partial": partial,
    "pd": pd, "plots": plots, "posteriors": posteriors, "priors": priors, "pyro": pyro,
    "report": report, "reuse": reuse, "save": save, "torch": torch, "v": image_vae,
    "w": plane_vae, "Pair": Pair, "Lazy": Lazy, "schedulers": torch.optim.lr_scheduler,
}  # fmt: skip

CALLS = [
    # The constructor and the parts.
    ("VAE((1, 8, 8), '2')", "latent_dim", "'2'"),
    ("VAE((1, 8, 8), 2.0)", "latent_dim", "2.0"),
    ("VAE((1, 8, 8), None)", "latent_dim", "None"),
    ("VAE((1, 8, 8), np.float64(2))", "latent_dim", "2.0"),
    ("VAE((1, 8, 8), -1)", "latent_dim", "-1"),
    ("VAE('1x8x8', 2)", "event_shape", "'1x8x8'"),
    ("VAE((1, 8.0, 8), 2)", "event_shape", "8.0"),
    ("VAE(None, 2)", "event_shape", "None"),
    ("VAE(X, 2)", "event_shape", "Tensor of shape (20, 1, 8, 8)"),
    ("VAE(X.shape[:0], 2)", "event_shape", "[]"),
    ("v(covariate_dim=-3)", "covariate_dim", "-3"),
    ("v(covariate_dim='3')", "covariate_dim", "'3'"),
    ("v(plate=False)", "plate", "False"),
    ("v(plate=1)", "plate", "1"),
    ("v(name=3)", "name", "3"),
    ("v(prior='normal')", "prior", "'normal'"),
    ("v(prior=None)", "prior", "None"),
    ("v(prior=likelihoods.Normal)", "prior", "likelihood"),
    ("v(prior=dist.Normal(0.0, 1.0))", "prior", "Normal"),
    ("v(posterior=priors.Normal)", "posterior", "prior"),
    ("v(likelihood=posteriors.Normal)", "likelihood", "posterior"),
    ("v(likelihood=dist.Bernoulli)", "likelihood", "Bernoulli"),
    ("v(encoder=likelihoods.Bernoulli((1, 8, 8)))", "encoder", "Bernoulli"),
    ("v(encoder=nn.Linear)", "encoder", "Linear"),
    ("v(encoder=[200, 200])", "encoder", "[200, 200]"),
    ("v(decoder=lambda in_shape, out_shape: torch.relu)", "decoder", "relu|builtin"),
    ("v(encoder=partial(networks.MLP, hidden=200))", "hidden", "200"),
    ("v(encoder=partial(networks.MLP, hidden=[200, 0]))", "hidden", "[200, 0]"),
    ("v(encoder=partial(networks.MLP, hidden='200'))", "hidden", "'200'"),
    ("v(encoder=partial(networks.MLP, activation='mish'))", "activation", "'mish'"),
    ("v(encoder=partial(networks.MLP, activation=torch.relu))", "activation", "relu"),
    ("v(encoder=partial(networks.MLP, batch_norm='yes'))", "batch_norm", "'yes'"),
    ("v(encoder=partial(networks.ConvEncoder, channels=32))", "channels", "32"),
    ("v(encoder=partial(networks.ConvEncoder, hidden=(128,)))", "hidden", "(128,)"),
    ("networks.MLP(4, (2,), covariate_dim=1.5)", "covariate_dim", "1.5"),
    ("priors.Normal(0)", "latent_dim", "0"),
    ("priors.Normal(2, hidden=[3])", "hidden", "(3,)"),
    ("priors.Normal(2, learned='yes')", "learned", "'yes'"),
    ("priors.Mixture(2, components='10')", "components", "'10'"),
    ("priors.Mixture(2, spread=float('nan'))", "spread", "nan"),
    ("priors.Mixture(2, spread='wide')", "spread", "'wide'"),
    ("priors.Vamp(2, (1, 8, 8), components=0)", "components", "0"),
    ("priors.Vamp(2, (1, 8, 8)).initialize(X.numpy())", "x", "ndarray"),
    ("posteriors.Normal(2, min_scale=0)", "min_scale", "0"),
    ("posteriors.Full(2, min_scale=None)", "min_scale", "None"),
    ("likelihoods.Normal((2,), scale='fixed')", "scale", "'fixed'"),
    ("likelihoods.Normal((2,), scale=-1.0)", "scale", "-1.0"),
    ("likelihoods.Normal((2,), scale=torch.ones(2))", "scale", "Tensor of shape (2,)"),
    ("likelihoods.Normal((2,), momentum='0.1')", "momentum", "'0.1'"),
    ("likelihoods.Bernoulli((2,), grey_scale=1)", "grey_scale", "1"),
    ("likelihoods.ContinuousBernoulli((2,), max_logit=-2)", "max_logit", "-2"),
    ("likelihoods.Categorical((2,), levels=1)", "levels", "1"),
    ("likelihoods.Categorical((2,), levels=256.0)", "levels", "256.0"),
    # The VAE's methods.
    ("v()(X)", "vae.model", "VAE itself"),
    ("v().encode(X.numpy())", "x", "ndarray"),
    ("v().encode(X.int())", "x", "torch.int32"),
    ("v().encode(X.double())", "x", "torch.float64"),
    ("v().encode(X.to('meta'))", "x", "meta"),
    ("v().encode(X.permute(0, 2, 3, 1))", "x", "(20, 8, 8, 1)"),
    ("v().encode(X.to_sparse())", "x", "torch.sparse_coo"),
    ("v(encoder=Pair).encode(X)", "Pair", "tuple"),
    ("v(encoder=lambda in_shape, out_shape: nn.Flatten()).encode(X)", "encoder", "(20, 64)"),
    ("v().decode([[0.0, 1.0]])", "z", "list"),
    ("v().decode(torch.zeros(5, 3))", "z", "(5, 3)"),
    ("v().sample('5')", "n", "'5'"),
    ("v().sample(0)", "n", "0"),
    ("v().sample(5, covariates=torch.zeros(5, 2))", "covariates", "(5, 2)"),
    ("v().reconstruct(pd.DataFrame(T))", "x", "DataFrame"),
    ("v().check(X * 0.5)", "x", "grey"),
    ("v().check(X.to('meta'))", "x", "meta"),
    ("v().check(X.to_sparse())", "x", "torch.sparse_coo"),
    ("v().model(X.to_sparse())", "x", "torch.sparse_coo"),
    ("v().guide(X.to('meta'))", "x", "meta"),
    ("v().check(X.double())", "x", "torch.float64"),
    ("v().check(X.int())", "x", "torch.int32"),
    ("v().check(X[:0])", "x", "(0, 1, 8, 8)"),
    ("v().check(X / X.new_zeros(()))", "x", "infinite"),
    ("v().check(X, mask=X)", "mask", "torch.float32"),
    ("v().check(X, mask=torch.ones(3, dtype=torch.bool))", "mask", "(3,)"),
    ("v().calibrate(X, batch_size=0)", "batch_size", "0"),
    ("v().model(X, data_size=3)", "data_size", "3"),
    ("v().model(X, data_size='60000')", "data_size", "'60000'"),
    ("v().model(n=2.5)", "n", "2.5"),
    ("v().guide(X, suffix=1.5)", "suffix", "1.5"),
    ("v().model(X, infer='enumerate')", "infer", "'enumerate'"),
    ("AutoVAEGuide('model', v())", "model", "'model'"),
    ("AutoVAEGuide(lambda x: x, nn.Linear(2, 2))", "vae", "Linear"),
    # Objectives and schedules.
    ("o.ELBO('5')", "num_particles", "'5'"),
    ("o.ELBO(0)", "num_particles", "0"),
    ("o.ELBO(beta=-1)", "beta", "-1"),
    ("o.ELBO(beta='1')", "beta", "'1'"),
    ("o.ELBO(beta=float('nan'))", "beta", "nan"),
    ("o.ELBO(beta=torch.ones(2))", "beta", "(2,)"),
    ("o.ELBO(beta=o.Linear(0, 1, 10))", "beta", "Linear"),
    ("o.ELBO(analytic='yes')", "analytic", "'yes'"),
    ("o.ELBO(estimator='reinforce')", "estimator", "'reinforce'"),
    ("o.IWAE(5.0)", "num_particles", "5.0"),
    ("o.IWAE(5, estimator=None)", "estimator", "None"),
    ("o.IWAE(5, dreg_alpha=0.5)", "dreg_alpha", "0.5"),
    ("o.MIWAE(8, groups=3)", "groups", "3"),
    ("o.MIWAE(8, groups='2')", "groups", "'2'"),
    ("o.Renyi(5, alpha='max')", "alpha", "'max'"),
    ("o.Jackknife(8, order=8)", "order", "8"),
    ("o.FreeBits(nats=-0.1)", "nats", "-0.1"),
    ("o.FreeBits(per='pixel')", "per", "'pixel'"),
    ("o.GECO(target=None)", "target", "None"),
    ("o.GECO(target=20.0, momentum=2)", "momentum", "2"),
    ("o.Capacity(capacity='25')", "capacity", "'25'"),
    ("o.CIWAE(5, beta=1.5)", "beta", "1.5"),
    ("o.Linear(0.0, 1.0, 10.0)", "steps", "10.0"),
    ("o.Linear('0', 1.0, 10)", "start", "'0'"),
    ("o.Cosine(0.0, None, 10)", "end", "None"),
    ("o.Constant('0.5')", "value", "'0.5'"),
    ("o.Cyclical(0.0, 1.0, 10, cycles=1.5)", "cycles", "1.5"),
    ("o.Cyclical(0.0, 1.0, 10, ratio='half')", "ratio", "'half'"),
    # fit.
    ("fit(nn.Linear(2, 2), X)", "vae", "Linear"),
    ("fit(X, v())", "train", "VAE"),
    ("fit(v(), None)", "train", "None"),
    ("fit(v(), X.numpy())", "train", "ndarray"),
    ("fit(v(), X.tolist())", "train", "list"),
    ("fit(w(), pd.DataFrame(T))", "train", "DataFrame"),
    ("fit(v(), torch.utils.data.DataLoader(X, 5))", "train", "DataLoader"),
    ("fit(v(), torch.utils.data.TensorDataset(X))", "train", "TensorDataset"),
    ("fit(v(), (X, torch.zeros(20)))", "train", "tuple"),
    ("fit(v(), data.digits())", "train", "Data"),
    ("fit(v(), X[:0])", "x", "(0, 1, 8, 8)"),
    ("fit(v(), X.flatten(1))", "x", "(20, 64)"),
    ("fit(v(), X.byte())", "x", "torch.uint8"),
    ("fit(v(), X * torch.nan)", "x", "1280"),
    ("fit(v(), X * 255)", "x", "255"),
    ("fit(v(), X, valid=X.double())", "valid", "torch.float64"),
    ("fit(v(), X, valid=X.numpy())", "valid", "ndarray"),
    ("fit(v(covariate_dim=3), X)", "covariate_dim", "3"),
    ("fit(v(encoder=Pair), X)", "Pair", "tuple"),
    ("fit(v(encoder=Lazy), X)", "encoder.layers.1", "lazy"),
    ("fit(v(encoder=partial(networks.MLP, batch_norm=True)), X, batch_size=1)", "batch_size", "1"),
    ("fit(v(decoder=partial(networks.MLP, batch_norm=True)), X[:1])", "train", "1"),
    ("fit(v(), X, objective='elbo')", "objective", "str"),
    ("fit(v(), X, objective=o.IWAE)", "objective", "IWAE"),
    ("fit(v(), X, objective=pyro.infer.TraceEnum_ELBO)", "objective", "TraceEnum_ELBO"),
    ("fit(v(), X, optimizer='adam')", "optimizer", "'adam'"),
    ("fit(v(), X, optimizer=1e-3)", "optimizer", "0.001"),
    ("fit(v(), X, optimizer=pyro.optim.Adam({'lr': 1e-3}))", "optimizer", "PyroOptim"),
    ("fit(v(), X, optimizer=torch.optim.Adam([torch.zeros(1)]))", "optimizer", "Adam"),
    ("fit(v(), X, optimizer=torch.optim.LBFGS)", "optimizer", "LBFGS"),
    ("fit(v(), X, optimizer=torch.optim.SparseAdam)", "optimizer", "SparseAdam"),
    ("fit(v(), X, optimizer=lambda parameters: None)", "optimizer", "None"),
    ("fit(v(), X, epochs='10')", "epochs", "'10'"),
    ("fit(v(), X, epochs=10.0)", "epochs", "10.0"),
    ("fit(v(), X, batch_size=0)", "batch_size", "0"),
    ("fit(v(), X, batch_size=None)", "batch_size", "None"),
    ("fit(v(), X, lr_schedule=0.1)", "lr_schedule", "0.1"),
    ("fit(v(), X, lr_schedule=lambda optimizer: 0.1)", "lr_schedule", "0.1"),
    ("fit(v(), X, schedules=o.Linear(0, 1, 2))", "schedules", "Linear"),
    ("fit(v(), X, schedules={'beta': 0.5})", "beta", "0.5"),
    ("fit(v(), X, schedules={'betta': o.Constant(1)})", "schedules", "'betta'"),
    ("fit(v(), X, schedules={'beta': o.Linear(0, 1, 10**6)})", "beta", "steps=1000000"),
    ("fit(v(), X, clip_norm='1')", "clip_norm", "'1'"),
    ("fit(v(), X, clip_norm=-1.0)", "clip_norm", "-1.0"),
    ("fit(v(), X, patience=5)", "valid", "patience=5"),
    ("fit(v(), X, valid=X, patience=2.5)", "patience", "2.5"),
    ("fit(v(), X, compile='yes')", "compile", "'yes'"),
    ("fit(v(), X, compile=None)", "compile", "None"),
    ("fit(v(), X, precision='float16')", "precision", "'float16'"),
    ("fit(v(), X, seed='0')", "seed", "'0'"),
    ("fit(v(), X, seed=torch.Generator())", "seed", "Generator"),
    ("fit(v(), X, out=5)", "out", "5"),
    ("fit(v(), X, out='')", "out", "''"),
    ("fit(v(), X, resume=True)", "out", "None"),
    ("fit(v(), X, resume='auto')", "resume", "'auto'"),
    ("fit(v(), X, checkpoint_seconds='10')", "checkpoint_seconds", "'10'"),
    ("fit(v(), X, tracker=print)", "tracker", "print"),
    ("v().check([[1.0] * 6])", "x", "list"),
    # fit_many.
    ("fit_many(v(), X)", "vaes", "VAE"),
    ("fit_many([], X)", "vaes", "[]"),
    ("fit_many([v(), v()], X, objective=(i for i in ()))", "objective", "generator"),
    ("fit_many([v(), None], X)", "vaes", "NoneType"),
    ("fit_many([v(), v()], X, seed=[0])", "seed", "1"),
    ("fit_many([v()], X, seed='0')", "seed", "'0'"),
    ("fit_many([v()], X, epochs=0)", "epochs", "0"),
    ("fit_many([v()], X, strict='yes')", "strict", "'yes'"),
    ("fit_many([v()], X, objective=o.IWAE)", "objective", "IWAE"),
    ("fit_many([v()], T)", "train", "ndarray"),
    ("fit_many([v()], X, optimizer=torch.optim.LBFGS)", "optimizer", "LBFGS"),
    # Evaluation.
    ("evaluate.elbo(X, v())", "vae", "Tensor of shape (20, 1, 8, 8)"),
    ("evaluate.elbo(v(), X.numpy())", "x", "ndarray"),
    ("evaluate.elbo(v(), X[0])", "x", "(1, 8, 8)"),
    ("evaluate.elbo(v(), X, '20')", "num_particles", "'20'"),
    ("evaluate.elbo(v(), X, 0)", "num_particles", "0"),
    ("evaluate.elbo(v(), X, covariates=X)", "covariates", "(20, 1, 8, 8)"),
    ("evaluate.elbo(v(covariate_dim=2), X)", "covariates", "None"),
    ("evaluate.elbo(v(), X, mask=np.ones(20, bool))", "mask", "ndarray"),
    ("evaluate.log_evidence(v(), X, 5000.0)", "num_particles", "5000.0"),
    ("evaluate.log_evidence(v(), X, proposal='q')", "proposal", "'q'"),
    ("evaluate.log_evidence(v(), X, diagnostics='yes')", "diagnostics", "'yes'"),
    ("evaluate.log_evidence(v(), X, max_elements=0)", "max_elements", "0"),
    ("evaluate.log_evidence(v().model, X)", "vae", "Model"),
    ("evaluate.posterior_means(v(), pd.DataFrame(T))", "x", "DataFrame"),
    ("evaluate.active_units(v(), X[:1])", "x", "1"),
    ("evaluate.active_units(v(), X, threshold='0.01')", "threshold", "'0.01'"),
    ("evaluate.kl_per_dimension(v(), X, 2.5)", "num_particles", "2.5"),
    ("baseline.mixture('normal', X, X, X)", "likelihood", "'normal'"),
    ("baseline.mixture(likelihoods.Normal(4), T, T, T)", "train", "ndarray"),
    ("baseline.mixture(likelihoods.Normal(4), X, X, X)", "train", "(20, 1, 8, 8)"),
    ("baseline.mixture(likelihoods.Normal((1, 8, 8)), X, X, X, components=0)", "components", "0"),
    ("baseline.mixture(likelihoods.Normal((1, 8, 8)), X, X, X, iterations=0)", "iterations", "0"),
    ("kl.closed_form(dist.Normal(0.0, 1.0), 'normal')", "p", "'normal'"),
    # Data.
    ("data.digits(binarize=True)", "binarize", "True"),
    ("data.digits(binarize=['threshold'])", "binarize", "['threshold']"),
    ("data.digits(valid='0.1')", "valid", "'0.1'"),
    ("data.digits(valid=-0.1)", "valid", "-0.1"),
    ("data.digits(test=1.0)", "test", "1.0"),
    ("data.digits(seed=0.5)", "seed", "0.5"),
    ("data.digits().to('gpu')", "device", "'gpu'"),
    ("data.digits().to('cuda:7')", "device", "'cuda:7'"),
    ("data.digits().to(None)", "device", "None"),
    ("data.moons('1000')", "n", "'1000'"),
    ("data.moons(1000.0)", "n", "1000.0"),
    ("data.ring(noise='0.1')", "noise", "'0.1'"),
    ("data.ring(noise=float('inf'))", "noise", "inf"),
    ("data.collapse(dims=1)", "dims", "1"),
    ("data.collapse(dims='12')", "dims", "'12'"),
    ("data.table(T)", "path", "ndarray of shape (20, 4)"),
    ("data.table('none.csv')", "path", "'none.csv'"),
    ("data.table('none.csv', missing='drop')", "missing", "'drop'"),
    ("data.table('none.csv', standardize='yes')", "standardize", "'yes'"),
    ("data.table('none.csv', separator=3)", "separator", "3"),
    ("data.table('none.csv', decimal=';')", "decimal", "';'"),
    ("data.table('none.csv', encoding='klingon')", "encoding", "'klingon'"),
    ("data.table('none.csv', header='no')", "header", "'no'"),
    ("data.table('none.csv', skip_last=-1)", "skip_last", "-1"),
    ("data.table('none.csv', na={'a'})", "na", "{'a'}"),
    ("data.table('none.csv', mixed='yes')", "mixed", "'yes'"),
    ("data.table('none.csv', count='visits')", "count", "'visits'"),
    ("data.table('none.csv', ordinal={'a': 'low'})", "ordinal", "'low'"),
    ("data.table('none.csv', like=5)", "like", "5"),
    ("data.array(T)", "path", "ndarray of shape (20, 4)"),
    ("data.array('none.npz', scale='255')", "scale", "'255'"),
    ("data.array('none.txt')", "path", "'none.txt'"),
    ("data.frey_faces(scale='grey')", "scale", "'grey'"),
    ("data.mnist(5)", "root", "5"),
    ("data.mnist(download='yes')", "download", "'yes'"),
    ("data.mnist(binarize=None)", "binarize", "None"),
    ("data.Preparation.load(5)", "run", "5"),
    ("data.Scaling(torch.zeros(4), torch.ones(4)).undo(T)", "x", "ndarray"),
    # Scikit-learn's interface.
    ("VAETransformer('2').fit(T)", "latent_dim", "'2'"),
    ("VAETransformer(epochs=1.5).fit(T)", "epochs", "1.5"),
    ("VAETransformer(objective='elbo').fit(T)", "objective", "str"),
    ("VAETransformer(event_shape=(2, 3)).fit(T)", "event_shape", "4"),
    ("VAETransformer(event_shape='2x2').fit(T)", "event_shape", "'2x2'"),
    ("VAETransformer(standardize='yes').fit(T)", "standardize", "'yes'"),
    ("VAETransformer(num_particles=0).fit(T)", "num_particles", "0"),
    ("VAETransformer(likelihood='normal').fit(T)", "likelihood", "'normal'"),
    ("VAETransformer(likelihood=likelihoods.Bernoulli).fit(T)", "x", "Normal"),
    ("VAETransformer().set_params(objective__beta=0.5)", "VAETransformer", "'objective__beta'"),
    ("VAETransformer().set_params(latent=2)", "latent", "VAETransformer"),
    ("VAETransformer().transform(T)", "VAETransformer", "fit"),
    ("VAETransformer().fit(T[None])", "array", "dim 3"),
    ("VAETransformer().fit(pd.DataFrame({'a': ['x', 'y']}))", "could not convert", "'x'"),
    # Files, finished runs and reports.
    ("save('vae.safetensors', v())", "vae", "'vae.safetensors'"),
    ("save(v(), None)", "path", "None"),
    ("save(v(), 'no_such_folder/vae.safetensors')", "path", "'no_such_folder"),
    ("save(v(), '.')", "path", "'.'"),
    ("load(5)", "path", "5"),
    ("load(None)", "path", "None"),
    ("load('vae.pt')", "file", "vae.pt"),
    ("load('vae.pt', allow='torch')", "allow", "'torch'"),
    ("reuse.judge_run('no_such_run')", "run", "'no_such_run'"),
    ("reuse.judge_run('no_such_run', num_particles='50')", "num_particles", "'50'"),
    ("reuse.judge_run('no_such_run', seed='0')", "seed", "'0'"),
    ("reuse.judge_run('no_such_run', part='validation')", "part", "'validation'"),
    ("reuse.judge_run('no_such_run', device='gpu')", "device", "'gpu'"),
    ("reuse.judge_run('no_such_run', device='mps')", "device", "'mps'"),
    ("reuse.embed(v(), X, 'codes.csv')", "data", "Tensor"),
    ("reuse.embed(v(), data.digits())", "out", "None"),
    ("reuse.embed(v(), data.digits(), 'codes.xlsx')", "out", "'codes.xlsx'"),
    ("reuse.embed(v(), data.digits(), 5)", "out", "5"),
    ("reuse.embed(v(), data.digits(), 'codes.csv', rows_at_once=0)", "rows_at_once", "0"),
    ("reuse.embed(v(), data.digits(), 'codes.csv', part=0)", "part", "0"),
    ("reuse.write_evaluation({}, 'figures.json')", "figures", "run"),
    ("report.write({}, '.')", "report", "dict"),
    ("report.write(report.Report('', {}, [], [], [], []), None)", "folder", "None"),
    # Plots.
    ("plots.images('digits.png')", "x", "str"),
    ("plots.images(np.zeros((5, 8, 8, 3)))", "x", "(5, 8, 8, 3)"),
    ("plots.images(np.zeros((5, 8, 8)), columns='2')", "columns", "'2'"),
    ("plots.reconstructions(np.zeros((5, 8, 8)), np.zeros((4, 8, 8)))", "reconstructed", "(4,"),
    ("plots.latent(np.zeros(5))", "codes", "(5,)"),
    ("plots.latent(np.zeros((5, 2)), labels=[0, 1])", "labels", "(2,)"),
    ("plots.curves([])", "history", "none"),
    ("plots.curves([{'loss': 1.0}])", "history", "'loss'"),
    ("plots.lines([1, 2], [0.0, 1.0])", "series", "list"),
    ("plots.rates([[1.0]])", "kl_per_dimension", "(1, 1)"),
    ("plots.rates([1.0, 2.0], active=[1, 0])", "active", "int"),
    # Compiled steps.
    ("compile('elbo', v().model, v().guide)", "objective", "str"),
    ("compile(o.ELBO(), v().model, v().guide, products='blas')", "products", "'blas'"),
    ("compile(o.ELBO(), v().model, v().guide, precision=16)", "precision", "16"),
    ("compile(o.ELBO(), v().model, v().guide, clip_norm=1.0)", "clip_norm", "1.0"),
    ("compile(o.ELBO, v().model, v().guide)", "objective", "ELBO"),
    ("compile(o.ELBO(), 'model', v().guide)", "model", "'model'"),
    ("compile(o.ELBO(), v().model, None)", "guide", "None"),
    ("compile(o.ELBO(), v().model, v().guide, divide_by='2')", "divide_by", "'2'"),
    ("compile(o.ELBO(), v().model, v().guide, strict='yes')", "strict", "'yes'"),
    ("compile(o.ELBO(), v().model, v().guide, validate='yes')", "validate", "'yes'"),
    ("compile(o.ELBO(), v().model, v().guide, optimizer=torch.optim.Adam)", "optimizer", "Adam"),
    ("compile(pyro.infer.RenyiELBO(), v().model, v().guide)", "objective", "RenyiELBO"),
    ("config.compose('vae/prior=vamp')", "overrides", "'vae/prior=vamp'"),
    ("config.compose([('vae/prior', 'vamp')])", "overrides", "'vamp'"),
]  # fmt: skip

UNKNOWN = [
    "VAE((1, 8, 8), latent_size=2)",
    "fit(v(), X, lr=1e-3)",
    "fit(v(), X, num_epochs=10)",
    "evaluate.elbo(v(), X, particles=20)",
    "VAETransformer(device='cuda')",
    "o.ELBO(kl_weight=0.5)",
]
"""Calls with an argument that does not exist, to which Python answers."""


@pytest.fixture(autouse=True)
def idle(tmp_path, monkeypatch):
    """An empty folder to work in, in which no training makes a step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Training, "train_epoch", lambda run: pytest.fail("a training has begun"))
    yield
    assert not list(tmp_path.iterdir())


def test_there_are_more_than_a_hundred():
    assert len({call for call, _, _ in CALLS}) == len(CALLS) > 100


@pytest.mark.parametrize(("call", "name", "value"), CALLS, ids=[call for call, _, _ in CALLS])
def test_one_line_names_the_argument_and_the_value(call, name, value):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        eval(call, dict(NAMES))
    message = str(caught.value).strip()
    own = message.startswith("Expected ")
    assert own or "VAETransformer" in call, message
    assert re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message), message
    assert any(part in message for part in value.split("|")), message
    assert "\n" not in message or not own, message
    assert len(message) < 400, message


@pytest.mark.parametrize("call", UNKNOWN)
def test_python_names_an_argument_that_does_not_exist(call):
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        eval(call, dict(NAMES))


def test_pyro_vae_is_not_shadowed():
    assert compile is pyro_vae.compile
