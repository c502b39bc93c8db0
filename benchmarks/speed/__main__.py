"""The time of a training step, and of an epoch: pyro_vae's, hand-written ones, and of others.

    python benchmarks/speed --out results.json [--markdown table.md] [--root FOLDER]
        [--cases mlp-20,mlp-128] [--contenders hand,ours_auto] [--threads 1] [--blocks 11]
        [--block-seconds 1.0] [--device cpu] [--rows 60000] [--check-steps N]
        [--jax-python PATH] [--pythae-python PATH]

FOLDER is the one above ``MNIST/raw``; without it the data are noise of MNIST's density. Contenders
run each in a process of its own, pinned to as many cores as threads, and their blocks take turns.
All begin with the same weights, and but for those with a DataLoader see the same batches. Before
its blocks each trains for a number of steps, and the losses are compared. NumPyro and pythae may
live in environments of their own, whose interpreters the two PATHs are; what is not installed is
reported as such. The same command again goes on with the cases that are missing in results.json.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from cases import CASES, chosen, pixels
from contenders import CONTENDERS, kind
from rounds import Settings, race, say

from report import markdown


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--root")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=11)
    parser.add_argument("--block-seconds", type=float, default=1.0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--check-steps", type=int, help="for all cases; 0 compares no losses")
    parser.add_argument("--jax-python", default=sys.executable)
    parser.add_argument("--pythae-python", default=sys.executable)
    return parser.parse_args()


def load(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the results so far, or raises a ``SystemExit`` if they are of other settings."""
    if not path.exists():
        return {"settings": settings, "cases": {}}
    results = json.loads(path.read_text())
    if results["settings"] != settings:
        raise SystemExit(f"Expected results of the same settings in {path}, got others: move it")
    return results


def save(path: Path, results: dict[str, Any]) -> None:
    """Writes the results, all or nothing."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(results, indent=1))
    part.replace(path)


def able(names: list[str], case: str, device: str) -> list[str]:
    """Returns the contenders that can train a case."""
    wanted = kind(CASES[case])
    return [
        name
        for name in names
        if wanted in CONTENDERS[name].trains and device in CONTENDERS[name].devices
    ]


def main() -> None:
    """Measures the cases that are missing, and writes the table."""
    given = arguments()
    cases = chosen(given.cases, list(CASES), "cases")
    names = chosen(given.contenders, list(CONTENDERS), "contenders")
    grey = pixels(given.root, given.rows)
    settings = Settings(
        given.threads, given.blocks, given.block_seconds, given.device, len(grey), given.check_steps
    )
    about = {**settings._asdict(), "data": "noise" if given.root is None else "MNIST"}
    results = load(given.out, about)
    pythons = {"own": sys.executable, "jax": given.jax_python, "pythae": given.pythae_python}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "grey.npy"
        np.save(data, grey)
        for case in cases:
            racing = able(names, case, given.device)
            if racing and set(racing) - set(results["cases"].get(case, {}).get("contenders", {})):
                results["cases"][case] = race(racing, CASES[case], data, settings, pythons)
                save(given.out, results)
                say(f"{case}: {results['cases'][case]['took_seconds']:.0f} s")
    if given.markdown is not None:
        given.markdown.write_text(markdown(results))


if __name__ == "__main__":
    main()
