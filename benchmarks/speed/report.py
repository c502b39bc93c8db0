"""The table of results, in Markdown."""

import math
import os
import platform
import statistics
from pathlib import Path
from typing import Any

from cases import CASES, Case
from contenders import CONTENDERS
from scipy import stats

TOLERANCE = 1.0
"""Nats per datum by which a loss may differ from the hand-written one's."""


def ratio(one: list[float], other: list[float]) -> tuple[float, float, float]:
    """Returns the ratio of two contenders' times, and its 95 % interval.

    Blocks are paired by round: mean and t interval of the differences of the logarithms.
    """
    differences = [math.log(a / b) for a, b in zip(one, other, strict=True)]
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return math.exp(mean), 0.0, math.inf
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def machine(settings: dict[str, Any]) -> str:
    """Describes the processor and what of it is used."""
    model = platform.processor() or platform.machine()
    known = Path("/proc/cpuinfo")
    for line in known.read_text().splitlines() if known.exists() else ():
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
            break
    return (
        f"{model}, {settings['threads']} of {os.cpu_count()} cores, each process pinned; Python "
        f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    )


def say_versions(results: dict[str, Any]) -> str:
    """Lists the versions of packages, of each environment where they differ."""
    found: dict[str, set[str]] = {}
    for case in results["cases"].values():
        for contender in case["contenders"].values():
            for package, version in contender.get("versions", {}).items():
                found.setdefault(package, set()).add(version)
    plain = [
        f"{package} {' or '.join(sorted(versions))}"
        for package, versions in found.items()
        if package not in ("MKL", "oneDNN")
    ]
    libraries = [version for name in ("MKL", "oneDNN") for version in sorted(found.get(name, ()))]
    return ", ".join(plain) + ". " + "; ".join(libraries)


def unit(case: Case, settings: dict[str, Any]) -> tuple[str, float]:
    """Returns the name of the unit of time, and its number of units in a second for a row."""
    return ("s", settings["rows"]) if case.epoch else ("ms", 1e3 * case.batch)


def loss(result: dict[str, Any], hand: dict[str, Any]) -> str:
    """Writes a loss, marked if it is not the hand-written one's."""
    if "loss" not in result:
        return ""
    text = f"{result['loss']:.2f}"
    if "loss" in hand and not abs(result["loss"] - hand["loss"]) <= TOLERANCE:
        return f"**{text} differs**"
    return text


def row(name: str, case: Case, results: dict[str, Any], references: list[str]) -> str:
    """Writes the row of a contender."""
    contenders, settings = results["cases"][case.name]["contenders"], results["settings"]
    result = contenders[name]
    if "failed" in result:
        return f"| `{name}` | {result['failed']} |" + " |" * (len(references) + 4)
    scale = unit(case, settings)[1]
    cells = [f"`{name}`", f"{scale * statistics.median(result['seconds']):.3f}"]
    for reference in references:
        one, low, high = ratio(result["seconds"], contenders[reference]["seconds"])
        cells.append("1" if name == reference else f"{one:.3f} ({low:.3f} to {high:.3f})")
    cells.append(loss(result, contenders.get("hand", {})))
    cells.append(f"{result['first_seconds']:.1f}")
    cells.append(f"{result['peak_mib']:.0f} ({result['imported_mib']:.0f})")
    cells.append(result.get("notes", ""))
    return "| " + " | ".join(cells) + " |"


def section(case: Case, results: dict[str, Any]) -> str:
    """Writes the table of a case."""
    found, settings = results["cases"][case.name], results["settings"]
    contenders = found["contenders"]
    references = [
        name for name in case.references if "seconds" in contenders.get(name, {"failed": ""})
    ]
    what, per = unit(case, settings)[0], "an epoch" if case.epoch else "a step"
    head = [
        "contender", f"{what} {per}", *(f"of `{name}`" for name in references),
        "loss", "first call, s", "memory, MiB (imports)", "engine",
    ]  # fmt: skip
    steps = case.check if settings["check"] is None else settings["check"]
    lines = [
        f"### {case.name}",
        "",
        f"{case.network()}; {case.objective()}; batch {case.batch}; {case.seen()}. Losses are "
        f"nats per datum, over the last {case.window(steps)} of {steps} steps. Load of the "
        f"machine {min(found['loads']):.2f} to {max(found['loads']):.2f}.",
        "",
        "| " + " | ".join(head) + " |",
        "| --- |" + " ---: |" * (len(head) - 2) + " --- |",
    ]
    lines += [row(name, case, results, references) for name in contenders]
    return "\n".join(lines)


def markdown(results: dict[str, Any]) -> str:
    """Writes everything."""
    settings = results["settings"]
    names = [name for name in CASES if name in results["cases"]]
    shown = [
        name
        for name in CONTENDERS
        if any(name in results["cases"][case]["contenders"] for case in names)
    ]
    accelerators = {
        contender["accelerator"]
        for case in names
        for contender in results["cases"][case]["contenders"].values()
        if contender.get("accelerator")
    }
    where = "".join(f" On {name}." for name in sorted(accelerators))
    return "\n".join(
        [
            f"{machine(settings)}.{where} {say_versions(results)}.",
            "",
            f"Medians of {settings['blocks']} blocks of about {settings['block_seconds']:g} s, "
            f"the contenders' in turn; ratios paired by round, with 95 % intervals. Data: "
            f"{settings['data']}, {settings['rows']} rows. Memory is the most that the process "
            f"took, and in parentheses what it took to import. A loss that differs by more than "
            f"{TOLERANCE:g} nat from the hand-written one's is marked.",
            "",
            *(f"- `{name}`: {CONTENDERS[name].says}" for name in shown),
            "",
            "\n\n".join(section(CASES[name], results) for name in names),
            "",
        ]
    )
