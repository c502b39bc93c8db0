"""Plugins of Hydra: groups in other applications, user projects, a sweeper and launchers.

Hydra imports this at the start of each application of this environment, so it imports neither
PyTorch nor this package.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


def _find_conf() -> Path | None:
    """Returns the folder of the configuration."""
    spec = find_spec("pyro_vae")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        # The configuration lies within the package when installed, beside it in a checkout.
        for conf in (Path(folder) / "conf", Path(folder).parent / "conf"):
            if (conf / "share" / "vae").is_dir():
                return conf
    return None


class PyroVaeSearchPathPlugin(SearchPathPlugin):
    """Appends the folder that holds the group ``vae`` to the search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends, so that a file of the application's own comes first."""
        conf = _find_conf()
        if conf is None:
            return
        search_path.append("pyro_vae", f"file://{conf / 'share'}")
        if any(entry.path == str(conf / "app") for entry in search_path.get_path()):
            # This is an application of this package, which alone has the options of projects.
            from pyro_vae.config import find_projects

            for name, folder in find_projects().items():
                search_path.append(name, f"file://{folder}")


class PyroVaeSource(FileConfigSource):
    """The groups that an application asks for by ``hydra.searchpath: [pyro_vae://groups]``.

    Arguments:
        provider: The origin of the entry of the search path.
        path: The entry.
    """

    groups = ("data", "objective", "optimizer")

    def __init__(self, provider: str, path: str) -> None:
        if path != "pyro_vae://groups":
            raise ValueError(f"Expected hydra.searchpath to have pyro_vae://groups, got {path!r}")
        self.provider, self.path = provider, str((_find_conf() or Path()) / "app")

    @staticmethod
    def scheme() -> str:
        """Returns the scheme of the entry."""
        return "pyro_vae"

    def is_group(self, config_path: str) -> bool:
        """Whether a path is a group, or the root of all groups."""
        return (not config_path or self._is_offered(config_path)) and super().is_group(config_path)

    def is_config(self, config_path: str) -> bool:
        """Whether a path is an option of a group."""
        return self._is_offered(config_path) and super().is_config(config_path)

    def _is_offered(self, path: str) -> bool:
        return path.partition("/")[0] in self.groups


class OptunaSweeper(Sweeper):
    """Searches settings with Optuna: ``hydra/sweeper=optuna``.

    Arguments:
        settings: The settings of ``hydra.sweeper``.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Builds the launcher of the jobs."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: Sequence[str]) -> None:
        """Runs the trials of the study."""
        if find_spec("optuna") is None:
            raise ValueError(
                "Expected Optuna for hydra/sweeper=optuna, got none: pip install 'pyro_vae[optuna]'"
            )
        from pyro_vae.search.sweeper import run_search

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        run_search(
            self.settings,
            config=self.config,
            context=self.hydra_context,
            launcher=self.launcher,
            arguments=arguments,
        )


class _Launcher(Launcher):
    """Stores the settings and parts of Hydra for a function of this package that runs jobs.

    Arguments:
        settings: The settings of ``hydra.launcher``.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Stores the parts of Hydra that run jobs."""
        self.parts: dict[str, Any] = {
            "config": config,
            "context": hydra_context,
            "task": task_function,
        }


class SlotsLauncher(_Launcher):
    """Runs jobs at the same time, each on a device that it holds: ``hydra/launcher=slots``."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Runs the jobs, and returns their results."""
        from pyro_vae.sweeps.slots_launcher import launch_jobs

        return launch_jobs(job_overrides, initial_job_idx, **self.parts, **self.settings)


class SlurmLauncher(_Launcher):
    """Runs jobs on SLURM, by submitit: ``hydra/launcher=slurm``."""

    engine = "slurm"

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Runs the jobs, and returns their results."""
        from pyro_vae.sweeps.clusters import launch_jobs

        return launch_jobs(self.engine, self.settings, job_overrides, initial_job_idx, **self.parts)


class RayLauncher(SlurmLauncher):
    """Runs jobs on Ray: ``hydra/launcher=ray_cluster``."""

    engine = "ray"
