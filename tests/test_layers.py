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
        "config",
        "display",
        "files",
        "finite",
        "guard",
        "progress",
        "seeding",
        "validation",
    },
    {
        "conditional",
        "console",
        "distributions",
        "masking",
        "networks",
        "param_store",
        "tables",
        "trackers",
    },
    {"data", "kl", "likelihoods", "posteriors", "priors", "transforms"},
    {"objectives", "vae"},
    {"compiled", "plots"},
    {"evaluate"},
    {"training"},
    {"report", "sklearn"},
    {"reuse", "run", "search", "sweeps"},
    {"__main__", "cli", "compare", "projects"},
]

SAME_LAYER = {
    "display": {"files"},
    # A run asks for the name of its folder, and a job of a sweep is a run.
    "run": {"sweeps"},
    "sweeps": {"run", "search"},
    "search": {"sweeps"},
    "cli": {"compare", "projects"},
    "__main__": {"cli"},
}
"""The packages of its own layer that a package may import."""

MAX_ROOT, MAX_LINES, MAX_FUNCTION = 16, 440, 55


def modules() -> list[Path]:
    return sorted(
        p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "_hydra_plugin.py")
    )


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def imported_packages(path: Path) -> set[str]:
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
    assert {package_of(path) for path in modules()} == set.union(*LAYERS)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = package_of(path)
    allowed = {name for layer in LAYERS[: level(own)] for name in layer}
    allowed |= SAME_LAYER.get(own, set()) | {own}
    assert imported_packages(path) <= allowed


def test_objectives_never_see_the_vae():
    for path in (PACKAGE / "objectives").glob("*.py"):
        assert not imported_packages(path) & {"vae", "priors", "posteriors", "likelihoods"}


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def import_graph() -> dict[str, set[str]]:
    """The modules that each module runs when it is imported, the ``__init__`` of packages too."""
    names = {dotted(path): path for path in PACKAGE.rglob("*.py")}
    graph = {}
    for name, path in names.items():
        home = name if path.name == "__init__.py" else name.rpartition(".")[0]
        seen = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyro_vae"):
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    seen.add(full if full in names else node.module)
        for other in list(seen):
            parts = other.split(".")
            seen |= {".".join(parts[:n]) for n in range(2, len(parts))}
        # A package that is being imported already runs nothing anew.
        graph[name] = {other for other in seen if not f"{home}.".startswith(f"{other}.")}
    del graph["pyro_vae"]
    return graph


def test_there_are_no_import_circles_not_even_for_types():
    graph = import_graph()
    assert len(graph) > 120
    left = {name: set(others) & set(graph) for name, others in graph.items()}
    while free := {name for name, others in left.items() if not others}:
        left = {name: others - free for name, others in left.items() if name not in free}
    assert not left


def test_modules_and_functions_are_short_and_the_root_is_small():
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_ROOT
    paths = sorted(PACKAGE.rglob("*.py"))
    sizes = {str(p.relative_to(PACKAGE)): len(p.read_text().splitlines()) for p in paths}
    assert {name: size for name, size in sizes.items() if size > MAX_LINES} == {}
    functions = {
        f"{path.relative_to(PACKAGE)}:{node.name}": code_lines(node)
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: size for name, size in functions.items() if size > MAX_FUNCTION} == {}


def code_lines(node: ast.FunctionDef) -> int:
    """The lines of a function, its docstring left out."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return node.end_lineno - node.lineno + 1 - (body[0].lineno - node.body[0].lineno if body else 0)


@pytest.mark.long
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
        "import sys, runpy, pyro_vae.cli.train; "
        f"runpy.run_path({str(PACKAGE / '_hydra_plugin.py')!r}); "
        "assert 'torch' not in sys.modules and 'pyro' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_plugin_imports_nothing_of_ours():
    path = PACKAGE / "_hydra_plugin.py"
    if path.is_file():
        # Its sweeper imports the package when it runs.
        lines = map(ast.unparse, ast.parse(path.read_text()).body)
        imports = [line for line in lines if line.startswith(("import", "from"))]
        assert imports
        assert not [line for line in imports if "pyro_vae" in line]
