"""Samplers and pruners of ``hydra/sweeper=optuna`` on a table of measured trainings.

    python benchmarks/search_replay.py measure --table benchmarks/results/search_table.jsonl
    python benchmarks/search_replay.py replay --table benchmarks/results/search_table.jsonl \
        --results benchmarks/results/search_replay.jsonl

``measure`` trains 180 configurations of a VAE for the digits with three seeds each: the prior, the
latent dimensions, the hidden layers and the learning rate. A line of the table holds the validation
ELBO of each of 60 epochs, and the log evidence of the test rows by 200 samples each.

``replay`` runs searches of 60 trials whose trainings are looked up in the table: a trial takes the
nearest configuration and one of its seeds by chance, which is the same for all searches of equal
number. It prints by how much the configuration that a search prefers is worse than the best one,
by the mean over the three seeds, and the share of the epochs that were trained. Finished jobs are
lines of the files, and are not run again.
"""

import argparse
import json
import math
import random
import statistics
import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import optuna
from omegaconf import OmegaConf

from pyro_vae import config
from pyro_vae.search.storage import build_pruner, build_sampler, without_advice

PRIORS = ("normal", "vamp")
LATENT_DIMS = (2, 4, 8, 16, 32)
HIDDEN = ("50", "200", "200,200")
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SEEDS, EPOCHS, TRIALS = 3, 60, 60
SAMPLERS = ("random", "qmc", "tpe", "gp", "cmaes", "nsgaii")
PRUNERS = ("none", "median", "percentile", "halving", "hyperband")

Row = dict[str, Any]


def read_lines(path: Path) -> list[Row]:
    """Returns the finished jobs of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add_line(path: Path, row: Row) -> None:
    """Adds a finished job to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def train(prior: str, latent_dim: int, hidden: str, lr: float, seed: int) -> Row:
    """Trains one configuration, and returns its line of the table."""
    import torch

    from pyro_vae import VAE, data, evaluate, fit, networks, priors

    torch.set_num_threads(1)
    digits = data.digits()
    network = partial(networks.MLP, hidden=[int(width) for width in hidden.split(",")])
    torch.manual_seed(seed)
    vae = VAE(
        digits.event_shape,
        latent_dim,
        prior={"normal": priors.Normal, "vamp": partial(priors.Vamp, components=30)}[prior],
        encoder=network,
        decoder=network,
    )
    result = fit(
        vae, digits.train, valid=digits.valid, epochs=EPOCHS, patience=None, seed=seed,
        optimizer=partial(torch.optim.Adam, lr=lr), progress=False,
    )  # fmt: skip
    torch.manual_seed(0)
    evidence = evaluate.log_evidence(vae, digits.x.test, 200, progress=False)
    return {
        "prior": prior, "latent_dim": latent_dim, "hidden": hidden, "lr": lr, "seed": seed,
        "log_evidence": round(evidence.double().mean().item(), 4),
        "valid_elbo": [round(epoch["valid_elbo"], 3) for epoch in result.history],
    }  # fmt: skip


def measure(table: Path) -> None:
    """Trains the configurations that are not in the table yet."""
    names = ("prior", "latent_dim", "hidden", "lr", "seed")
    finished = {tuple(row[name] for name in names) for row in read_lines(table)}
    jobs = list(product(PRIORS, LATENT_DIMS, HIDDEN, RATES, range(SEEDS)))
    for number, job in enumerate(jobs):
        if job not in finished:
            add_line(table, train(*job))
            print(f"{number + 1} of {len(jobs)}", flush=True)


class Table:
    """The measured trainings.

    Arguments:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.rows = {
            (row["prior"], row["latent_dim"], row["hidden"], row["lr"], row["seed"]): row
            for row in read_lines(path)
        }
        assert len(self.rows) == SEEDS * len(self.list_configurations())

    @staticmethod
    def list_configurations() -> list[tuple[Any, ...]]:
        """Returns all configurations."""
        return list(product(PRIORS, LATENT_DIMS, HIDDEN, RATES))

    def find_values(self, configuration: tuple[Any, ...]) -> list[float]:
        """Returns the log evidence of a configuration for each seed."""
        return [self.rows[(*configuration, seed)]["log_evidence"] for seed in range(SEEDS)]


def suggest(trial: optuna.Trial) -> tuple[Any, ...]:
    """Draws settings as a search of the command does, and returns the nearest configuration."""
    prior = trial.suggest_categorical("prior", PRIORS)
    latent_dim = trial.suggest_int("latent_dim", 2, 32, log=True)
    hidden = trial.suggest_categorical("hidden", HIDDEN)
    lr = trial.suggest_float("lr", 1e-4, 3e-2, log=True)
    near_dim = min(LATENT_DIMS, key=lambda value: abs(math.log(value / latent_dim)))
    near_rate = min(RATES, key=lambda value: abs(math.log(value / lr)))
    return prior, near_dim, hidden, near_rate


def load_settings(kind: str, name: str) -> dict[str, Any]:
    """Returns the settings of a sampler or a pruner of ours."""
    settings = OmegaConf.load(config.APP / "hydra" / "sweeper" / kind / f"{name}.yaml")
    # Hyperband refers to the number of epochs.
    whole = OmegaConf.create({"train": {"epochs": EPOCHS}, "settings": settings})
    loaded: dict[str, Any] = OmegaConf.to_container(whole, resolve=True)["settings"]
    return loaded


def search(table: Table, sampler: str, pruner: str, number: int) -> Row:
    """Runs one search, and returns its result."""
    chance = random.Random(number)
    seeds = [chance.randrange(SEEDS) for _ in range(TRIALS)]
    settings = {**load_settings("sampler", sampler), "seed": number}
    began = time.perf_counter()
    with without_advice():
        study = optuna.create_study(
            direction="maximize",
            sampler=build_sampler(settings),
            pruner=build_pruner(load_settings("pruner", pruner)),
        )
    epochs = 0
    for seed in seeds:
        with without_advice():
            trial = study.ask()
            configuration = suggest(trial)
        trial.set_user_attr("configuration", configuration)
        row = table.rows[(*configuration, seed)]
        pruned = False
        for epoch, value in enumerate(row["valid_elbo"], 1):
            trial.report(value, epoch)
            epochs += 1
            if epoch < EPOCHS and trial.should_prune():
                pruned = True
                break
        if pruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, row["log_evidence"])
    finished = [t for t in study.trials if t.value is not None]
    preferred = [
        max(finished[: count + 1], key=lambda trial: trial.value) for count in range(len(finished))
    ]
    last = preferred[-1].user_attrs["configuration"]
    half = [t for t in finished if t.number < TRIALS // 2]
    early = max(half, key=lambda trial: trial.value).user_attrs["configuration"]
    return {
        "sampler": sampler, "pruner": pruner, "number": number,
        "half": statistics.mean(table.find_values(tuple(early))),
        "value": statistics.mean(table.find_values(tuple(last))),
        "epochs": epochs / (TRIALS * EPOCHS),
        "seconds": round(time.perf_counter() - began, 3),
    }  # fmt: skip


def replay(table: Table, results: Path, searches: int) -> None:
    """Runs the searches that the file lacks, and prints their figures."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows = read_lines(results)
    finished = {(row["sampler"], row["pruner"], row["number"]) for row in rows}
    kinds = [(sampler, "none") for sampler in SAMPLERS]
    kinds += [(sampler, pruner) for sampler in ("random", "tpe") for pruner in PRUNERS[1:]]
    for number, (sampler, pruner) in product(range(searches), kinds):
        if (sampler, pruner, number) not in finished:
            rows.append(search(table, sampler, pruner, number))
            add_line(results, rows[-1])
    best = max(map(table.find_values, table.list_configurations()), key=statistics.mean)
    print(
        f"the best configuration: {statistics.mean(best):.2f}, with a standard deviation over "
        f"seeds of {statistics.stdev(best):.2f}"
    )
    base = {row["number"]: row for row in rows if (row["sampler"], row["pruner"]) == kinds[0]}
    print("| sampler | pruner | after 30 trials | after 60 | minus random | epochs | seconds |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for kind in kinds:
        own = [row for row in rows if (row["sampler"], row["pruner"]) == kind]
        regrets = [[statistics.mean(best) - row[name] for row in own] for name in ("half", "value")]
        paired = [base[row["number"]]["value"] - row["value"] for row in own]
        cells = [describe(values) for values in (*regrets, paired)]
        shares = statistics.mean(row["epochs"] for row in own)
        seconds = statistics.mean(row["seconds"] for row in own)
        print(f"| {kind[0]} | {kind[1]} | {' | '.join(cells)} | {shares:.2f} | {seconds:.1f} |")


def describe(values: list[float]) -> str:
    """Returns the mean of values and its standard error."""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) / len(values) ** 0.5:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("measure", "replay"))
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--searches", type=int, default=100)
    given = parser.parse_args()
    if given.task == "measure":
        measure(given.table)
    elif given.results is None:
        parser.error("--results is needed to replay")
    else:
        replay(Table(given.table), given.results, given.searches)


if __name__ == "__main__":
    main()
