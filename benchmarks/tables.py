"""Tables that packages ship: evidence beside the exact mixture, synthetic rows beside TVAE.

Each table goes from csv to report by one command. The evidence of held-out rows stands beside that
of a mixture of the same likelihoods, fitted by EM. Synthetic rows are judged by a classifier that
tells them from held-out rows: an area under the curve of 0.5 is perfect. Training rows beside
held-out rows show the noise of this judgement.

TVAE needs an environment of its own, with ``pip install ctgan``:

    python benchmarks/tables.py --ctgan-python PATH --tables penguins,cars
"""

import argparse
import json
import subprocess
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from pyro_vae import config, data, reuse
from pyro_vae.run import run

TVAE = textwrap.dedent("""
    import sys, time, pandas
    from ctgan import TVAE
    source, out, discrete, n = sys.argv[1], sys.argv[2], sys.argv[3].split("\\t"), int(sys.argv[4])
    import numpy, torch
    torch.manual_seed(0); numpy.random.seed(0)
    table = pandas.read_csv(source)
    start = time.perf_counter()
    model = TVAE()
    model.fit(table, [name for name in discrete if name])
    print(time.perf_counter() - start)
    model.sample(n).to_csv(out, index=False)
""")


def load_penguins() -> pandas.DataFrame:
    from palmerpenguins import load_penguins

    return load_penguins()


def load_cars() -> pandas.DataFrame:
    from vega_datasets import data as vega

    cars = vega.cars()
    return cars.assign(Year=cars["Year"].dt.year).drop(columns="Name")


def load_fair() -> pandas.DataFrame:
    import statsmodels.api as sm

    return sm.datasets.fair.load_pandas().data


def load_randhie() -> pandas.DataFrame:
    import statsmodels.api as sm

    return sm.datasets.randhie.load_pandas().data


def load_wine() -> pandas.DataFrame:
    from sklearn.datasets import load_wine

    wine = load_wine(as_frame=True).frame
    return wine.assign(target=[f"cultivar {i}" for i in wine["target"]])


TABLES: dict[str, tuple[Callable[[], pandas.DataFrame], list[str]]] = {
    "penguins": (load_penguins, ["data.missing=nan"]),
    "wine": (load_wine, []),
    "cars": (load_cars, ["data.missing=nan"]),
    "fair": (load_fair, []),
    "randhie": (load_randhie, []),
}
"""Each table, and the settings that its command needs."""


def judge_by_classifier(real: pandas.DataFrame, synthetic: pandas.DataFrame) -> float:
    """Returns the cross-validated area under the curve of a classifier of two tables."""
    n = min(len(real), len(synthetic))
    both = pandas.concat([real.head(n), synthetic[real.columns].head(n)], ignore_index=True)
    for name in both.columns:
        if not pandas.api.types.is_numeric_dtype(both[name]):
            both[name] = pandas.Categorical(both[name].astype(str)).codes
    y = np.repeat([0, 1], n)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    model = HistGradientBoostingClassifier(random_state=0)
    scores = cross_val_predict(model, both.astype(float), y, cv=folds, method="predict_proba")
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y, scores[:, 1]))


def sample_tvae(python: str, train: pandas.DataFrame, discrete: list[str], n: int) -> Any:
    """Returns synthetic rows of TVAE, trained on rows without gaps, and the seconds of training."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "train.csv", Path(folder) / "synthetic.csv"
        train.to_csv(source, index=False)
        done = subprocess.run(
            [python, "-c", TVAE, str(source), str(out), "\t".join(discrete), str(n)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return pandas.read_csv(out), float(done.stdout.split()[-1])


def run_table(name: str, folder: Path, python: str | None, extra: list[str]) -> dict[str, Any]:
    load, settings = TABLES[name]
    frame = load()
    path = folder / f"{name}.csv"
    frame.to_csv(path, index=False)
    out = folder / name
    overrides = ["data=table", f"data.path={path}", "vae/likelihood=columns", *settings]
    run(config.compose([*overrides, f"out={out}", *extra]))
    metrics = json.loads((out / "metrics.json").read_text())
    table = data.table(path, like=out, missing="nan")
    assert table.row_numbers is not None
    train, valid, test = (frame.iloc[rows.numpy()].dropna() for rows in table.row_numbers)
    columns = [column for column in frame.columns if column in (table.columns or ())]
    train, test = pandas.concat([train, valid])[columns], test[columns]
    synthetic = pandas.read_csv(reuse.sample(out, len(test), folder / f"{name}-synthetic.csv"))
    result = {
        "rows": len(frame),
        "columns": len(columns),
        "VAE, nats": metrics["log_evidence"],
        "error": metrics["log_evidence_se"],
        "mixture, nats": metrics["mixture_log_evidence"],
        "seconds": metrics["seconds"],
        "AUC, training rows": judge_by_classifier(test, train.sample(frac=1, random_state=0)),
        "AUC, VAE": judge_by_classifier(test, synthetic),
    }
    if python is not None:
        assert table.schema is not None
        discrete = [c.name for c in table.schema.columns if c.is_coded]
        rows, seconds = sample_tvae(python, train, discrete, len(test))
        result |= {"AUC, TVAE": judge_by_classifier(test, rows), "seconds, TVAE": seconds}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--ctgan-python")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in arguments.tables.split(","):
            result = run_table(name, folder, arguments.ctgan_python, arguments.overrides)
            shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}
            print(name, shown, flush=True)


if __name__ == "__main__":
    main()
