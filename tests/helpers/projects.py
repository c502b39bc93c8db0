"""Projects that are installed by a folder of metadata, without pip."""

from pathlib import Path

from pyro_vae.projects import create_project

__all__ = ["install_project"]


def install_project(name, site, entry=None):
    """Creates a project, and registers it in a folder; returns the paths that Python needs.

    Arguments:
        name: The name of the project.
        site: The folder, which becomes one of ``sys.path``.
        entry: The value of the entry point; by default that of the project.
    """
    project = create_project(site / name)
    metadata = site / f"{name}-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    entry = f"{name}.conf" if entry is None else entry
    (metadata / "entry_points.txt").write_text(f"[pyro_vae.conf]\n{name} = {entry}\n")
    return [str(Path(site)), str(project)]
