"""Three of Pyro's examples by hand and from parts: lines of code, and the ELBO at one budget.

    python benchmarks/pyro_examples --root FOLDER [--seeds 4] [--steps 400]

FOLDER is the one above ``MNIST/raw``. Both versions of an example are trained by the same objective
of Pyro's, optimizer, rows and number of steps. Lines are those with code in the file of a version,
without imports and docstrings: networks, model and guide. The ELBO is that of 2,000 test rows in
nats per datum, mean and standard error over seeds; the difference, paired by seed, is within three
standard errors of zero, and the lines are a third at most, or the command fails.
"""

import argparse
import ast
import io
import statistics
import sys
import tokenize
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

from pyro_vae import data

HOW = ("by_hand", "with_parts")
BATCH = 100
TEST = 2000

Batch = tuple[Tensor, ...]


def pictures(x: Tensor, y: Tensor) -> list[Batch]:
    """A step on pictures alone."""
    return [(x,)]


def with_and_without_class(x: Tensor, y: Tensor) -> list[Batch]:
    """A step on pictures with their class, half of the rows, and one on those without."""
    half = len(x) // 2
    return [(x[:half], torch.eye(10)[y[:half]]), (x[half:],)]


def halves(x: Tensor, y: Tensor) -> list[Batch]:
    """A step on lower halves given the upper."""
    return [(x[:, :, 14:], x[:, :, :14].flatten(1))]


class Example(NamedTuple):
    """How an example is trained and judged: by what objective, with what arguments."""

    objective: Callable[[], Any]
    train: Callable[[Tensor, Tensor], list[Batch]]
    test: Callable[[Tensor, Tensor], list[Batch]]


EXAMPLES = {
    "vae": Example(Trace_ELBO, pictures, pictures),
    "ss_vae": Example(
        partial(TraceEnum_ELBO, max_plate_nesting=1, strict_enumeration_warning=False),
        with_and_without_class,
        pictures,
    ),
    "cvae": Example(Trace_ELBO, halves, halves),
}


def elbo(name: str, how: str, digits: data.Data, *, steps: int, seed: int) -> float:
    """Trains one version of an example; returns nats per datum on test rows."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model, guide = import_module(f"{how}.{name}").make()
    example = EXAMPLES[name]
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), example.objective())
    order = torch.Generator().manual_seed(seed)
    x, y = digits.x.train, digits.labels.train
    for _ in range(steps):
        rows = torch.randint(len(x), (BATCH,), generator=order)
        for batch in example.train(x[rows], y[rows]):
            svi.step(*batch)
    x, y = digits.x.test[:TEST], digits.labels.test[:TEST]
    return -statistics.mean(svi.evaluate_loss(*batch) / TEST for batch in example.test(x, y))


def lines(path: Path) -> int:
    """Returns the number of lines with code, without imports and docstrings."""
    source = path.read_text(encoding="utf-8")
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if text or isinstance(node, (ast.Import, ast.ImportFrom)):
            left_out.update(range(node.lineno, node.end_lineno + 1))
    blank = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    code = {token.start[0] for token in tokens if token.type not in (*blank, tokenize.ENDMARKER)}
    return len(code - left_out)


def compare(name: str, digits: data.Data, *, steps: int, seeds: int) -> bool:
    """Prints the rows of an example; returns whether fewer lines have reached the same ELBO."""
    here = Path(__file__).parent
    size = {how: lines(here / how / f"{name}.py") for how in HOW}
    found = {
        how: [elbo(name, how, digits, steps=steps, seed=seed) for seed in range(seeds)]
        for how in HOW
    }
    for how in HOW:
        mean, error = statistics.mean(found[how]), statistics.stdev(found[how]) / seeds**0.5
        print(
            f"{name:8} {how:12} {size[how]:4} lines   ELBO {mean:8.2f} +- {error:.2f}", flush=True
        )
    differences = [part - hand for hand, part in zip(*(found[how] for how in HOW), strict=True)]
    mean, error = statistics.mean(differences), statistics.stdev(differences) / seeds**0.5
    print(f"{name:8} difference {mean:.2f} +- {error:.2f}", flush=True)
    return abs(mean) < 3 * error and 3 * size["with_parts"] <= size["by_hand"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = data.mnist(options.root, binarize="threshold")
    same = [compare(name, digits, steps=options.steps, seeds=options.seeds) for name in EXAMPLES]
    sys.exit(not all(same))


if __name__ == "__main__":
    main()
