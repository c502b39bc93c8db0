"""A VAE's guide as a component of Pyro's automatic guides."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyro_vae.distributions.marginals import find_marginals
from pyro_vae.masking import mask_rows
from pyro_vae.networks import eval_mode
from pyro_vae.vae.model_guide import explain_site_clash
from pyro_vae.vae.vae import VAE
from pyro_vae.validation import describe_value

__all__ = ["AutoVAEGuide"]

_INPUTS = ("x", "covariates", "mask")


def _first_argument(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x


class AutoVAEGuide(AutoGuide):
    r"""The amortized posterior of a VAE, next to automatic guides for the rest of a larger model.

    .. math:: q(w, z \mid x) = q(w) \prod_n q(z_n \mid x_n)

    A component of :class:`pyro.infer.autoguide.AutoGuideList`, or a complete guide if ``z`` is the
    only latent variable. It samples the site of the VAE's ``z`` within the plates in which the
    model calls ``vae.model``. The list opens these plates; it would already have opened them
    before a plain function could. If a plate subsamples, the encoder receives the subsampled rows.

    The whole VAE is a submodule, including its decoder. A PyTorch optimizer over
    ``guide.parameters()`` therefore trains it if the model is a function. Pyro's store holds its
    parameters under the VAE's name only.

    Like all automatic guides, it learns the plates from the first call. If the size of a plate
    changes from batch to batch, pass ``create_plates`` to the list.

    Arguments:
        model: The whole model, with the same arguments as the guide; other sites are ignored.
        vae: A VAE whose model ``model`` calls.
        inputs: Maps the arguments of the model to the encoder's input: ``x``, of shape
            ``(*batch, *event_shape)``; ``None``, for the prior; or a dict with any of ``x``,
            ``covariates`` and ``mask``. Each has either all rows of a subsampling plate or those
            of the subsample. Default: the first argument is ``x``.
        suffix: The suffix of the call of ``vae.model``, if any: one component for each call.
        create_plates: As in :class:`pyro.infer.autoguide.AutoNormal`, for a guide outside a list.

    Raises:
        ValueError: In the constructor, if ``vae`` is not a VAE; in a call, if the model lacks the
            latent site, or an input has neither all rows nor those of the subsample.
        NotImplementedError: By ``median`` and ``quantiles``, if the posterior has no quantiles in
            closed form.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro import poutine
        >>> from pyro.infer.autoguide import AutoGuideList, AutoNormal
        >>> vae = VAE(5, latent_dim=2, plate=None)
        >>> def model(x, y):
        ...     w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     with pyro.plate("rows", len(x), subsample_size=10) as rows:
        ...         z = vae.model(x[rows])
        ...         pyro.sample("y", dist.Normal((z * w).sum(-1), 1.0), obs=y[rows])
        >>> guide = AutoGuideList(model)
        >>> guide.append(AutoNormal(poutine.block(model, expose=["w"])))
        >>> guide.append(AutoVAEGuide(model, vae))
        >>> x, y = torch.ones(30, 5), torch.zeros(30)
        >>> {name: tuple(value.shape) for name, value in guide(x, y).items()}
        {'w': (2,), 'vae.z': (10, 2)}
        >>> guide.median(x, y)["vae.z"].shape
        torch.Size([30, 2])
    """

    vae: VAE

    def __init__(
        self,
        model: Callable[..., Any],
        vae: VAE,
        *,
        inputs: Callable[..., Tensor | Mapping[str, Tensor | None] | None] = _first_argument,
        suffix: str | int | None = None,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        if not callable(model):
            raise ValueError(f"Expected model to be callable, got {describe_value(model)}")
        super().__init__(model, create_plates=create_plates)
        if not isinstance(vae, VAE):
            raise ValueError(f"Expected vae to be a VAE, got {type(vae).__name__}")
        self.vae = vae
        self.inputs = inputs
        self.suffix = suffix

    @property
    def site(self) -> str:
        """The name of the sampled site."""
        return self._get_vae().guide.site("z", self.suffix)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Samples z given the arguments of the model; returns it by the name of its site."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        guide = self._get_vae().guide
        guide.scope.announce_parameters(guide)
        with explain_site_clash(), ExitStack() as stack:
            enclosing = [plates[frame.name] for frame in self._frames]
            for plate in enclosing:
                stack.enter_context(plate)
            # A plate has a dimension only once it is open.
            x, covariates, mask = self._select_inputs(enclosing, *args, **kwargs)
            x, rows, _ = guide.prepare_data(x, mask)
            stack.enter_context(mask_rows(rows))
            return {self.site: guide.sample_latent(x, covariates, self.suffix)}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Tensor | list[float], *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Returns quantiles of each element of z, in evaluation mode.

        Arguments:
            quantiles: Numbers between 0 and 1.
            args: The arguments of the model; all rows are encoded.
            kwargs: Likewise.

        Returns:
            A dict from the name of the site to a tensor ``(quantiles, *batch, latent_dim)``.
        """
        guide = self._get_vae().guide
        x, covariates, mask = self._select_inputs((), *args, **kwargs)
        x, _, _ = guide.prepare_data(x, mask)
        with eval_mode(self._get_vae()):
            elements = _get_marginals(guide.distribution(x, covariates))
        levels = torch.as_tensor(quantiles, dtype=elements.mean.dtype, device=elements.mean.device)
        return {self.site: elements.icdf(levels.reshape(-1, *(1 for _ in elements.batch_shape)))}

    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Returns the median of each element of z, of shape ``(*batch, latent_dim)``."""
        medians = self.quantiles([0.5], *args, **kwargs)
        return {name: value.squeeze(0) for name, value in medians.items()}

    def _get_vae(self) -> VAE:
        """Returns the VAE; attribute access would store its parameters under a second name."""
        return cast(VAE, self._modules["vae"])

    def _prototype_hide_fn(self, msg: dict[str, Any]) -> bool:
        """Whether a site of the model is sampled elsewhere."""
        return msg["name"] != self.site or msg["type"] != "sample" or msg["is_observed"]

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        """Runs the model once, to find the plates in which it calls the VAE."""
        super()._setup_prototype(*args, **kwargs)
        trace: Any = self.prototype_trace
        if self.site not in trace:
            self.prototype_trace = None
            raise ValueError(
                f"Expected model to have the latent site {self.site!r}, got none: call vae.model "
                f"of this VAE in it, with suffix={self.suffix!r}"
            )
        self._frames = trace.nodes[self.site]["cond_indep_stack"]

    def _select_inputs(
        self, plates: Iterable[pyro.plate], *args: Any, **kwargs: Any
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Returns the rows of x, covariates and mask that plates draw; absent ones are ``None``."""
        inputs = self.inputs(*args, **kwargs)
        inputs = inputs if isinstance(inputs, Mapping) else {"x": inputs}
        unknown = sorted(set(inputs) - set(_INPUTS))
        if unknown:
            raise ValueError(f"Expected inputs to return only {list(_INPUTS)}, got also {unknown}")
        x, covariates, mask = (inputs.get(name) for name in _INPUTS)
        event_dim = len(self._get_vae().event_shape)
        elementwise = mask is not None and x is not None and mask.dim() == x.dim()
        return (
            _select_rows(plates, "x", x, event_dim),
            _select_rows(plates, "covariates", covariates, 1),
            _select_rows(plates, "mask", mask, event_dim if elementwise else 0),
        )


def _select_rows(
    plates: Iterable[pyro.plate], name: str, value: Tensor | None, event_dim: int
) -> Tensor | None:
    """Returns the subsampled rows of a tensor that has all rows; others are left unchanged.

    Raises:
        ValueError: If it has neither all rows of a plate nor those of the subsample.
    """
    for plate in plates:
        dim = cast(int, plate.dim) - event_dim
        if value is None or value.dim() < -dim or value.shape[dim] in (1, plate.subsample_size):
            continue
        if value.shape[dim] != plate.size:
            raise ValueError(
                f"Expected {name} to have the {plate.size} rows of the plate {plate.name!r} at "
                f"dimension {dim}, or the {plate.subsample_size} of its subsample, got a tensor of "
                f"shape {tuple(value.shape)}: if batches differ in size, pass create_plates to "
                f"the outermost guide"
            )
        value = value.index_select(dim, plate.indices.to(value.device))
    return value


def _get_marginals(q: dist.TorchDistribution) -> dist.TorchDistribution:
    """Returns the marginal distributions of the elements of a vector.

    Raises:
        NotImplementedError: If their quantiles have no closed form.
    """
    marginals = find_marginals(q)
    if marginals is None or type(marginals).icdf is torch.distributions.Distribution.icdf:
        raise NotImplementedError(
            f"Expected a posterior whose elements have quantiles in closed form, got {q}: draw "
            f"from the guide instead"
        )
    return marginals
