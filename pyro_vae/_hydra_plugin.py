"""Lets every Hydra application of this environment compose the group ``vae``.

Hydra runs this at the start of each of them: it imports neither PyTorch nor this package.
"""

from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class PyroVaeSearchPathPlugin(SearchPathPlugin):
    """Appends the folder that holds the group ``vae`` to the search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends, so that a file of the application's own comes first."""
        spec = find_spec("pyro_vae")
        for folder in (spec.submodule_search_locations or []) if spec else []:
            # The configuration lies within the package when installed, beside it in a checkout.
            for conf in (Path(folder) / "conf", Path(folder).parent / "conf"):
                if (conf / "share" / "vae").is_dir():
                    search_path.append("pyro_vae", f"file://{conf / 'share'}")
                    return
