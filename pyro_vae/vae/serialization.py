"""Saves and loads a VAE in one file that cannot run code."""

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
from pyro_vae.vae.allow import check_allow, check_classes
from pyro_vae.vae.recipe import build_vae, check_recipe, find_differences, suggest_remedy
from pyro_vae.vae.vae import PARTS, VAE
from pyro_vae.validation import check_path, describe_value

__all__ = ["load", "prepare_recipe", "save", "save_weights"]

_FORMAT = "pyro_vae 2"
_WEIGHTS_ONLY = "pyro_vae 1"
"""The previous format, whose checksum does not cover the recipe."""

_PLACEHOLDER = "0" * 64
"""The placeholder of the checksum while it is computed."""


def save(vae: VAE, path: Path | str) -> None:
    """Saves the weights and the recipe of a VAE in one file without code.

    Arguments:
        vae: The VAE; each part must come from a class, or a ``functools.partial`` of one with
            numbers, strings and lists, so that :func:`load` can rebuild it.
        path: The file, conventionally ``*.safetensors``.

    Raises:
        ValueError: If a part was passed as a module, whose arguments are unknown, or the VAE was
            modified after its construction, so that a file could not restore it.

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
                f"Expected {role} to be built by a class, or a functools.partial of one with "
                f"numbers, strings and lists, got a part that a file cannot describe: "
                f"save vae.state_dict() instead"
            )
    for name, difference in find_differences(vae).items():
        raise ValueError(
            f"Expected a VAE as its constructor builds it, got {name}: {difference}. "
            f"{suggest_remedy(name)}"
        )
    write_whole(file, _pack({**vae.recipe, "name": vae.name}, vae.state_dict()))


def prepare_recipe(vae: VAE) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the recipe for a file, with ``None`` for each part that it cannot restore.

    Returns:
        The recipe; and the differences between the VAE and the one that its recipe builds, as
        :func:`pyro_vae.vae.recipe.find_differences` returns them.
    """
    recipe = {**vae.recipe, "name": vae.name}
    if None in recipe["parts"].values():
        return recipe, {}
    differences = find_differences(vae)
    changed = {path.partition(".")[0] for path in differences}
    roles = changed if changed <= set(PARTS) else set(PARTS)
    parts = {role: None if role in roles else part for role, part in recipe["parts"].items()}
    return {**recipe, "parts": parts}, differences


def save_weights(
    vae: VAE, weights: dict[str, Tensor], path: Path, recipe: dict[str, Any] | None = None
) -> None:
    """Saves other weights of a VAE, in the format of :func:`save`.

    Arguments:
        vae: The VAE.
        weights: The weights.
        path: The file.
        recipe: The recipe from :func:`prepare_recipe`. Default: it is computed.
    """
    write_whole(path, _pack(recipe or prepare_recipe(vae)[0], weights))


def _pack(recipe: Mapping[str, Any], weights: Mapping[str, Tensor]) -> bytes:
    """Returns the content of a file with a recipe and weights."""
    invalid = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if invalid:
        raise ValueError(f"Expected weights that are tensors, got other values for {invalid}")
    # Safetensors refuses two weights that share memory, so each is cloned.
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in weights.items()}
    # The checksum precedes the recipe, so that the first match is the placeholder. The header is
    # one entry, because the order in which safetensors writes several changes from run to run.
    header = {"format": _FORMAT, "sha256": _PLACEHOLDER, "recipe": dict(recipe)}
    content = to_bytes(tensors, {"pyro_vae": json.dumps(header)})
    checksum = _compute_checksum(content, _PLACEHOLDER)
    return content.replace(_PLACEHOLDER.encode(), checksum.encode(), 1)


def _compute_checksum(content: bytes, stored: str) -> str:
    """Returns the SHA-256 of a file's content, with the stored checksum replaced by zeros."""
    head = 8 + int.from_bytes(content[:8], "little")
    sha = hashlib.sha256(content[:head].replace(stored.encode(), _PLACEHOLDER.encode(), 1))
    sha.update(memoryview(content)[head:])
    return sha.hexdigest()


def load(path: Path | str, *, allow: Sequence[str] = ()) -> VAE:
    """Loads a VAE from a file of :func:`save`, in evaluation mode.

    Classes of this package are always allowed. Those of other packages must be allowed by name,
    because their constructors run code.

    Arguments:
        path: The file, or the folder of a run.
        allow: Dotted names of further classes, such as ``"my_package.MyPrior"``.

    Raises:
        ValueError: If the file is missing, damaged or of another format, or names classes that are
            not allowed; the message lists all of them.
    """
    allowed = check_allow(allow)
    path = check_path("path", path)
    path = path / "model.safetensors" if os.path.isdir(path) else path
    if not os.path.isfile(path):
        raise ValueError(f"Expected a file written by pyro_vae.save or a run's folder, got {path}")
    recipe, weights = _unpack(read_bytes(path), path)
    unknown = [role for role, part in recipe["parts"].items() if part is None]
    if unknown:
        raise ValueError(
            f"Expected {path} to describe each part, got no description of {unknown}: build the "
            f"VAE yourself, and load the weights by safetensors"
        )
    check_classes(recipe, allowed, path)
    try:
        return build_vae(recipe, weights, allowed).eval()
    except Exception as error:
        raise ValueError(
            f"Expected {path} to describe a VAE that can be built, got {type(error).__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error


def _unpack(content: bytes, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the recipe and the weights from a file's content, after a check of its checksum.

    Raises:
        ValueError: If it is damaged, or of another format.
    """
    try:
        size = int.from_bytes(content[:8], "little")
        tensors = parse_json(content[8 : 8 + size] if 8 < 8 + size <= len(content) else b"")
        header = parse_json(tensors.get("__metadata__", {}).get("pyro_vae", "{}"), strict=False)
        version = header.get("format")
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"Expected safetensors in {path}, got a damaged file: {error}") from None
    if version not in (_FORMAT, _WEIGHTS_ONLY):
        raise ValueError(
            f"Expected a file written by pyro_vae.save in {path}, got format {version!r}"
        )
    damaged = ValueError(f"Expected {path} to match its checksum: the file is damaged")
    checksum = header.get("sha256")
    if not isinstance(checksum, str) or len(checksum) != len(_PLACEHOLDER):
        raise damaged
    if version == _FORMAT and _compute_checksum(content, checksum) != checksum:
        raise damaged
    try:
        weights = from_bytes(content)
        if version == _WEIGHTS_ONLY and _compute_weights_checksum(weights) != checksum:
            raise damaged
        return check_recipe(header.get("recipe")), weights
    except Exception as error:
        if error is damaged:
            raise
        raise ValueError(f"Expected {path} to be intact, got a damaged file: {error}") from None


def _compute_weights_checksum(weights: dict[str, Tensor]) -> str:
    """Returns the SHA-256 of names, shapes and values, as stored in the previous format."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
