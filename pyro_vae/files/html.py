"""What all HTML pages share: the template environment, scripts and their data, and numbers."""

import base64
import hashlib
import json
import math
from typing import Any

import jinja2
from markupsafe import Markup

from pyro_vae.files.atomic import replace_non_finite

__all__ = ["build_environment", "embed_json", "format_number", "hash_script"]


def build_environment() -> jinja2.Environment:
    """Returns an environment that escapes values, and refuses undefined names."""
    return jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def embed_json(values: Any) -> Markup:
    r"""Returns JSON for a script element, which no text in it can close.

    Example:
        >>> print(embed_json({"name": "</script>", "value": math.nan}))
        {"name":"\u003c/script>","value":null}
    """
    text = json.dumps(replace_non_finite(values), separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", r"\u003c"))


def hash_script(script: str) -> str:
    """Returns the hash that allows a script under the content security policy."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def format_number(
    value: float | None,
    decimals: int = 2,
    *,
    signed: bool = False,
    missing: str = "\N{EN DASH}",
) -> str:
    """Formats a number with a typographic minus, and without a minus before zero.

    Arguments:
        value: The number.
        decimals: The number of decimals.
        signed: Whether positive numbers have a plus.
        missing: The text for ``None`` and NaN.

    Example:
        >>> format_number(-1234.567), format_number(0.5, signed=True), format_number(None)
        ('−1,234.57', '+0.50', '–')
    """
    if value is None or math.isnan(value):
        return missing
    # Adding zero takes the sign from a negative zero.
    rounded = round(value, decimals) + 0.0
    plus = "+" if signed and rounded > 0 else ""
    return plus + f"{rounded:,.{decimals}f}".replace("-", "\N{MINUS SIGN}").replace("inf", "∞")
