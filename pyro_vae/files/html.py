"""What all HTML pages share: the template environment, and numbers as text."""

import math

import jinja2

__all__ = ["build_environment", "format_number"]


def build_environment() -> jinja2.Environment:
    """Returns an environment that escapes values, and refuses undefined names."""
    return jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


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
