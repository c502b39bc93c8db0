"""The space of a search, from overrides of the command line."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial

from pyro_vae.sweeps.job_id import UNRELATED

__all__ = ["Dimension", "Space", "build_space"]


_NOT_SEARCHED = frozenset(UNRELATED)


class Dimension(NamedTuple):
    """A setting that a search varies.

    Attributes:
        key: The setting, as on the command line.
        distribution: Its values. Those of a choice are texts.
        condition: For each setting that it depends on, the values at which it is used.
    """

    key: str
    distribution: BaseDistribution
    condition: Mapping[str, tuple[str, ...]]

    def is_used(self, values: Mapping[str, str]) -> bool:
        """Whether the setting is used at values of other settings."""
        return all(values.get(key) in allowed for key, allowed in self.condition.items())

    def describe(self) -> str:
        """Returns the values and the condition in one line."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            text = f"{self.key}={','.join(map(str, d.choices))}"
        else:
            assert isinstance(d, (IntDistribution, FloatDistribution))
            step = "" if d.step in (None, 1) else f" in steps of {d.step}"
            scale = " on a logarithmic scale" if d.log else ""
            text = f"{self.key} from {d.low} to {d.high}{step}{scale}"
        uses = [f"{other} is {' or '.join(v)}" for other, v in self.condition.items()]
        return " if ".join([text, *filter(None, [" and ".join(uses)])])


class Space(NamedTuple):
    """The settings of a search.

    Attributes:
        fixed: Overrides that are the same in all trials.
        dimensions: The settings that vary, each after those that it depends on.
    """

    fixed: tuple[str, ...]
    dimensions: tuple[Dimension, ...]

    def suggest(self, trial: Trial) -> list[str]:
        """Returns the overrides of a trial."""
        values: dict[str, str] = {}
        for dimension in self.dimensions:
            if dimension.is_used(values):
                values[dimension.key] = _format_value(_suggest(trial, dimension))
        return [*self.fixed, *(f"{key}={value}" for key, value in values.items())]

    def list_corners(self) -> list[list[str]]:
        """Returns overrides that use each choice, and both ends of each interval, at least once."""
        first = self._complete({})
        corners = [first]
        for dimension in self.dimensions:
            for value in _list_ends(dimension.distribution):
                corner = self._complete(self._enable(dimension) | {dimension.key: value})
                if corner not in corners:
                    corners.append(corner)
        return corners

    def _enable(self, dimension: Dimension) -> dict[str, str]:
        """Returns choices at which a setting is used, and those that these need in turn."""
        by_key = {other.key: other for other in self.dimensions}
        wanted: dict[str, str] = {}
        pending = [dimension]
        while pending:
            for key, allowed in pending.pop().condition.items():
                wanted.setdefault(key, allowed[0])
                pending.append(by_key[key])
        return wanted

    def _complete(self, wanted: Mapping[str, str]) -> list[str]:
        values: dict[str, str] = {}
        for dimension in self.dimensions:
            if dimension.is_used(values):
                default = _list_ends(dimension.distribution)[0]
                values[dimension.key] = wanted.get(dimension.key, default)
        return [*self.fixed, *(f"{key}={value}" for key, value in values.items())]

    def describe(self) -> list[str]:
        """Returns one line for each setting, fixed or not; equal for equal spaces."""
        return [*sorted(self.fixed), *sorted(d.describe() for d in self.dimensions)]


def build_space(
    overrides: Sequence[Override], conditions: Mapping[str, Mapping[str, Any]]
) -> Space:
    """Builds the space of a search.

    Choices ``a,b`` and ranges ``range(1,9)``, without the end, are those of a grid. An interval
    ``interval(0,1)`` includes both ends; it is one of integers as ``int(interval(1,9))``, and
    logarithmic as ``tag(log,interval(1e-4,1e-2))``.

    Arguments:
        overrides: The overrides; a later one replaces an earlier one of the same setting.
        conditions: For a setting, the values of others at which it is used.

    Raises:
        ValueError: If no setting varies, an interval is empty, or a condition does not fit.
    """
    fixed: dict[str, str] = {}
    distributions: dict[str, BaseDistribution] = {}
    for override in overrides:
        key = override.get_key_element()
        if override.is_sweep_override() and (name := key.lstrip("+")) in _NOT_SEARCHED:
            raise ValueError(f"Expected settings to search that affect the result, got {name}")
        if override.is_sweep_override() and key == "seed":
            raise ValueError(
                "Expected hydra.sweeper.seeds=[0,1,2] to judge trials by several seeds, got a "
                "search over seed"
            )
        fixed.pop(key, None)
        distributions.pop(key, None)
        if override.is_sweep_override():
            distributions[key] = _read_distribution(key, override)
        elif override.is_delete():
            fixed[key] = key
        else:
            fixed[key] = f"{key}={override.get_value_element_as_str()}"
    if not distributions:
        raise ValueError(
            "Expected a setting to search, such as 'vae.latent_dim=int(interval(2,20))' or "
            "vae/prior=normal,vamp, got none"
        )
    dimensions = {
        key: Dimension(key, d, _read_condition(key, conditions.get(key, {}), distributions))
        for key, d in distributions.items()
    }
    if unknown := [key for key in conditions if key not in dimensions]:
        raise ValueError(
            f"Expected hydra.sweeper.conditions of settings that are searched, got one of "
            f"{unknown[0]!r}; searched are {', '.join(dimensions)}"
        )
    return Space(tuple(fixed.values()), _order(dimensions))


def _suggest(trial: Trial, dimension: Dimension) -> Any:
    key, d = dimension.key, dimension.distribution
    if isinstance(d, CategoricalDistribution):
        return trial.suggest_categorical(key, d.choices)
    if isinstance(d, IntDistribution):
        return trial.suggest_int(key, d.low, d.high, step=d.step, log=d.log)
    assert isinstance(d, FloatDistribution)
    return trial.suggest_float(key, d.low, d.high, step=d.step, log=d.log)


def _read_distribution(key: str, override: Override) -> BaseDistribution:
    """Returns the values of a setting that varies."""
    value = override.value()
    tags = set(getattr(value, "tags", ()))
    if unknown := tags - {"log"}:
        raise ValueError(
            f"Expected log as the only tag of the values of {key}, got {', '.join(sorted(unknown))}"
        )
    log = "log" in tags
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        if low is None or high is None or not low < high or (log and low <= 0):
            positive = "positive numbers" if log else "numbers"
            raise ValueError(
                f"Expected an interval of {key} between two {positive}, the lower one first, got "
                f"{low} and {high}"
            )
        integer = isinstance(low, int) and isinstance(high, int)
        return (IntDistribution if integer else FloatDistribution)(low, high, log=log)  # type: ignore[arg-type]
    if log:
        raise ValueError(
            f"Expected the tag log for an interval only, got it for other values of {key}"
        )
    if isinstance(value, RangeSweep) and not value.shuffle:
        numbers = list(value.range())
        if len(numbers) < 2:
            raise ValueError(f"Expected a range of {key} with two values or more, got {numbers}")
        kind = IntDistribution if all(isinstance(n, int) for n in numbers) else FloatDistribution
        low, high = min(numbers), max(numbers)
        return kind(low, high, step=abs(value.step))  # type: ignore[arg-type]
    # Hydra writes truth values as Python does.
    choices = [
        choice.lower() if choice in ("True", "False") else choice
        for choice in override.sweep_string_iterator()
    ]
    if not choices:
        raise ValueError(f"Expected values of {key}, got none")
    if len(set(choices)) < len(choices):
        raise ValueError(f"Expected different values of {key}, got {', '.join(choices)}")
    return CategoricalDistribution(choices)


def _read_condition(
    key: str, condition: Any, distributions: Mapping[str, BaseDistribution]
) -> dict[str, tuple[str, ...]]:
    """Returns a condition with texts as values."""
    if not isinstance(condition, Mapping):
        raise ValueError(
            f"Expected hydra.sweeper.conditions as {{SETTING: {{OTHER: [VALUE, ...]}}}}, got "
            f"{condition!r} for {key!r}"
        )
    texts = {}
    for other, values in condition.items():
        choices = distributions.get(other)
        if not isinstance(choices, CategoricalDistribution) or other == key:
            raise ValueError(
                f"Expected the condition of {key!r} to be on a choice that is searched too, got "
                f"{other!r}"
            )
        listed = values if isinstance(values, (list, tuple)) else [values]
        texts[other] = tuple(_format_value(value) for value in listed)
        if not texts[other] or not set(texts[other]) <= set(choices.choices):
            raise ValueError(
                f"Expected the condition of {key!r} to name values of {other}, which are "
                f"{', '.join(map(str, choices.choices))}; got {', '.join(texts[other]) or 'none'}"
            )
    return texts


def _order(dimensions: Mapping[str, Dimension]) -> tuple[Dimension, ...]:
    """Returns the settings, each after those that it depends on."""
    ordered: dict[str, Dimension] = {}
    while len(ordered) < len(dimensions):
        ready = {
            key: dimension
            for key, dimension in dimensions.items()
            if key not in ordered and set(dimension.condition) <= set(ordered)
        }
        if not ready:
            circle = ", ".join(key for key in dimensions if key not in ordered)
            raise ValueError(f"Expected hydra.sweeper.conditions without a circle, got {circle}")
        ordered |= ready
    return tuple(ordered.values())


def _list_ends(distribution: BaseDistribution) -> list[str]:
    """Returns all values of a choice, or both ends of an interval, as texts."""
    if isinstance(distribution, CategoricalDistribution):
        return [str(choice) for choice in distribution.choices]
    assert isinstance(distribution, (IntDistribution, FloatDistribution))
    return [_format_value(distribution.low), _format_value(distribution.high)]


def _format_value(value: Any) -> str:
    """Returns a value as on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
