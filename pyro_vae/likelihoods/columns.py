"""The likelihood of a table whose columns are of different kinds."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_vae.conditional import Likelihood
from pyro_vae.distributions import Mixed
from pyro_vae.likelihoods.core.codes import BinaryCodes, CategoricalCodes, OrdinalCodes
from pyro_vae.likelihoods.core.counts import CountLikelihood
from pyro_vae.likelihoods.gamma import Gamma
from pyro_vae.likelihoods.laplace import Laplace
from pyro_vae.likelihoods.log_normal import LogNormal
from pyro_vae.likelihoods.negative_binomial import NegativeBinomial
from pyro_vae.likelihoods.normal import Normal
from pyro_vae.likelihoods.poisson import Poisson
from pyro_vae.likelihoods.student_t import StudentT
from pyro_vae.likelihoods.zero_inflated_negative_binomial import ZeroInflatedNegativeBinomial
from pyro_vae.masking import compute_moments
from pyro_vae.tables.schema import Schema
from pyro_vae.validation import check_choice, check_shape, describe_value, list_names

__all__ = ["Columns"]

_DISPERSIONS = (0.1, 1e4)
"""The range of inverse dispersions at the start of training."""

_SOURCES = ("shared", "element", "network")

FAMILIES: dict[str, tuple[str, ...]] = {
    "real": ("normal", "student_t", "laplace"),
    "positive": ("log_normal", "gamma"),
    "count": ("negative_binomial", "poisson", "zero_inflated_negative_binomial"),
    "binary": ("bernoulli",),
    "categorical": ("categorical",),
    "ordinal": ("ordinal",),
}
"""The families of each kind of column."""


class _Part(NamedTuple):
    """Columns of one family."""

    name: str
    family: str
    levels: int
    members: list[int]


class Columns(Likelihood):
    r"""A likelihood of tables, with one likelihood for each kind of column.

    .. math:: \log p(x \mid z) = \sum_i \log p_i(x_i \mid z)

    A datum has one number for each column, in the units of the table; words are codes, as in
    :class:`pyro_vae.data.Schema`. Columns of one family share a likelihood of this package:

    - ``real``: ``"normal"``, ``"student_t"`` or ``"laplace"``;
    - ``positive``: ``"log_normal"`` or ``"gamma"``;
    - ``count``: ``"negative_binomial"``, ``"poisson"`` or ``"zero_inflated_negative_binomial"``;
    - ``binary``: a Bernoulli;
    - ``categorical``: a categorical distribution;
    - ``ordinal``: cumulative logits.

    The decoder's features are one vector, with those of each part of :attr:`parts` in turn. They
    are in standardized units, and relative to the frequencies of levels in the training rows, with
    half a count for each level. Each column is scored if its value is observed. The evidence adds
    probabilities of binary, categorical, ordinal and count columns to densities of the others, in
    the units of the table.

    References:
        | Handling incomplete heterogeneous data using VAEs (Nazábal et al., 2020),
          https://arxiv.org/abs/1807.03653

    Arguments:
        event_shape: The shape of one datum, ``(columns,)``.
        columns: The columns, as ``Data.schema`` has them: a list of
            :class:`pyro_vae.data.Column`, or of mappings with ``name``, ``kind`` and ``levels``.
        real: The family of real columns, as above.
        positive: The family of positive columns.
        count: The family of counts.
        families: The families of single columns by name, where they differ from these.
        dispersion: The source of scales and other dispersions: ``"shared"`` (learned, one for all
            columns of a family), ``"element"`` (learned, one for each column) or ``"network"`` (an
            output of the decoder). A zero inflation is always an output of the decoder.
        min_scale: The lower bound of scales, in units of the standard deviation of the column, or
            of its logarithm for ``"log_normal"``. ``"gamma"`` has no such bound.

    Raises:
        ValueError: If the columns are missing or do not fit, or a family is not one of these.

    Example:
        >>> columns = [
        ...     {"name": "mass", "kind": "real"},
        ...     {"name": "island", "kind": "categorical", "levels": ["Biscoe", "Dream", "Tor"]},
        ... ]
        >>> likelihood = Columns((2,), columns=columns)
        >>> p = likelihood(torch.zeros(5, *likelihood.feature_shape))
        >>> p.log_prob(torch.tensor([0.5, 2.0])).shape
        torch.Size([5])
    """

    fill_value = 1.0
    default_transform = "Columns"

    order: Tensor
    position: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        columns: Any = None,
        real: str = "normal",
        positive: str = "log_normal",
        count: str = "negative_binomial",
        families: Mapping[str, str] | None = None,
        dispersion: str = "network",
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__()
        self.event_shape = check_shape("event_shape", event_shape)
        self.columns = Schema.for_shape(columns, self.event_shape)
        check_choice("dispersion", dispersion, _SOURCES)
        defaults = {"real": real, "positive": positive, "count": count}
        for kind, family in defaults.items():
            check_choice(kind, family, FAMILIES[kind])
        groups = _group_columns(self.columns, defaults, _check_families(families, self.columns))
        self.parts = nn.ModuleDict({
            part.name: _build_part(part, dispersion, min_scale) for part in groups
        })  # fmt: skip
        self.sizes = [part.feature_shape.numel() for part in self._parts]
        self.feature_shape = torch.Size((sum(self.sizes),))
        position = torch.tensor([i for part in groups for i in part.members])
        self.register_buffer("position", position, persistent=False)
        self.register_buffer("order", position.argsort(), persistent=False)
        self.measure = _choose_measure(self.columns)

    @property
    def family_names(self) -> dict[str, str]:
        """The family of each column, by name."""
        widths = [part.event_shape.numel() for part in self._parts]
        names = self.columns.names
        return {
            names[index]: family.rstrip("_0123456789")
            for family, members in zip(self.parts, self.position.split(widths), strict=True)
            for index in members.tolist()
        }

    @property
    def _parts(self) -> list[Any]:
        return list(self.parts.values())

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns the columns of each part."""
        if x.shape[-1:] != self.event_shape:
            raise ValueError(
                f"Expected x of shape (*batch, {len(self.columns.columns)}), got {tuple(x.shape)}"
            )
        widths = [part.event_shape.numel() for part in self._parts]
        return x.index_select(-1, self.position).split(widths, -1)

    def initialize(self, x: Tensor) -> None:
        """Initializes units and frequencies from training rows, once; NaN marks missing values."""
        for part, values in zip(self._parts, self._split(x), strict=True):
            if isinstance(part, CountLikelihood) and not part.started:
                _start_dispersion(part, values)
            if hasattr(part, "initialize"):
                part.initialize(values)

    def forward(self, features: Tensor) -> Any:
        """Returns the likelihood for features of shape ``(*batch, *feature_shape)``."""
        if features.shape[-1:] != self.feature_shape:
            raise ValueError(
                f"Expected features of shape (*batch, {self.feature_shape[0]}), got "
                f"{tuple(features.shape)}"
            )
        pieces = features.split(self.sizes, -1)
        elements = [
            part(piece.unflatten(-1, part.feature_shape)).base_dist
            for part, piece in zip(self._parts, pieces, strict=True)
        ]
        return Mixed(elements, self.order).to_event(1)

    def em_step(self, responsibilities: Tensor, x: Tensor, smoothing: float) -> Any:
        """Computes the M step of each part; ``None`` if one has no closed M step."""
        components = [
            part.em_step(responsibilities, values, smoothing)
            for part, values in zip(self._parts, self._split(x), strict=True)
        ]
        if any(component is None for component in components):
            return None
        shape = torch.Size((responsibilities.shape[1],))
        expanded = [c.expand(shape + c.batch_shape[-1:]) for c in components]
        return Mixed(expanded, self.order, validate_args=False)

    def check(self, x: Tensor) -> None:
        """Raises a ``ValueError`` that names a column with values outside of its kind."""
        self._split(x)
        for index, column in enumerate(self.columns.columns):
            values = x[..., index]
            valid = column.contains(values)
            if not bool(valid.all()):
                raise ValueError(
                    f"Expected column {column.name!r} of x to be {column.describe_support()}, got "
                    f"{values[~valid][0].item():.6g}"
                )

    def extra_repr(self) -> str:
        """Shows the kinds of the columns."""
        return ", ".join(f"{column.name}: {column.kind}" for column in self.columns.columns)


def _check_families(families: Any, schema: Schema) -> dict[str, str]:
    """Returns the families of single columns."""
    if families is None:
        return {}
    if not isinstance(families, Mapping):
        raise ValueError(
            f"Expected families to be a mapping from columns to families, got "
            f"{describe_value(families)}"
        )
    kinds = {column.name: column.kind for column in schema.columns}
    unknown = [str(name) for name in families if str(name) not in kinds]
    if unknown:
        raise ValueError(
            f"Expected families of columns among {list_names(schema.names)}, got "
            f"{list_names(unknown)}"
        )
    return {
        str(name): check_choice(f"the family of {name!r}", family, FAMILIES[kinds[str(name)]])
        for name, family in families.items()
    }


def _group_columns(
    schema: Schema, defaults: Mapping[str, str], families: Mapping[str, str]
) -> list[_Part]:
    """Returns the columns of each family, and of each number of levels."""
    groups: dict[str, _Part] = {}
    for index, column in enumerate(schema.columns):
        family = families.get(column.name, defaults.get(column.kind, FAMILIES[column.kind][0]))
        levels = len(column.levels) if column.kind in ("categorical", "ordinal") else 0
        name = f"{family}_{levels}" if levels else family
        groups.setdefault(name, _Part(name, family, levels, [])).members.append(index)
    return list(groups.values())


def _build_part(part: _Part, dispersion: str, min_scale: float) -> Likelihood:
    scaled: dict[str, Any] = {"scale": dispersion, "min_scale": min_scale, "standardize": True}
    builders: dict[str, Any] = {
        "normal": partial(Normal, **scaled),
        "student_t": partial(StudentT, df=dispersion, **scaled),
        "laplace": partial(Laplace, **scaled),
        "log_normal": partial(LogNormal, **scaled),
        "gamma": partial(Gamma, concentration=dispersion),
        "negative_binomial": partial(NegativeBinomial, inverse_dispersion=dispersion),
        "poisson": Poisson,
        "zero_inflated_negative_binomial": partial(
            ZeroInflatedNegativeBinomial, inverse_dispersion=dispersion
        ),
        "bernoulli": BinaryCodes,
        "categorical": partial(CategoricalCodes, levels=part.levels),
        "ordinal": partial(OrdinalCodes, levels=part.levels),
    }
    return builders[part.family]((len(part.members),))


@torch.no_grad()
def _start_dispersion(part: Any, x: Tensor) -> None:
    """Starts learned inverse dispersions from the variance of the training rows.

    Optimizers take thousands of steps from 1 to the hundred of narrow counts.
    """
    dispersion = getattr(part, "inverse_dispersion", None)
    if dispersion is None or dispersion.value not in ("shared", "element"):
        return
    mean, scale = compute_moments(x.double(), ~x.isnan())
    theta = (mean.square() / (scale.square() - mean).clamp(min=1e-6 * mean.square() + 1e-6)).clamp(
        _DISPERSIONS[0], _DISPERSIONS[1]
    )
    log_theta = theta.log().nan_to_num()
    if dispersion.value == "shared":
        log_theta = log_theta.mean()
    dispersion.start_from(log_theta)


def _choose_measure(schema: Schema) -> str:
    discrete = [column.is_discrete for column in schema.columns]
    return "mass" if all(discrete) else "mixed" if any(discrete) else "density"
