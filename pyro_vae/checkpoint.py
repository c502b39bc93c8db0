"""Files that survive a crash and cannot run code: a VAE's weights, and the state of a training."""

import functools
import hashlib
import io
import json
import math
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from pyro_vae.files import write_whole
from pyro_vae.vae import VAE

__all__ = ["fingerprint", "load", "load_state", "save", "save_state", "save_weights"]

FORMAT = "pyro_vae 1"
ROOMS = ("priors", "posteriors", "likelihoods", "networks")


def save(vae: VAE, path: Path | str) -> None:
    """Saves a VAE: its weights and how it was made, in one file without code.

    Arguments:
        vae: The VAE; each part must have been made by a class, or a ``functools.partial`` of one
            with numbers, strings and lists, so that it can be made again.
        path: The file, by custom ``*.safetensors``.

    Raises:
        ValueError: If a part was handed over ready-made, so that nothing says how to make it.

    Example:
        >>> import tempfile
        >>> vae = VAE((1, 8, 8), latent_dim=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(vae, f"{folder}/vae.safetensors")
        ...     copy = load(f"{folder}/vae.safetensors")
        >>> bool((copy.encoder.layers[0].weight == vae.encoder.layers[0].weight).all())
        True
    """
    for role, part in vae.recipe["parts"].items():
        if part is None:
            raise ValueError(
                f"Expected {role} to be made by a class, or a functools.partial of one with "
                f"numbers, strings and lists, which a file can describe, got one made otherwise: "
                f"save vae.state_dict() instead"
            )
    write_whole(Path(path), packed(vae, vae.state_dict()))


def save_weights(vae: VAE, weights: dict[str, Tensor], path: Path) -> None:
    """Saves weights of a VAE other than those it has now, as :func:`save` does if it can."""
    write_whole(path, packed(vae, weights))


def packed(vae: VAE, weights: dict[str, Tensor]) -> bytes:
    """Returns weights with how the VAE was made, as the content of a file."""
    weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    header = {
        "format": FORMAT,
        "recipe": {**vae.recipe, "name": vae.name},
        "sha256": digest(weights),
    }
    # One entry, because safetensors writes several in an order that changes from run to run.
    return to_bytes(weights, {"pyro_vae": json.dumps(header)})


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
    path = Path(path)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"Expected a file written by pyro_vae.save or a run's folder, got {path}")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("pyro_vae", "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"Expected safetensors in {path}, got a damaged file: {error}") from None
    if header.get("format") != FORMAT:
        raise ValueError(
            f"Expected a file written by pyro_vae.save in {path}, got format "
            f"{header.get('format')!r}"
        )
    if header.get("sha256") != digest(weights):
        raise ValueError(f"Expected {path} to match its checksum: the file is damaged")
    recipe = header["recipe"]
    unknown = [role for role, part in recipe["parts"].items() if part is None]
    if unknown:
        raise ValueError(
            f"Expected {path} to say how each part is made, got nothing on {unknown}: make the VAE "
            f"yourself, and load the weights by safetensors"
        )
    parts = {role: part_from(part, role, allow) for role, part in recipe.pop("parts").items()}
    vae = VAE(**recipe, **parts)
    # Assigned, not copied, so that a double precision VAE comes back as one.
    vae.load_state_dict(weights, assign=True)
    return vae.eval()


def digest(weights: dict[str, Tensor]) -> str:
    """Returns the SHA-256 of names, shapes and values."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def part_from(described: dict[str, Any], role: str, allow: Sequence[str]) -> Any:
    """Returns a part as described, if its class is allowed.

    Raises:
        ValueError: If it is not.
    """
    name = described["class"]
    allowed = {
        f"pyro_vae.{room}.{member}"
        for room in ROOMS
        for member in import_module(f"pyro_vae.{room}").__all__
    } | set(allow)
    if name not in allowed:
        raise ValueError(
            f"Expected {role} to be a class of pyro_vae, got {name!r}: if you trust the file, "
            f"load(path, allow=[{name!r}])"
        )
    module, _, member = name.rpartition(".")
    kind = getattr(import_module(module), member, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"Expected {role} to be a class of modules, got {name!r}")
    return functools.partial(kind, **described["arguments"])


def save_state(state: dict[str, Any], path: Path) -> None:
    """Writes the state of a training, with a checksum, readable with ``weights_only=True``."""
    inner = io.BytesIO()
    torch.save(state, inner)
    content = inner.getvalue()
    payload = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    outer = io.BytesIO()
    torch.save({"sha256": hashlib.sha256(content).hexdigest(), "payload": payload}, outer)
    write_whole(path, outer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Reads what :func:`save_state` wrote, on the host.

    Raises:
        ValueError: If the file is damaged, or of another origin, or would run code.
    """
    try:
        outer = torch.load(path, map_location="cpu", weights_only=True)
        content = outer["payload"].numpy().tobytes()
        intact = outer["sha256"] == hashlib.sha256(content).hexdigest()
    except Exception as error:
        raise ValueError(
            f"Expected the state of a training in {path}, got a damaged or foreign file "
            f"({type(error).__name__})"
        ) from None
    if not intact:
        raise ValueError(f"Expected {path} to match its checksum: the file is damaged")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def fingerprint(x: Tensor, **settings: Any) -> dict[str, Any]:
    """Returns what has to be the same for a training to be continued."""
    total = x.double().sum().item()
    return {
        "rows": list(x.shape),
        "sum": total if math.isfinite(total) else str(total),
        **settings,
    }
