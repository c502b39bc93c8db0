"""Sets of comparable runs: those evaluated on the same data in the same unit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_vae.compare.factors import format_level
from pyro_vae.compare.runs import RunRecord
from pyro_vae.sweeps.job_id import UNRELATED

__all__ = ["ComparableSet", "find_comparable_sets"]

_MEASURES = {
    "mass": "probabilities of discrete data",
    "density": "densities",
    "mixed": "probabilities of discrete columns and densities of others",
}

_OLD_MEASURES = {
    "Bernoulli": "mass",
    "Categorical": "mass",
    "ContinuousBernoulli": "density",
    "Normal": "density",
}
"""The measures of runs that do not state them, because they are of an older version."""


@dataclass(frozen=True)
class ComparableSet:
    """Finished runs whose metrics have the same meaning.

    Attributes:
        title: The data set, and the differences from the other sets.
        runs: The runs, as positions in the list of all.
        grey_scale: Whether grey values were scored by a cross-entropy, so that no metric is a
            likelihood.
    """

    title: str
    runs: tuple[int, ...]
    grey_scale: bool


def find_comparable_sets(runs: Sequence[RunRecord]) -> list[ComparableSet]:
    """Groups the finished runs by the meaning of their metrics, the largest set first.

    Runs are in one set if they agree in all of these:

    * the data and its settings, including the seed of its split and its binarization, and the
      test rows themselves if they come from the user's files;
    * the number of rows of each part and of the log evidence;
    * whether grey values are scored by a cross-entropy;
    * whether the likelihood is a probability or a density;
    * the quantities that the evidence is conditional on, such as covariates or the row sum.

    Arguments:
        runs: All runs.
    """
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for index, run in enumerate(runs):
        if run.state == "finished":
            groups.setdefault(tuple(_read_protocol(run).items()), []).append(index)
    protocols = [dict(key) for key in groups]
    sets = [
        ComparableSet(
            _build_title(protocol, protocols), tuple(members), protocol["cross-entropy"] == "true"
        )
        for protocol, members in zip(protocols, groups.values(), strict=True)
    ]
    return sorted(sets, key=lambda one: -len(one.runs))


def _read_protocol(run: RunRecord) -> dict[str, str]:
    """Returns the settings, besides model and training, on which the metrics of a run depend."""
    config, metrics = run.config, run.metrics
    rows = metrics.get("rows")
    data = config.get("data")
    likelihood = config["vae"].get("likelihood")
    name = str(likelihood.get("_target_") if isinstance(likelihood, Mapping) else likelihood)
    name = name.rpartition(".")[2]
    measure = metrics.get("measure") or _OLD_MEASURES.get(name)
    counts = rows.values() if isinstance(rows, Mapping) else [rows]
    own_file = isinstance(data, Mapping) and data.get("path") is not None
    test_rows = str(metrics.get("test_sha256"))[:8] if own_file else ""
    return {
        "data": format_level(metrics.get("data")),
        "binarize": format_level(metrics.get("binarize")),
        "likelihood": _MEASURES.get(str(measure), f"of {name}"),
        "given": ", ".join(metrics.get("conditional_on") or ()) or "nothing",
        "cross-entropy": format_level(bool(metrics.get("grey_scale"))),
        "rows": "/".join(map(format_level, counts)),
        "rows of the log evidence": format_level(metrics.get("log_evidence_rows")),
        **(_read_data_settings(data) if isinstance(data, Mapping) else {}),
        "test rows": test_rows,
    }


def _read_data_settings(data: Mapping[str, Any]) -> dict[str, str]:
    """Returns the settings that determine the content of the data."""
    # A setting that older versions lack has a default of null or false.
    settings = {f"data.{k}": value for k, value in data.items() if value not in (None, False)}
    return {key: format_level(settings[key]) for key in sorted(settings) if key not in UNRELATED}


def _build_title(protocol: Mapping[str, str], protocols: Sequence[Mapping[str, str]]) -> str:
    """Returns the data set of a comparable set, and its differences from other sets.

    A setting is left out if it follows from an earlier part of the title.

    Arguments:
        protocol: The protocol of the set.
        protocols: The protocols of all sets.
    """
    parts = [protocol["data"]]
    prefixes: list[tuple[str, ...]] = [(other["data"],) for other in protocols]
    for key, level in protocol.items():
        longer = [
            (*prefix, other.get(key, "-"))
            for prefix, other in zip(prefixes, protocols, strict=True)
        ]
        if len(set(longer)) > len(set(prefixes)):
            prefixes = longer
            parts.append(level if key == "likelihood" else f"{key.removeprefix('data.')} {level}")
    return ", ".join(parts)
