"""Printed numbers, and the names and units of metrics."""

import re

from pyro_vae.compare.configurations import Mean
from pyro_vae.files.html import format_number

__all__ = [
    "NAMES",
    "NBSP",
    "UNITS",
    "escape_control_characters",
    "format_mean",
]

NBSP = "\N{NO-BREAK SPACE}"

NAMES = {
    "log_evidence": "Log evidence",
    "elbo": "ELBO",
    "rate": "Rate",
    "distortion": "Distortion",
    "active_units": "Active units",
    "seconds": "Training time",
}
"""The printed names of metrics."""

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
"""Characters that move the cursor, change the direction of writing, or end a line."""


def escape_control_characters(text: str) -> str:
    r"""Returns text in one line, with each control character replaced by its escape.

    Arguments:
        text: The text, of any origin.

    Example:
        >>> escape_control_characters("two\nlines, \x1b[31mred")
        'two lines, \\x1b[31mred'
    """
    line = re.sub(r"[\t\n\v\f\r\x85\u2028\u2029]+", " ", text)
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], line)


def _format_error(mean: Mean, decimals: int) -> str:
    """Returns a standard error, or an empty string if there is none.

    An error that would be rounded to zero is shown as smaller than the last decimal.
    """
    if mean.standard_error is None:
        return ""
    least = 10.0**-decimals
    if 0 < mean.standard_error < least / 2:
        return f"±{NBSP}<{NBSP}{format_number(least, decimals)}"
    return f"±{NBSP}{format_number(mean.standard_error, decimals)}"


def format_mean(mean: Mean | None, metric: str, *, signed: bool = False) -> str:
    """Returns a mean with its standard error, to the decimals of the metric."""
    if mean is None:
        return format_number(None)
    decimals = _DECIMALS.get(metric, 2)
    value = format_number(mean.value, decimals, signed=signed)
    return " ".join(filter(None, [value, _format_error(mean, decimals)]))
