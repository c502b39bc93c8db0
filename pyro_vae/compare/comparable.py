"""Which runs may be compared: those that were judged on the same data in the same unit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_vae.compare.factors import text
from pyro_vae.compare.runs import Run
from pyro_vae.sweeps.job_id import UNRELATED

__all__ = ["ComparableSet", "comparable_sets"]

_MEASURES = {
    "Bernoulli": "probabilities of discrete data",
    "Categorical": "probabilities of discrete data",
    "ContinuousBernoulli": "densities",
    "Normal": "densities",
}
"""What kind of number the likelihood of each class is."""


@dataclass(frozen=True)
class ComparableSet:
    """Finished runs whose figures have one meaning.

    Attributes:
        title: What tells it from the other sets, and the data set.
        runs: Which runs, as positions in the list of all.
        grey_scale: Whether greys were scored by a cross-entropy, so that no figure is a likelihood.
    """

    title: str
    runs: tuple[int, ...]
    grey_scale: bool


def comparable_sets(runs: Sequence[Run]) -> list[ComparableSet]:
    """Returns the finished runs by what their figures mean, the largest set first.

    Runs are in one set if they agree in the data and all its settings, the seed of its split and
    its binarization among them, in the number of rows of each part and of the log evidence, in
    whether greys are scored by a cross-entropy, and in whether the likelihood is a probability or
    a density.

    Arguments:
        runs: All runs.
    """
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for index, run in enumerate(runs):
        if run.state == "finished":
            groups.setdefault(tuple(_meaning(run).items()), []).append(index)
    known = [dict(key) for key in groups]
    sets = [
        ComparableSet(_title(dict(key), known), tuple(there), dict(key)["cross-entropy"] == "true")
        for key, there in groups.items()
    ]
    return sorted(sets, key=lambda one: -len(one.runs))


def _meaning(run: Run) -> dict[str, str]:
    """Returns what the figures of a run depend on beside its model and training."""
    config, metrics = run.config, run.metrics
    rows = metrics.get("rows")
    data = config.get("data")
    likelihood = config["vae"].get("likelihood")
    name = str(likelihood.get("_target_") if isinstance(likelihood, Mapping) else likelihood)
    name = name.rpartition(".")[2]
    return {
        "data": text(metrics.get("data")),
        "binarize": text(metrics.get("binarize")),
        "likelihood": _MEASURES.get(name, f"of {name}"),
        "cross-entropy": text(bool(metrics.get("grey_scale"))),
        "rows": "/".join(map(text, rows.values())) if isinstance(rows, Mapping) else text(rows),
        "rows of the log evidence": text(metrics.get("log_evidence_rows")),
        **(_arguments(data) if isinstance(data, Mapping) else {}),
    }


def _arguments(data: Mapping[str, Any]) -> dict[str, str]:
    """Returns the settings of the data that decide what they are."""
    settings = {f"data.{key}": value for key, value in data.items()}
    return {key: text(settings[key]) for key in sorted(settings) if key not in UNRELATED}


def _title(one: Mapping[str, str], known: Sequence[Mapping[str, str]]) -> str:
    """Returns the data set of a set of runs, and what differs from other sets.

    What follows from another part of the title is not said again.

    Arguments:
        one: What the figures of the set depend on.
        known: The same of all sets.
    """
    parts = [one["data"]]
    said: list[tuple[str, ...]] = [(other["data"],) for other in known]
    for key in one:
        values = [other.get(key, "-") for other in known]
        more = [(*old, value) for old, value in zip(said, values, strict=True)]
        if len(set(more)) > len(set(said)):
            said = more
            parts.append(
                one[key] if key == "likelihood" else f"{key.removeprefix('data.')} {one[key]}"
            )
    return ", ".join(parts)
