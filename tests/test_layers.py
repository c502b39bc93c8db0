"""Imports point one way, and each module stands on its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_vae

PACKAGE = Path(pyro_vae.__file__).parent

LAYERS = [
    {
        "collapse",
        "commands",
        "config",
        "files",
        "guard",
        "hydra_errors",
        "progress",
        "spreadsheet",
        "stored",
        "user_lines",
        "validation",
    },
    {"conditional", "distributions", "finite", "kl", "masks", "networks", "scope"},
    {"priors", "posteriors", "likelihoods", "data"},
    {"vae", "sides", "objectives"},
    {
        "autoguide",
        "compiled",
        "evaluate",
        "baseline",
        "checkpoint",
        "recipe",
        "epochs",
        "keeper",
        "network_checks",
        "training",
        "crowd",
        "many",
    },
    {"plots", "transformer"},
    {"report"},
    {"pictures", "story", "run", "run_checks", "run_folder", "sweeps"},
    {"codes", "opened", "reuse"},
    {"compare"},
    {"cli", "reuse_cli"},
    {"__main__"},
]

SAME_LAYER = {
    "commands": {"hydra_errors", "progress"},
    "hydra_errors": {"config"},
    "kl": {"distributions"},
    "vae": {"sides"},
    "checkpoint": {"recipe"},
    "epochs": {"checkpoint", "compiled", "evaluate"},
    "keeper": {"checkpoint", "epochs", "recipe"},
    "network_checks": {"epochs"},
    "training": {"checkpoint", "compiled", "epochs", "keeper", "network_checks"},
    "crowd": {"compiled", "epochs", "training"},
    "many": {"compiled", "crowd", "epochs", "keeper", "network_checks", "training"},
    "story": {"pictures"},
    "run": {"run_checks", "run_folder", "story", "sweeps"},
    "run_folder": {"sweeps"},
    "sweeps": {"run", "run_folder"},
    "reuse": {"codes", "opened"},
}
"""Which neighbours of its own layer a module may see."""


def modules() -> list[Path]:
    return sorted(
        p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "_hydra_plugin.py")
    )


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def imported_rooms(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "pyro_vae":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyro_vae."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("pyro_vae.")}
    return {"vae" if name == "VAE" else name for name in found}


def test_every_module_has_a_layer():
    assert {room(path) for path in modules()} == set.union(*LAYERS)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = room(path)
    allowed = {name for layer in LAYERS[: level(own)] for name in layer}
    allowed |= SAME_LAYER.get(own, set()) | {own}
    assert imported_rooms(path) <= allowed


def test_objectives_never_see_the_vae():
    for path in (PACKAGE / "objectives").glob("*.py"):
        assert not imported_rooms(path) & {"vae", "priors", "posteriors", "likelihoods"}


def test_every_module_imports_on_its_own():
    names = [
        "pyro_vae." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in modules()
        if path.name != "__main__.py"
    ]
    assert len(names) > 30
    code = "; ".join(
        f"[sys.modules.pop(m) for m in list(sys.modules) if m.startswith('pyro_vae')]; import {n}"
        for n in names
    )
    subprocess.run([sys.executable, "-c", f"import sys, torch, pyro; {code}"], check=True)


def test_the_command_and_the_plugin_import_no_torch():
    code = (
        "import sys, runpy, pyro_vae.cli; "
        f"runpy.run_path({str(PACKAGE / '_hydra_plugin.py')!r}); "
        "assert 'torch' not in sys.modules and 'pyro' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_plugin_imports_nothing_of_ours():
    path = PACKAGE / "_hydra_plugin.py"
    if path.is_file():
        assert imported_rooms(path) == set()
        assert "import pyro_vae" not in path.read_text()
