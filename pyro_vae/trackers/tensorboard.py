"""Logs runs to TensorBoard."""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_vae.trackers.build import require_extra
from pyro_vae.trackers.protocol import Outcome, TrackedRun
from pyro_vae.trackers.values import flatten, split_metrics

__all__ = ["FOLDER", "TensorBoardTracker"]

FOLDER = "tensorboard"
"""The subfolder of a run with its event files."""


class TensorBoardTracker:
    """Logs a run to event files in the subfolder ``tensorboard`` of its folder.

    The curves and final metrics are scalars in single precision, the settings are hyperparameters,
    and the texts of ``metrics.json`` are texts. A resumed run logs all its epochs again, to a new
    file that replaces the old one.

    Raises:
        ValueError: If TensorBoard is not installed.
    """

    def __init__(self) -> None:
        require_extra("tensorboard", "tensorboard")

    def start(self, run: TrackedRun) -> None:
        """Opens an event file, and logs the settings."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = run.folder / FOLDER
        # The new file has all epochs; the old ones may have others that are repeated.
        shutil.rmtree(folder, ignore_errors=True)
        self.writer = SummaryWriter(str(folder))
        self.step = 0
        settings = flatten(run.settings)
        # Each run has another folder, so it would only fill the table.
        settings.pop("out", None)
        _, session_start, _ = hparams(settings, {})
        self._add_summary(session_start)
        self.writer.add_text("settings", _format_table(settings), 0)
        for row in run.history:
            self._add_scalars(row, int(row["epoch"]))
        self.writer.flush()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Logs one epoch."""
        self._add_scalars(values, step)
        self.writer.flush()

    def finish(self, metrics: Mapping[str, Any], figures: Sequence[Path]) -> None:
        """Logs the results, and closes the event file."""
        numbers, texts = split_metrics(metrics)
        self._add_scalars(numbers, self.step)
        self.writer.add_text("metrics", _format_table(texts), self.step)
        for path in figures:
            self.writer.add_image(
                f"figures/{path.stem}", _read_image(path), self.step, dataformats="HWC"
            )
        self._close("STATUS_SUCCESS")

    def abort(self, outcome: Outcome, reason: str) -> None:
        """Marks the session as failed, and closes the event file."""
        self.writer.add_text("outcome", f"{outcome}: {reason}", self.step)
        self._close("STATUS_FAILURE")

    def _add_scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            # In single precision, because its pages do not show scalars in double precision.
            self.writer.add_scalar(name, value, step)
        self.step = step

    def _add_summary(self, summary: Any) -> None:
        self.writer._get_file_writer().add_summary(summary)

    def _close(self, status: str) -> None:
        self._add_summary(_build_session_end(status))
        self.writer.close()


def _build_session_end(status: str) -> Any:
    """Returns the summary by which a session of hyperparameters ends."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    content = plugin_data_pb2.HParamsPluginData(
        session_end_info=plugin_data_pb2.SessionEndInfo(
            status=api_pb2.Status.Value(status), end_time_secs=time.time()
        ),
        version=metadata.PLUGIN_DATA_VERSION,
    )
    plugin = SummaryMetadata.PluginData(
        plugin_name=metadata.PLUGIN_NAME, content=content.SerializeToString()
    )
    value = Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG, metadata=SummaryMetadata(plugin_data=plugin)
    )
    return Summary(value=[value])


def _format_table(values: Mapping[str, Any]) -> str:
    """Returns a Markdown table of names and values."""
    rows = [
        f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in values.items()
    ]
    return "\n".join(["| name | value |", "|---|---|", *rows])


def _read_image(path: Path) -> Any:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
