"""Files that survive a crash and cannot run code: a VAE's weights, and the state of a training."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from pyro_vae.files.atomic import write_whole
from pyro_vae.files.untrusted import parse_json, read_bytes
from pyro_vae.vae.recipe import (
    advice,
    check_allow,
    check_classes,
    check_recipe,
    differences,
    make_vae,
)
from pyro_vae.vae.vae import PARTS, VAE
from pyro_vae.validation import check_path, describe_value

__all__ = ["load", "recipe_to_write", "save", "save_weights"]

_FORMAT = "pyro_vae 2"
_WEIGHTS_ONLY = "pyro_vae 1"
"""The format before, whose checksum leaves the recipe out."""

_UNKNOWN = "0" * 64
"""The placeholder of the checksum while it is computed."""


def save(vae: VAE, path: Path | str) -> None:
    """Saves a VAE: its weights and how it was made, in one file without code.

    Arguments:
        vae: The VAE; each part must have been made by a class, or a ``functools.partial`` of one
            with numbers, strings and lists, so that it can be made again.
        path: The file, by custom ``*.safetensors``.

    Raises:
        ValueError: If a part was handed over ready-made, so that nothing says how to make it, or
            the VAE was changed since it was made, so that a file could not restore it.

    Example:
        >>> import tempfile
        >>> vae = VAE((1, 8, 8), latent_dim=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(vae, f"{folder}/vae.safetensors")
        ...     copy = load(f"{folder}/vae.safetensors")
        >>> bool((copy.encoder.layers[0].weight == vae.encoder.layers[0].weight).all())
        True
    """
    if not isinstance(vae, VAE):
        raise ValueError(f"Expected vae to be a VAE, got {describe_value(vae)}")
    file = check_path("path", path)
    if file.is_dir() or not file.parent.is_dir():
        raise ValueError(f"Expected path to name a file in a folder that exists, got '{path}'")
    for role, part in vae.recipe["parts"].items():
        if part is None:
            raise ValueError(
                f"Expected {role} to be made by a class, or a functools.partial of one with "
                f"numbers, strings and lists, which a file can describe, got one made otherwise: "
                f"save vae.state_dict() instead"
            )
    for place, found in differences(vae).items():
        raise ValueError(
            f"Expected a VAE as its constructor makes it, got {place}: {found}. {advice(place)}"
        )
    write_whole(file, _packed({**vae.recipe, "name": vae.name}, vae.state_dict()))


def recipe_to_write(vae: VAE) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the recipe for a file, with null for each part that the recipe does not restore.

    Returns:
        The recipe; and how the VAE differs from the one that its own recipe makes, as
        :func:`pyro_vae.vae.recipe.differences` returns it.
    """
    recipe = {**vae.recipe, "name": vae.name}
    if None in recipe["parts"].values():
        return recipe, {}
    found = differences(vae)
    changed = {place.partition(".")[0] for place in found}
    roles = changed if changed <= set(PARTS) else set(PARTS)
    parts = {role: None if role in roles else part for role, part in recipe["parts"].items()}
    return {**recipe, "parts": parts}, found


def save_weights(
    vae: VAE, weights: dict[str, Tensor], path: Path, recipe: dict[str, Any] | None = None
) -> None:
    """Saves weights of a VAE other than those it has now, as :func:`save` does if it can.

    Arguments:
        vae: The VAE.
        weights: The weights.
        path: The file.
        recipe: What :func:`recipe_to_write` returned for the VAE; ``None``: it is called here.
    """
    write_whole(path, _packed(recipe or recipe_to_write(vae)[0], weights))


def _packed(recipe: Mapping[str, Any], weights: Mapping[str, Tensor]) -> bytes:
    """Returns weights with how the VAE was made, as the content of a file."""
    odd = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if odd:
        raise ValueError(f"Expected weights that are tensors, got others in {odd}")
    # Cloned, because two weights of one memory are refused by safetensors.
    own = {k: v.detach().cpu().contiguous().clone() for k, v in weights.items()}
    # The checksum stands first, so that its place is the first that looks like it. One entry,
    # because safetensors writes several in an order that changes from run to run.
    header = {"format": _FORMAT, "sha256": _UNKNOWN, "recipe": dict(recipe)}
    content = to_bytes(own, {"pyro_vae": json.dumps(header)})
    return content.replace(_UNKNOWN.encode(), _checksum(content, _UNKNOWN).encode(), 1)


def _checksum(content: bytes, written: str) -> str:
    """Returns the SHA-256 of a file's content with zeros in the place of the written checksum."""
    head = 8 + int.from_bytes(content[:8], "little")
    sha = hashlib.sha256(content[:head].replace(written.encode(), _UNKNOWN.encode(), 1))
    sha.update(memoryview(content)[head:])
    return sha.hexdigest()


def load(path: Path | str, *, allow: Sequence[str] = ()) -> VAE:
    """Loads a VAE that :func:`save` wrote, in evaluation mode.

    Only classes of this package are made; those of other packages must be allowed by name, since
    making them runs their code.

    Arguments:
        path: The file, or the folder of a run.
        allow: Dotted names of further classes, such as ``"my_package.MyPrior"``.

    Raises:
        ValueError: If there is no such file, it is damaged, of another origin, or names a class
            that is not allowed.
    """
    allowed = check_allow(allow)
    path = check_path("path", path)
    path = path / "model.safetensors" if os.path.isdir(path) else path
    if not os.path.isfile(path):
        raise ValueError(f"Expected a file written by pyro_vae.save or a run's folder, got {path}")
    recipe, weights = _unpacked(read_bytes(path), path)
    unknown = [role for role, part in recipe["parts"].items() if part is None]
    if unknown:
        raise ValueError(
            f"Expected {path} to say how each part is made, got nothing on {unknown}: make the VAE "
            f"yourself, and load the weights by safetensors"
        )
    check_classes(recipe, allowed, path)
    try:
        return make_vae(recipe, weights, allowed).eval()
    except Exception as error:
        raise ValueError(
            f"Expected {path} to describe a VAE that can be made, got {type(error).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error


def _unpacked(content: bytes, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the recipe and the weights of a file's content, once its checksum is known to hold.

    Raises:
        ValueError: If it is damaged, or of another origin.
    """
    try:
        size = int.from_bytes(content[:8], "little")
        tensors = parse_json(content[8 : 8 + size] if 8 < 8 + size <= len(content) else b"")
        header = parse_json(tensors.get("__metadata__", {}).get("pyro_vae", "{}"), strict=False)
        form = header.get("format")
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"Expected safetensors in {path}, got a damaged file: {error}") from None
    if form not in (_FORMAT, _WEIGHTS_ONLY):
        raise ValueError(f"Expected a file written by pyro_vae.save in {path}, got format {form!r}")
    damaged = ValueError(f"Expected {path} to match its checksum: the file is damaged")
    written = header.get("sha256")
    if not isinstance(written, str) or len(written) != len(_UNKNOWN):
        raise damaged
    if form == _FORMAT and _checksum(content, written) != written:
        raise damaged
    try:
        weights = from_bytes(content)
        if form == _WEIGHTS_ONLY and _weights_checksum(weights) != written:
            raise damaged
        return check_recipe(header.get("recipe")), weights
    except Exception as error:
        if error is damaged:
            raise
        raise ValueError(f"Expected {path} to be whole, got a damaged file: {error}") from None


def _weights_checksum(weights: dict[str, Tensor]) -> str:
    """Returns the SHA-256 of names, shapes and values, as files of the format before hold it."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
