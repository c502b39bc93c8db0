"""Imputation of tables with values missing completely at random, beside scikit-learn's imputers.

The VAEs are those of ``experiment=miwae_iris`` and ``experiment=miwae_breast_cancer``. The error is
the mean squared error of the missing values, in units of the columns' standard deviations, so that
the mean of each column has an error of about 1.

    python benchmarks/imputation.py --name iris --seeds 5
"""

import argparse
import statistics
import tempfile
from typing import Any

import torch
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

from pyro_vae import config, data, evaluate, load
from pyro_vae.run import run


def compute_error(values: Any, truth: torch.Tensor, mask: torch.Tensor) -> float:
    return (torch.as_tensor(values).double() - truth)[~mask].square().mean().item()


def impute_by_vae(name: str, seed: int, epochs: int, truth: torch.Tensor) -> dict[str, float]:
    """Trains the experiment, and returns its bound and the errors of its imputations."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"experiment=miwae_{name}", f"data.seed={seed}", f"seed={seed}",
                     f"train.epochs={epochs}", "evaluate.baseline_components=0",
                     f"out={folder}"]  # fmt: skip
        run(config.compose(overrides))
        vae = load(folder)
    table = data.incomplete(name, seed=seed)
    x, mask = table.x.train, table.mask.train
    torch.manual_seed(seed)
    bound = evaluate.log_evidence(vae, x, 20, mask=mask).mean().item()
    result = evaluate.impute(vae, x, mask, 10_000, draws=1)
    return {
        "bound, K = 20": bound,
        "VAE, mean": compute_error(result.x, truth, mask),
        "VAE, draw": compute_error(result.draws[0], truth, mask),
    }


def impute_by_scikit_learn(table: data.Data, truth: torch.Tensor) -> dict[str, float]:
    mask = table.mask.train
    x = table.x.train.double().where(mask, torch.nan).numpy()
    imputers = {
        "mean": SimpleImputer(),
        "KNNImputer": KNNImputer(),
        "IterativeImputer": IterativeImputer(random_state=0, max_iter=50),
    }
    return {
        name: compute_error(imputer.fit_transform(x), truth, mask)
        for name, imputer in imputers.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="iris", choices=("iris", "breast_cancer"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2000)
    arguments = parser.parse_args()
    truth = data.incomplete(arguments.name, share=0.0).x.train.double()
    rows = []
    for seed in range(arguments.seeds):
        table = data.incomplete(arguments.name, seed=seed)
        vae = impute_by_vae(arguments.name, seed, arguments.epochs, truth)
        rows.append(vae | impute_by_scikit_learn(table, truth))
        print(seed, {name: round(value, 3) for name, value in rows[-1].items()}, flush=True)
    print("\n| | mean over seeds | least | largest |\n|---|---|---|---|")
    for name in rows[0]:
        values = [row[name] for row in rows]
        print(f"| {name} | {statistics.mean(values):.3f} | {min(values):.3f} | {max(values):.3f} |")


if __name__ == "__main__":
    main()
