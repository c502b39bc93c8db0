"""A finished run, and the rows that it is to be used on, made sure to fit each other."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from pyro_vae import config, data
from pyro_vae.checkpoint import load
from pyro_vae.data import Data, Preparation, Split
from pyro_vae.epochs import own_randomness
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.vae import VAE

__all__ = ["Chosen", "choose", "matched", "opened", "preparation", "unsplit"]

PARTS = ("train", "valid", "test", "all")

CHECKED = 4096
"""How many rows are checked at once."""

FILES = ("pyro_vae.data.table", "pyro_vae.data.array")
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
    folder = finished(run)
    if (folder / "data.json").is_file():
        return Preparation.load(folder)
    return made(own(folder, allow)).preparation


def opened(
    run: Path | str,
    source: Data | Mapping[str, Any] | None,
    part: str,
    device: torch.device | str,
    allow: Sequence[str],
) -> tuple[Chosen, VAE, DictConfig]:
    """Returns rows that fit a run, with its VAE and its configuration."""
    check_part(part)
    folder = finished(run)
    # Making a VAE draws weights, in whose place those of the file come.
    with own_randomness(torch.device("cpu"), 0):
        vae = load(folder, allow=allow).to(device)
    like = preparation(folder, allow=allow)
    node = own(folder, allow) if source is None else source
    if isinstance(node, Data):
        found, seed = node, 0
    else:
        found = made(node, like, split=source is None or part != "all")
        seed = node.get("seed", 0)
    found = fixed(found, seed)
    check_form(run, found, like, vae)
    chosen = choose(found, part)
    check_values(vae, chosen)
    return chosen, vae, configuration(folder)


def matched(vae: VAE, source: Any, part: str) -> Chosen:
    """Returns rows that fit a VAE of which there is no run."""
    check_part(part)
    if not isinstance(source, Data):
        raise ValueError(
            f"Expected data to be a pyro_vae.data.Data for a VAE, got {type(source).__name__}"
        )
    check_shape("the VAE", source, tuple(vae.event_shape))
    chosen = choose(fixed(source, 0), part)
    check_values(vae, chosen)
    return chosen


def check_part(part: str) -> None:
    """Raises a ``ValueError`` if there is no part of that name."""
    if part not in PARTS:
        raise ValueError(f"Expected part to be one of {PARTS}, got {part!r}")


def finished(run: Path | str) -> Path:
    """Returns the folder of a finished run, or raises a ``ValueError`` that says what it is."""
    folder = Path(str(run)).expanduser()
    if run is None or not (folder / "config.yaml").is_file():
        found = "which has no config.yaml" if folder.is_dir() else "which is no folder"
        told = "None" if run is None else f"'{run}', {found}"
        raise ValueError(
            f"Expected run to be the folder of a finished run, as in run=outputs/DATE, got {told}"
        )
    if not (folder / "metrics.json").is_file():
        raise ValueError(
            f"Expected run to be the folder of a finished run, got '{run}', which has no "
            f"metrics.json: finish it by its own command with out={run} resume=true"
        )
    return folder


def configuration(folder: Path) -> DictConfig:
    """Returns the configuration of a run."""
    cfg = OmegaConf.load(folder / "config.yaml")
    assert isinstance(cfg, DictConfig)
    return cfg


def own(folder: Path, allow: Sequence[str]) -> Mapping[str, Any]:
    """Returns the configuration of a run's own data, if making them runs no foreign code."""
    node = OmegaConf.to_container(configuration(folder).data)
    assert isinstance(node, dict)
    known = {f"pyro_vae.data.{name}" for name in data.__all__} | set(allow)
    unknown = [name for name in targets(node) if name not in known]
    if unknown:
        raise ValueError(
            f"Expected the data of '{folder}' to be made by pyro_vae.data, got {unknown[0]!r}: if "
            f"you trust the run, allow=[{unknown[0]}]"
        )
    return {str(key): value for key, value in node.items()}


def targets(node: Any) -> Iterator[str]:
    """Yields the names of all that a configuration makes."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from targets(child)


def made(node: Mapping[str, Any], like: Preparation | None = None, *, split: bool = True) -> Data:
    """Returns the data of a configuration, a table prepared like others."""
    options = dict(node)
    target = options.get("_target_")
    if not split and target in FILES:
        options |= {"valid": 0, "test": 0}
    if target != "pyro_vae.data.table" or like is None:
        return config.build(options)
    # Handed over past Hydra, which would make lists of it.
    return config.build(options | {"_partial_": True, "like": None})(like=like)


def check_form(run: Path | str, found: Data, like: Preparation, vae: VAE) -> None:
    """Raises a ``ValueError`` if data have not the form of a run's own."""
    check_shape(f"run '{run}'", found, like.event_shape)
    if None not in (found.columns, like.columns) and found.columns != like.columns:
        raise ValueError(
            f"Expected data with the columns {list(like.columns or ())} of run '{run}', in this "
            f"order, got {list(found.columns or ())} of '{found.name}': "
            f"data.table(..., like=reuse.preparation(run)) takes them so"
        )
    if not same(found.scaling, like.scaling) or (like.scaling and found.columns is None):
        state = "as they are" if found.scaling is None else "scaled otherwise"
        raise ValueError(
            f"Expected data scaled as the training data of run '{run}' were"
            f"{', not at all' if like.scaling is None else ''}, got '{found.name}' {state}: "
            f"data.table(..., like=reuse.preparation(run)) does so"
        )
    alike = (found.binarize == "none") == (like.binarize == "none")
    takes_bits = isinstance(vae.likelihood, Bernoulli) and not vae.likelihood.grey_scale
    if not alike and not (takes_bits and binary(found)):
        raise ValueError(
            f"Expected data with binarize={like.binarize!r}, as those of run '{run}', got "
            f"{found.binarize!r} of '{found.name}'"
        )


def binary(found: Data) -> bool:
    """Tells whether all values are zeros and ones, whatever made them so."""
    return all(bool(((x == 0) | (x == 1)).all()) for x in found.x)


def check_shape(whose: str, found: Data, expected: tuple[int, ...]) -> None:
    """Raises a ``ValueError`` if a datum has another shape."""
    if tuple(found.event_shape) != expected:
        raise ValueError(
            f"Expected data of shape {expected}, that of {whose}, got {tuple(found.event_shape)} "
            f"of '{found.name}'"
        )


def same(scaling: data.Scaling | None, other: data.Scaling | None) -> bool:
    """Tells whether two scalings are one."""
    if scaling is None or other is None:
        return scaling is other
    return all(torch.equal(a, b) for a, b in zip(scaling, other, strict=True))


def check_values(vae: VAE, chosen: Chosen) -> None:
    """Raises a ``ValueError`` if values lie outside the likelihood's support."""
    weight = next(vae.parameters())
    for start in range(0, len(chosen.part), CHECKED):
        vae.check(*chosen.rows(slice(start, start + CHECKED), weight))


def fixed(found: Data, seed: int) -> Data:
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


def choose(found: Data, part: str) -> Chosen:
    """Returns the rows of a part; all in the order of their source, if they come from one.

    Raises:
        ValueError: If there are none.
    """
    kept = range(3) if part == "all" else [PARTS.index(part)]
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
