"""A finished run and rows that fit it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae import config, data
from pyro_vae.data import Batch, Covariates, Data, Preparation, Split
from pyro_vae.data.base import encode_labels
from pyro_vae.data.sparse_rows import is_sparse, select_sparse_rows, take_rows
from pyro_vae.evaluate.metrics import describe_protocol
from pyro_vae.files.untrusted import read_yaml
from pyro_vae.reuse.own_data import USER_DATA, check_unchanged
from pyro_vae.reuse.stored_targets import add_targets, check_targets
from pyro_vae.seeding import fork_and_seed_rng
from pyro_vae.vae.allow import NotAllowedError
from pyro_vae.vae.serialization import load
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import check_choice, check_device, list_names

__all__ = [
    "SelectedRows",
    "check_other_file",
    "is_unsplit",
    "open_run",
    "open_vae",
    "preparation",
    "read_stored_integer",
    "select_rows",
]

_PARTS = ("train", "valid", "test", "all")

_ROWS_AT_ONCE = 4096
"""The number of rows that are checked together."""

_TABLES = ("pyro_vae.data.table", "pyro_vae.data.counts")
"""Data sets with the argument ``like``."""


class SelectedRows(NamedTuple):
    """Rows of one part, or of all parts in the order of their source, without a copy.

    Attributes:
        data: The data set.
        part: The number of the part of each row, ``(N,)``.
        row: The index of each row within its part, ``(N,)``.
    """

    data: Data
    part: Tensor
    row: Tensor

    def take(self, split: Split, index: slice) -> Tensor:
        """Returns the values of a split for a slice of the selected rows."""
        part, row = self.part[index], self.row[index]
        like = split.train
        values = torch.empty((len(part), *like.shape[1:]), dtype=like.dtype, device=like.device)
        for number, rows in enumerate(split):
            in_part = part == number
            values[in_part] = take_rows(rows, row[in_part])
        return values

    def _take_x(self, index: slice) -> Tensor:
        """Returns a slice of the rows of x; all rows of sparse data stay sparse."""
        if index != slice(None) or not is_sparse(self.data.x.train):
            return self.take(self.data.x, index)
        firsts = torch.tensor([0, *map(len, self.data.x)]).cumsum(0)
        return select_sparse_rows(self.data.x, firsts[self.part] + self.row)

    def get_rows(self, index: slice, like: Tensor) -> Batch:
        """Returns a slice of the rows, with the device and dtype of a tensor."""
        mask, covariates = self.data.mask, self.data.covariates
        return Batch(
            self._take_x(index).to(like.device, like.dtype),
            None if mask is None else self.take(mask, index).to(like.device),
            None if covariates is None else self.take(covariates, index).to(like),
        )


def preparation(run: Path | str, *, allow: Sequence[str] = ()) -> Preparation:
    """Returns the preparation of a run's training data, for ``data.table(like=...)``.

    If an older version wrote the run without ``data.json``, the data are loaded again.

    Arguments:
        run: The folder of a finished run.
        allow: As in :func:`judge_run`.

    Raises:
        ValueError: If the run is missing, or its file is damaged.
    """
    folder = _find_run_folder(run)
    if (folder / "data.json").is_file():
        return Preparation.load(folder)
    return build_own_data(folder, allow).preparation


def open_vae(
    run: Path | str,
    device: torch.device | str,
    allow: Sequence[str],
    *,
    own_data: bool = False,
) -> tuple[VAE, Preparation, dict[str, Any]]:
    """Returns the VAE of a run, the preparation of its data, and its configuration.

    Arguments:
        run: The folder of the run.
        device: The device of the VAE.
        allow: As in :func:`judge_run`.
        own_data: Whether the run's own data will be built, whose names an error adds.
    """
    torch_device = check_device(device)
    folder = _find_run_folder(run)
    cfg = read_configuration(folder)
    # The constructor of a VAE draws initial weights, which changes the random state.
    with fork_and_seed_rng(torch.device("cpu"), 0):
        try:
            vae = load(folder, allow=allow).to(torch_device)
        except NotAllowedError as error:
            builds_data = own_data or not (folder / "data.json").is_file()
            raise add_targets(error, cfg["data"] if builds_data else None, folder, allow) from None
    return vae, preparation(folder, allow=allow), cfg


def open_run(
    run: Path | str,
    source: Data | Mapping[str, Any] | None,
    part: str,
    device: torch.device | str,
    allow: Sequence[str],
) -> tuple[SelectedRows, VAE, dict[str, Any]]:
    """Returns rows that fit a run, with its VAE and its configuration."""
    check_choice("part", part, _PARTS)
    vae, like, cfg = open_vae(run, device, allow, own_data=source is None)
    folder = _find_run_folder(run)
    if source is None:
        dataset, seed = build_own_data(folder, allow, like), _get_seed(cfg["data"])
        check_unchanged(folder, cfg["data"], dataset)
    elif isinstance(source, Data):
        dataset, seed = source, 0
    else:
        node = dict(source)
        # YAML reads nan as a number.
        if node.get("_target_") == _TABLES[0] and str(cfg["data"].get("missing")) == "nan":
            node["missing"] = "nan"
        dataset, seed = _build_data(node, like, split=part != "all"), _get_seed(source)
    dataset = _binarize_once(dataset, seed)
    _check_form(run, dataset, like, vae)
    selected = _select_part(dataset, part)
    _check_values(vae, selected)
    return selected, vae, cfg


def check_other_file(out: Path | str | None, source: Any, cfg: Mapping[str, Any]) -> None:
    """Raises a ``ValueError`` if an output would replace the file of the data."""
    node = cfg["data"] if source is None else source
    path = node.get("path") if isinstance(node, Mapping) else None
    if out is None or not isinstance(path, (str, Path)):
        return
    if os.path.realpath(Path(out).expanduser()) == os.path.realpath(Path(path).expanduser()):
        raise ValueError(f"Expected out to be another file than the data, got '{out}' for both")


def select_rows(vae: VAE, source: Any, part: str) -> SelectedRows:
    """Returns rows that fit a VAE without a run."""
    check_choice("part", part, _PARTS)
    if not isinstance(source, Data):
        raise ValueError(
            f"Expected data to be a pyro_vae.data.Data for a VAE, got {type(source).__name__}"
        )
    _check_shape("the VAE", source, tuple(vae.event_shape))
    selected = _select_part(_binarize_once(source, 0), part)
    _check_values(vae, selected)
    return selected


def _find_run_folder(run: Path | str) -> Path:
    """Returns the folder of a finished run, or raises a ``ValueError``."""
    folder = Path(str(run)).expanduser()
    if run is None or not os.path.isfile(folder / "config.yaml"):
        fault = "has no config.yaml" if os.path.isdir(folder) else "is not a folder"
        value = "None" if run is None else f"'{run}', which {fault}"
        raise ValueError(
            f"Expected run to be the folder of a finished run, as in run=outputs/DATE, got {value}"
        )
    if not os.path.isfile(folder / "metrics.json"):
        raise ValueError(
            f"Expected run to be the folder of a finished run, got '{run}', which has no "
            f"metrics.json: run its command again with "
            f"{config.format_override('out', str(run))} resume=true"
        )
    return folder


def read_configuration(folder: Path) -> dict[str, Any]:
    """Returns the configuration of a run, as plain values without interpolations.

    Raises:
        ValueError: If the file is damaged, or has interpolations. The configuration of a run is
            resolved when it is written, and an interpolation could call any function.
    """
    path = folder / "config.yaml"
    cfg = read_yaml(path)
    if not isinstance(cfg, dict) or not isinstance(cfg.get("data"), dict):
        raise ValueError(f"Expected '{path}' to hold the configuration of a run, got no data in it")
    for value in _iterate_strings(cfg):
        if "${" in value:
            raise ValueError(
                f"Expected '{path}' to hold plain values, as a run writes them, got the "
                f"interpolation {value!r:.100}"
            )
    return cfg


def _iterate_strings(node: Any) -> Iterator[str]:
    """Yields all strings of a configuration, including keys."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        yield from node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _iterate_strings(child)


def read_stored_integer(cfg: Mapping[str, Any], name: str) -> int:
    """Returns an integer of a run's configuration by its dotted name.

    Raises:
        ValueError: If it is missing or not an integer.
    """
    value: Any = cfg
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(
            f"Expected the run's config.yaml to have an integer {name}, got {value!r:.50}: pass "
            f"{name}"
        )
    return value


def build_own_data(folder: Path, allow: Sequence[str], like: Preparation | None = None) -> Data:
    """Builds a run's own data, if this runs no foreign code.

    Missing files are not downloaded, even if the run downloaded them.

    Raises:
        ValueError: If the configuration names functions that are not allowed, or building fails.
    """
    node = read_configuration(folder)["data"]
    check_targets(node, folder, allow)
    options = node | ({"download": False} if "download" in node else {})
    try:
        dataset = _build_data(options, like)
    except Exception as error:
        cause = error.__cause__ if type(error).__name__ == "InstantiationException" else error
        kind = "" if isinstance(cause, ValueError) else f"{type(cause).__name__}: "
        raise ValueError(
            f"Expected the data of '{folder}' to be built from its config.yaml, got an error: "
            f"{kind}{' '.join(str(cause).split())}"
        ) from error
    if not isinstance(dataset, Data):
        raise ValueError(
            f"Expected the data of '{folder}' to be a pyro_vae.data.Data, got "
            f"{type(dataset).__name__}"
        )
    return dataset


def _get_seed(node: Mapping[str, Any]) -> int:
    """Returns the seed in the configuration of a data set, or 0 if it is missing."""
    seed = node.get("seed", 0)
    return seed if isinstance(seed, int) else 0


def _build_data(
    node: Mapping[str, Any], like: Preparation | None = None, *, split: bool = True
) -> Data:
    """Builds the data of a configuration; a table or counts get the preparation ``like``."""
    options = dict(node)
    target = options.get("_target_")
    if not split and target in USER_DATA:
        options |= {"valid": 0, "test": 0}
    if like is not None and like.covariates is not None and options.get("covariates") == "label":
        # The file may lack some classes of the training rows.
        return encode_labels(config.build(options | {"covariates": None}), like.covariates)
    if target not in _TABLES or like is None:
        return config.build(options)
    # Hydra would convert the tuples of a preparation to lists.
    return config.build(options | {"_partial_": True, "like": None})(like=like)


def _check_form(run: Path | str, dataset: Data, like: Preparation, vae: VAE) -> None:
    """Raises a ``ValueError`` if data do not have the form of a run's own."""
    _check_shape(f"run '{run}'", dataset, like.event_shape)
    if None not in (dataset.columns, like.columns) and dataset.columns != like.columns:
        raise ValueError(
            f"Expected data with the columns {list_names(like.columns or ())} of run '{run}', in "
            f"this order, got {list_names(dataset.columns or ())} of '{dataset.name}': "
            f"like=reuse.preparation(run) of data.table and data.counts selects them"
        )
    if not _equal_scaling(dataset.scaling, like.scaling) or (
        like.scaling and dataset.columns is None
    ):
        state = "without scaling" if dataset.scaling is None else "with another scaling"
        raise ValueError(
            f"Expected data with the scaling of the training data of run '{run}'"
            f"{', which is none' if like.scaling is None else ''}, got '{dataset.name}' {state}: "
            f"like=reuse.preparation(run) of data.table applies the scaling"
        )
    if dataset.covariate_columns != like.covariates:
        theirs, own = map(_describe_covariates, (dataset.covariate_columns, like.covariates))
        raise ValueError(
            f"Expected data with the covariates of run '{run}', {own}, got '{dataset.name}' with "
            f"{theirs}{' of another scale' if theirs == own else ''}: like=reuse.preparation(run) "
            f"of data.table and data.counts encodes them in the same way"
        )
    same_binarize = (dataset.binarize == "none") == (like.binarize == "none")
    protocol = describe_protocol(dataset, vae)
    is_mass = protocol["measure"] == "mass" and not protocol["grey_scale"]
    if not same_binarize and not (is_mass and _is_binary(dataset)):
        raise ValueError(
            f"Expected data with binarize={like.binarize!r}, as those of run '{run}', got "
            f"{dataset.binarize!r} of '{dataset.name}'"
        )


def _describe_covariates(covariates: Covariates | None) -> str:
    return "none" if covariates is None else covariates.describe()


def _is_binary(dataset: Data) -> bool:
    parts = (x.values() if is_sparse(x) else x for x in dataset.x)
    return all(bool(((x == 0) | (x == 1)).all()) for x in parts)


def _check_shape(owner: str, dataset: Data, expected: tuple[int, ...]) -> None:
    if tuple(dataset.event_shape) != expected:
        raise ValueError(
            f"Expected data of shape {expected}, that of {owner}, got {tuple(dataset.event_shape)} "
            f"of '{dataset.name}'"
        )


def _equal_scaling(scaling: data.Scaling | None, other: data.Scaling | None) -> bool:
    if scaling is None or other is None:
        return scaling is other
    return all(torch.equal(a, b) for a, b in zip(scaling, other, strict=True))


def _check_values(vae: VAE, selected: SelectedRows) -> None:
    """Raises a ``ValueError`` if values are outside the likelihood's support."""
    weight = next(vae.parameters())
    for start in range(0, len(selected.part), _ROWS_AT_ONCE):
        vae.check(*selected.get_rows(slice(start, start + _ROWS_AT_ONCE), weight))


def _binarize_once(dataset: Data, seed: int) -> Data:
    """Returns data with training rows drawn once if they are dynamic, as ``fixed`` does."""
    if dataset.binarize != "dynamic":
        return dataset
    generator = torch.Generator().manual_seed(seed)
    return dataset._replace(
        x=dataset.x._replace(train=torch.bernoulli(dataset.x.train, generator=generator))
    )


def is_unsplit(dataset: Data) -> bool:
    """Whether data have training rows only."""
    return not len(dataset.x.valid) and not len(dataset.x.test)


def _select_part(dataset: Data, part: str) -> SelectedRows:
    """Returns the rows of a part, or all rows in the order of a common source.

    Raises:
        ValueError: If the part is empty.
    """
    if part == "all" and dataset.x.test is dataset.x.train:
        # The test rows of data.incomplete are its training rows.
        part = "train"
    part_numbers = range(3) if part == "all" else [_PARTS.index(part)]
    sizes = [len(rows) for rows in dataset.x]
    parts = torch.cat([torch.full((sizes[number],), number) for number in part_numbers])
    selected = SelectedRows(
        dataset, parts, torch.cat([torch.arange(sizes[number]) for number in part_numbers])
    )
    if not len(parts):
        raise ValueError(f"Expected part to have rows, got {part!r} of '{dataset.name}' with none")
    if part != "all" or dataset.row_numbers is None:
        return selected
    numbers = torch.cat(dataset.row_numbers)
    if len(numbers.unique()) < len(numbers):
        return selected
    order = numbers.argsort()
    return SelectedRows(dataset, parts[order], selected.row[order])
