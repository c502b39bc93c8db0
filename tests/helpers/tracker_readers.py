"""Reads tracked runs back, each by its client: curves, final metrics, texts and outcome."""

import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

__all__ = ["READERS", "Tracked", "read_tensorboard"]


class Tracked(NamedTuple):
    """A run as a client shows it.

    Attributes:
        points: For each name, the pairs of step and value, in the order of the store.
        texts: The texts of the results.
        settings: The settings, by dotted names or nested.
        group: The sweep of the run.
        outcome: The state of the run.
        figures: The names of the figures.
    """

    points: dict
    texts: dict
    settings: dict
    group: str | None
    outcome: str
    figures: set


def read_tensorboard(folder):
    """Returns the run whose folder this is."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(
        str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}
    )
    events.Reload()
    tags = events.Tags()
    points = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    tables = {}
    for tag in tags["tensors"]:
        text = make_ndarray(events.Tensors(tag)[0].tensor_proto)[0].decode()
        rows = text.splitlines()[2:]
        tables[tag.split("/")[0]] = dict(row.strip("| ").split(" | ", 1) for row in rows)
    sessions = {
        name: metadata.parse_session_end_info_plugin_data(content).status
        for name, content in events.PluginTagToContent("hparams").items()
        if name == metadata.SESSION_END_INFO_TAG
    }
    start = metadata.parse_session_start_info_plugin_data(
        events.PluginTagToContent("hparams")[metadata.SESSION_START_INFO_TAG]
    )
    settings = {
        name: value.string_value if value.HasField("string_value") else value.number_value
        for name, value in start.hparams.items()
    }
    status = sessions.get(metadata.SESSION_END_INFO_TAG, api_pb2.STATUS_UNKNOWN)
    figures = {tag.removeprefix("figures/") for tag in tags["images"]}
    return Tracked(
        points, tables.get("metrics", {}), settings, folder.parent.name,
        api_pb2.Status.Name(status), figures,
    )  # fmt: skip


def read_tensorboards(cwd, study):
    folders = (cwd / "multirun" / study).glob("*/tensorboard")
    return {path.parent.name: read_tensorboard(path.parent) for path in folders}


def read_mlflow(cwd, study):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{cwd}/mlflow.db")
    experiment = client.get_experiment_by_name(study)
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        points = {
            name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        figures = {
            Path(file.path).stem for file in client.list_artifacts(run.info.run_id, "figures")
        }
        assert run.info.run_name not in found
        found[run.info.run_name] = Tracked(
            points, run.data.tags, run.data.params, study, run.info.status, figures
        )
    return found


def read_trackio(cwd, study):
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    found = {}
    for run in trackio.Api().runs("pyro_vae"):
        rows = SQLiteStorage.get_logs("pyro_vae", run.name)
        name = run.name.partition("-")[0]
        assert name not in found
        found[name] = _split_rows(rows, run.config, run.config["_Group"])
    return found


def read_wandb(cwd, study):
    found = {}
    for path in (cwd / "multirun" / study).glob("*/wandb/offline-run-*/*.wandb"):
        name, group, settings, rows, code = None, None, {}, [], None
        for record in read_wandb_records(path):
            if record.HasField("run"):
                name, group = record.run.display_name, record.run.run_group
                settings |= {c.key: json.loads(c.value_json) for c in record.run.config.update}
            if record.HasField("history"):
                items = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                rows.append(items | {"step": record.history.step.num})
            if record.HasField("exit"):
                code = record.exit.exit_code
        assert name not in found
        found[name] = _split_rows(rows, settings, group)._replace(outcome=f"exit {code}")
    return found


def read_wandb_records(path):
    """Yields the records of wandb's file, a log in the format of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, start, part = path.read_bytes(), 7, b""
    while start < len(content):
        left = 32768 - start % 32768
        if left < 7:
            start += left
            continue
        length, kind = int.from_bytes(content[start + 4 : start + 6], "little"), content[start + 6]
        part += content[start + 7 : start + 7 + length]
        start += 7 + length
        # A record in one piece, or the last piece of one.
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(part)
            yield record
            part = b""


def _split_rows(rows, settings, group):
    points, texts, figures = defaultdict(list), {}, set()
    for row in rows:
        for name, value in row.items():
            if name.startswith("figures/"):
                figures.add(name.removeprefix("figures/").partition(".")[0])
            elif isinstance(value, str):
                texts[name] = value
            elif not name.startswith("_") and isinstance(value, (int, float)):
                points[name].append((row["step"], value))
    return Tracked(points, texts, settings, group, texts.get("outcome", ""), figures)


READERS = {
    "tensorboard": read_tensorboards,
    "mlflow": read_mlflow,
    "trackio": read_trackio,
    "wandb": read_wandb,
}
