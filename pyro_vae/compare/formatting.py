"""Numbers as they are printed, and the names of figures."""

import math
import re

from pyro_vae.compare.configurations import Mean

__all__ = [
    "NAMES",
    "NBSP",
    "UNITS",
    "number",
    "visible",
    "written",
]

NBSP = "\N{NO-BREAK SPACE}"

NAMES = {
    "log_evidence": "Log evidence",
    "elbo": "ELBO",
    "rate": "Rate",
    "distortion": "Distortion",
    "active_units": "Active units",
    "seconds": "Training",
}
"""What figures are called."""

UNITS = {
    "log_evidence": "nats per datum",
    "elbo": "nats per datum",
    "rate": "nats per datum",
    "distortion": "nats per datum",
    "active_units": "",
    "seconds": "s",
}

_DECIMALS = {"active_units": 1, "seconds": 1}


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move the cursor, turn the direction of writing, or end a line."""


def visible(text: str) -> str:
    r"""Returns text in one line, in which each control character is replaced by its escape.

    Arguments:
        text: The text, of any origin.

    Example:
        >>> visible("two\nlines, \x1b[31mred")
        'two lines, \\x1b[31mred'
    """
    line = re.sub(r"[\t\n\v\f\r\x85\u2028\u2029]+", " ", text)
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], line)


def number(value: float | None, decimals: int = 2, *, signed: bool = False) -> str:
    """Returns a number as it is printed: with a real minus, and none before zero.

    Arguments:
        value: The number; none is a dash.
        decimals: How many.
        signed: Whether a plus is written, too.

    Example:
        >>> number(-1234.567), number(0.5, signed=True), number(None)
        ('−1,234.57', '+0.50', '–')
    """
    if value is None or math.isnan(value):
        return "\N{EN DASH}"
    # Adding zero takes the sign from a negative zero.
    rounded = round(value, decimals) + 0.0
    plus = "+" if signed and rounded > 0 else ""
    return plus + f"{rounded:,.{decimals}f}".replace("-", "\N{MINUS SIGN}").replace("inf", "∞")


def _error(found: Mean, decimals: int = 2) -> str:
    """Returns a standard error, or nothing where there is none.

    One that would be rounded away is said to be small, not zero.
    """
    if found.standard_error is None:
        return ""
    least = 10.0**-decimals
    if 0 < found.standard_error < least / 2:
        return f"±{NBSP}<{NBSP}{number(least, decimals)}"
    return f"±{NBSP}{number(found.standard_error, decimals)}"


def written(found: Mean | None, metric: str, *, signed: bool = False) -> str:
    """Returns a mean with its standard error, to the decimals of the figure."""
    if found is None:
        return number(None)
    decimals = _DECIMALS.get(metric, 2)
    value = number(found.value, decimals, signed=signed)
    return " ".join(filter(None, [value, _error(found, decimals)]))
