"""Fails unless a wheel and an sdist hold the package and every file of the configuration."""

import sys
import tarfile
import zipfile
from pathlib import Path

wheel, sdist, conf = map(Path, sys.argv[1:])
wanted = {str(path.relative_to(conf)) for path in conf.rglob("*.yaml")}
assert len(wanted) > 20, wanted

names = zipfile.ZipFile(wheel).namelist()
packed = {n.removeprefix("pyro_vae/conf/") for n in names if n.startswith("pyro_vae/conf/")}
assert wanted <= packed, wanted - packed
tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
assert tops == {"pyro_vae", "hydra_plugins"}, tops
for name in (
    "pyro_vae/py.typed",
    "pyro_vae/report/page.html.jinja",
    "pyro_vae/compare/page.html.jinja",
    "pyro_vae/compare/assets/echarts.min.js",
    "pyro_vae/projects/template/pyproject.toml",
    "pyro_vae/projects/template/my_project/conf/vae/prior/my_prior.yaml",
    "pyro_vae/projects/template/tests/test_my_experiment.py",
    "hydra_plugins/pyro_vae.py",
):
    assert name in names, name
for name in ("hydra_plugins/__init__.py", "pyro_vae/_hydra_plugin.py"):
    assert name not in names, name

with tarfile.open(sdist) as archive:
    inside = {name.split("/", 1)[-1] for name in archive.getnames()}
assert {f"conf/{name}" for name in wanted} <= inside
assert "pyro_vae/_hydra_plugin.py" in inside
print(f"{len(names)} files in the wheel, {len(wanted)} of them configuration")
