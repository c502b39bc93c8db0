"""A finished run, and the rows that it is to be used on, made sure to fit each other."""

import inspect
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae import config, data
from pyro_vae.data import Data, Preparation, Split
from pyro_vae.files.untrusted import read_yaml
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.seeding import own_randomness
from pyro_vae.vae.recipe import check_allow
from pyro_vae.vae.serialization import load
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import check_choice, check_device

__all__ = [
    "Chosen",
    "matched",
    "opened",
    "preparation",
    "stored_number",
    "unsplit",
]

_PARTS = ("train", "valid", "test", "all")

_CHECKED = 4096
"""How many rows are checked at once."""

_FILES = ("pyro_vae.data.table", "pyro_vae.data.array")
"""Data of the user's own, which have no split that is anyone else's."""


class Chosen(NamedTuple):
    """The rows of a part, or of all parts in the order of their source, without a copy of them.

    Attributes:
        data: The data set.
        part: The number of the part that each row is in, ``(N,)``.
        place: Its place there, ``(N,)``.
    """

    data: Data
    part: Tensor
    place: Tensor

    def take(self, split: Split, some: slice) -> Tensor:
        """Returns what some rows have in a split."""
        part, place = self.part[some], self.place[some]
        found = split.train.new_empty((len(part), *split.train.shape[1:]))
        for number, rows in enumerate(split):
            here = part == number
            found[here] = rows[place[here]]
        return found

    def rows(self, some: slice, to: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns some rows and their mask, on the device and in the precision of a tensor."""
        mask = self.data.mask
        x = self.take(self.data.x, some).to(to)
        return x, None if mask is None else self.take(mask, some).to(to.device)


def preparation(run: Path | str, *, allow: Sequence[str] = ()) -> Preparation:
    """Returns how the training data of a run were prepared, as ``data.table(like=...)`` takes it.

    A run without a ``data.json``, as older versions left, has its data made once more.

    Arguments:
        run: The folder of a finished run.
        allow: As in :func:`judge_run`.

    Raises:
        ValueError: If there is no such run, or its file is damaged.
    """
    folder = _finished(run)
    if (folder / "data.json").is_file():
        return Preparation.load(folder)
    return own_data(folder, allow).preparation


def opened(
    run: Path | str,
    source: Data | Mapping[str, Any] | None,
    part: str,
    device: torch.device | str,
    allow: Sequence[str],
) -> tuple[Chosen, VAE, dict[str, Any]]:
    """Returns rows that fit a run, with its VAE and its configuration."""
    check_choice("part", part, _PARTS)
    where = check_device(device)
    folder = _finished(run)
    cfg = configuration(folder)
    # Making a VAE draws weights, in whose place those of the file come.
    with own_randomness(torch.device("cpu"), 0):
        vae = load(folder, allow=allow).to(where)
    like = preparation(folder, allow=allow)
    if source is None:
        found, seed = own_data(folder, allow, like), _seed_of(cfg["data"])
    elif isinstance(source, Data):
        found, seed = source, 0
    else:
        found, seed = _made(source, like, split=part != "all"), _seed_of(source)
    found = _fixed(found, seed)
    _check_form(run, found, like, vae)
    chosen = _choose(found, part)
    _check_values(vae, chosen)
    return chosen, vae, cfg


def matched(vae: VAE, source: Any, part: str) -> Chosen:
    """Returns rows that fit a VAE of which there is no run."""
    check_choice("part", part, _PARTS)
    if not isinstance(source, Data):
        raise ValueError(
            f"Expected data to be a pyro_vae.data.Data for a VAE, got {type(source).__name__}"
        )
    _check_shape("the VAE", source, tuple(vae.event_shape))
    chosen = _choose(_fixed(source, 0), part)
    _check_values(vae, chosen)
    return chosen


def _finished(run: Path | str) -> Path:
    """Returns the folder of a finished run, or raises a ``ValueError`` that says what it is."""
    folder = Path(str(run)).expanduser()
    if run is None or not os.path.isfile(folder / "config.yaml"):
        found = "which has no config.yaml" if os.path.isdir(folder) else "which is no folder"
        told = "None" if run is None else f"'{run}', {found}"
        raise ValueError(
            f"Expected run to be the folder of a finished run, as in run=outputs/DATE, got {told}"
        )
    if not os.path.isfile(folder / "metrics.json"):
        raise ValueError(
            f"Expected run to be the folder of a finished run, got '{run}', which has no "
            f"metrics.json: finish it by its own command with {config.override('out', str(run))} "
            f"resume=true"
        )
    return folder


def configuration(folder: Path) -> dict[str, Any]:
    """Returns the configuration of a run, plain values that refer to nothing.

    Raises:
        ValueError: If the file is damaged, or refers to values elsewhere: the configuration of a
            run is resolved when it is written, and a reference could call any function.
    """
    path = folder / "config.yaml"
    cfg = read_yaml(path)
    if not isinstance(cfg, dict) or not isinstance(cfg.get("data"), dict):
        raise ValueError(f"Expected '{path}' to hold the configuration of a run, got no data in it")
    for value in _strings(cfg):
        if "${" in value:
            raise ValueError(
                f"Expected '{path}' to hold values, as a run writes them, got {value!r:.100}, "
                f"which refers to others"
            )
    return cfg


def _strings(node: Any) -> Iterator[str]:
    """Yields all strings of a configuration, names of settings included."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        yield from node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _strings(child)


def stored_number(cfg: Mapping[str, Any], name: str) -> int:
    """Returns an integer of a run's configuration by its dotted name.

    Raises:
        ValueError: If there is none.
    """
    value: Any = cfg
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(
            f"Expected the run's config.yaml to have an integer {name}, got {value!r:.50}: give "
            f"{name}"
        )
    return value


def own_data(folder: Path, allow: Sequence[str], like: Preparation | None = None) -> Data:
    """Returns a run's own data, if making them runs no foreign code.

    Missing files are not fetched, even if the run fetched them.

    Raises:
        ValueError: If the configuration names functions that are not allowed, or cannot be made.
    """
    node = configuration(folder)["data"]
    _check_targets(node, folder, allow)
    options = node | ({"download": False} if "download" in node else {})
    try:
        found = _made(options, like)
    except Exception as error:
        cause = error.__cause__ if type(error).__name__ == "InstantiationException" else error
        kind = "" if isinstance(cause, ValueError) else f"{type(cause).__name__}: "
        raise ValueError(
            f"Expected the data of '{folder}' to be made as its config.yaml says, got an error: "
            f"{kind}{' '.join(str(cause).split())}"
        ) from error
    if not isinstance(found, Data):
        raise ValueError(
            f"Expected the data of '{folder}' to be a pyro_vae.data.Data, got "
            f"{type(found).__name__}"
        )
    return found


def _check_targets(node: Mapping[str, Any], folder: Path, allow: Sequence[str]) -> None:
    """Raises a ``ValueError`` unless a stored configuration calls only allowed names.

    A data set of this package is allowed at the top; what the user allows by name, anywhere.
    """
    allowed = check_allow(allow)
    sets = {name for name in data.__all__ if inspect.isfunction(getattr(data, name))}
    if not isinstance(node.get("_target_"), str):
        raise ValueError(f"Expected the data of '{folder}' to have a _target_, got none")
    _check_node(node, {f"pyro_vae.data.{name}" for name in sets} | allowed, allowed, folder)


def _check_node(node: Any, known: Collection[str], within: Collection[str], folder: Path) -> None:
    """Raises a ``ValueError`` for a name that is not known here, or not allowed further within."""
    for key in node if isinstance(node, dict) else ():
        value = node[key]
        if key == "_target_" and not (isinstance(value, str) and value in known):
            raise ValueError(
                f"Expected the data of '{folder}' to be made by pyro_vae.data, got {value!r:.100}: "
                f"if you trust the run, {config.override('allow', [f'{value!s:.100}'])}"
            )
        if (key != "_target_" and key.startswith("_") and key.endswith("_")) or value == "???":
            raise ValueError(
                f"Expected the data of '{folder}' to be made by settings, got {key}={value!r:.50}"
            )
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        _check_node(child, within, within, folder)


def _seed_of(node: Mapping[str, Any]) -> int:
    """Returns the seed in a configuration of data, or 0 if it is missing."""
    seed = node.get("seed", 0)
    return seed if isinstance(seed, int) else 0


def _made(node: Mapping[str, Any], like: Preparation | None = None, *, split: bool = True) -> Data:
    """Returns the data of a configuration, a table prepared like others."""
    options = dict(node)
    target = options.get("_target_")
    if not split and target in _FILES:
        options |= {"valid": 0, "test": 0}
    if target != "pyro_vae.data.table" or like is None:
        return config.build(options)
    # Handed over past Hydra, which would make lists of it.
    return config.build(options | {"_partial_": True, "like": None})(like=like)


def _check_form(run: Path | str, found: Data, like: Preparation, vae: VAE) -> None:
    """Raises a ``ValueError`` if data have not the form of a run's own."""
    _check_shape(f"run '{run}'", found, like.event_shape)
    if None not in (found.columns, like.columns) and found.columns != like.columns:
        raise ValueError(
            f"Expected data with the columns {list(like.columns or ())} of run '{run}', in this "
            f"order, got {list(found.columns or ())} of '{found.name}': "
            f"data.table(..., like=reuse.preparation(run)) takes them so"
        )
    if not _same(found.scaling, like.scaling) or (like.scaling and found.columns is None):
        state = "as they are" if found.scaling is None else "scaled otherwise"
        raise ValueError(
            f"Expected data scaled as the training data of run '{run}' were"
            f"{', not at all' if like.scaling is None else ''}, got '{found.name}' {state}: "
            f"data.table(..., like=reuse.preparation(run)) does so"
        )
    alike = (found.binarize == "none") == (like.binarize == "none")
    takes_bits = isinstance(vae.likelihood, Bernoulli) and not vae.likelihood.grey_scale
    if not alike and not (takes_bits and _binary(found)):
        raise ValueError(
            f"Expected data with binarize={like.binarize!r}, as those of run '{run}', got "
            f"{found.binarize!r} of '{found.name}'"
        )


def _binary(found: Data) -> bool:
    """Tells whether all values are zeros and ones, whatever made them so."""
    return all(bool(((x == 0) | (x == 1)).all()) for x in found.x)


def _check_shape(whose: str, found: Data, expected: tuple[int, ...]) -> None:
    """Raises a ``ValueError`` if a datum has another shape."""
    if tuple(found.event_shape) != expected:
        raise ValueError(
            f"Expected data of shape {expected}, that of {whose}, got {tuple(found.event_shape)} "
            f"of '{found.name}'"
        )


def _same(scaling: data.Scaling | None, other: data.Scaling | None) -> bool:
    """Tells whether two scalings are one."""
    if scaling is None or other is None:
        return scaling is other
    return all(torch.equal(a, b) for a, b in zip(scaling, other, strict=True))


def _check_values(vae: VAE, chosen: Chosen) -> None:
    """Raises a ``ValueError`` if values lie outside the likelihood's support."""
    weight = next(vae.parameters())
    for start in range(0, len(chosen.part), _CHECKED):
        vae.check(*chosen.rows(slice(start, start + _CHECKED), weight))


def _fixed(found: Data, seed: int) -> Data:
    """Returns data whose training rows are drawn, once, as ``binarize="fixed"`` draws them."""
    if found.binarize != "dynamic":
        return found
    generator = torch.Generator().manual_seed(seed)
    return found._replace(
        x=found.x._replace(train=torch.bernoulli(found.x.train, generator=generator))
    )


def unsplit(found: Data) -> bool:
    """Tells whether data have no parts."""
    return not len(found.x.valid) and not len(found.x.test)


def _choose(found: Data, part: str) -> Chosen:
    """Returns the rows of a part; all in the order of their source, if they come from one.

    Raises:
        ValueError: If there are none.
    """
    kept = range(3) if part == "all" else [_PARTS.index(part)]
    sizes = [len(rows) for rows in found.x]
    parts = torch.cat([torch.full((sizes[number],), number) for number in kept])
    chosen = Chosen(found, parts, torch.cat([torch.arange(sizes[number]) for number in kept]))
    if not len(parts):
        raise ValueError(f"Expected part to have rows, got {part!r} of '{found.name}' with none")
    if part != "all" or found.row_numbers is None:
        return chosen
    numbers = torch.cat(found.row_numbers)
    if len(numbers.unique()) < len(numbers):
        return chosen
    order = numbers.argsort()
    return Chosen(found, parts[order], chosen.place[order])
