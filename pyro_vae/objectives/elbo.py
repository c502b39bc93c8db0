"""The evidence lower bound."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from pyro_vae.objectives.core.additive import Additive
from pyro_vae.objectives.core.gradient_estimators import pathwise_surrogate, zero_with_gradient
from pyro_vae.objectives.core.objective import (
    Facts,
    RunOptions,
    check_choice,
    check_scalar,
)
from pyro_vae.objectives.core.sites import Pair
from pyro_vae.objectives.core.terms import compute_terms, site_term, sum_terms

__all__ = ["ELBO"]


class ELBO(Additive):
    r"""The evidence lower bound, with the KL weighted by beta.

    .. math::
        \mathcal{L}_\beta = \mathbb{E}_{q(z \mid x)}[\log p(x \mid z)]
        - \beta\, \mathrm{KL}(q(z \mid x) \,\|\, p(z))

    The loss is minus its sum over the data, each site times the scale of its plates. The KL of a
    site is in closed form where one is known and valid, and sampled otherwise, as by
    :class:`pyro.infer.Trace_ELBO`; :func:`~pyro_vae.objectives.kl_report` lists both. It is a bound
    on the evidence for beta = 1, and a looser one for larger beta.

    With ``estimator="stl"`` (sticking the landing) the KL is sampled, and the derivative of log q
    by its parameters at a fixed sample is left out. Its expectation is zero, so the gradient stays
    unbiased; it has zero variance where the guide is the posterior. The estimator needs a support
    that does not depend on parameters, and log q at a given sample, for which a normalizing flow
    has to be inverted. Other sites raise an error.

    References:
        | Auto-encoding variational Bayes (Kingma and Welling, 2013),
          https://arxiv.org/abs/1312.6114
        | beta-VAE (Higgins et al., 2017), https://openreview.net/forum?id=Sy2fzU9gl
        | Sticking the landing (Roeder, Wu and Duvenaud, 2017), https://arxiv.org/abs/1703.09194

    Arguments:
        num_particles: The number of samples for each datum.
        beta: The weight of the KL, a number or a scalar tensor; zero is allowed.
        analytic: Whether KLs are in closed form. True: an error where there is no closed form;
            False: always sampled; None: closed form where available.
        estimator: ``"standard"`` or ``"stl"``.
        run: As of :class:`~pyro_vae.objectives.Objective`.

    Raises:
        ValueError: If ``num_particles`` is not a positive integer, ``beta`` is negative or
            ``analytic`` is True with ``"stl"``; when called, if a latent site of the guide is not
            reparameterized, a latent site is missing in model or guide, or ``analytic`` is True
            and a closed form is missing.

    Example:
        >>> import torch
        >>> from pyro_vae import VAE
        >>> vae = VAE((1, 8, 8), 2)
        >>> x = torch.ones(5, 1, 8, 8)
        >>> ELBO(beta=0.5, analytic=True).values(vae.model, vae.guide, x).rate["vae.z"].shape
        torch.Size([5])
    """

    facts: ClassVar = Facts(
        "E log p(x given z) - b KL(q, p)",
        "log p(x), below, at b >= 1",
        "yes",
        "where available; `analytic=True` requires it",
        "yes",
        "Kingma and Welling 2013; Higgins et al. 2017; Roeder et al. 2017",
    )

    def __init__(
        self,
        num_particles: int = 1,
        *,
        beta: float | Tensor = 1.0,
        analytic: bool | None = None,
        estimator: str = "standard",
        **run: Unpack[RunOptions],
    ) -> None:
        super().__init__(num_particles, analytic=analytic, **run)
        self.beta = check_scalar("beta", beta, least=0.0)
        self.estimator = check_choice("estimator", estimator, ("standard", "stl"))
        if estimator == "stl" and analytic:
            raise ValueError(
                "Expected analytic to be None or False with estimator='stl', got True: the "
                "derivative that it leaves out is that of a sampled KL"
            )

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Returns minus the bound, summed over the data, as a scalar tensor."""
        stl = self.estimator == "stl" and torch.is_grad_enabled()
        # Each particle may have its own subsample of rows, as in Pyro's ELBO.
        pairs, _ = self._run_particles(model, guide, args, kwargs, detach=stl, same_rows=False)
        loss: Tensor | float = 0.0
        analytic = self.analytic if self._uses_closed_form() else False
        for pair in pairs:
            terms = compute_terms(pair, analytic)
            run_loss = self.beta * sum_terms(terms.rate) - sum_terms(terms.log_likelihood)
            if stl:
                run_loss = self._remove_score(torch.as_tensor(run_loss), pair)
            loss = loss + run_loss
        return torch.as_tensor(loss) / self.num_particles

    def _remove_score(self, loss: Tensor, pair: Pair) -> Tensor:
        """Returns the loss, without the derivative of log q by its parameters at a sample."""
        # A point mass has no sample here, because its density is not a score.
        names = pair.latent_sites + pair.auxiliary_sites
        names = [name for name in names if name in pair.samples]
        log_q = torch.as_tensor(sum_terms([site_term(pair.guide, name) for name in names]))
        return loss + pathwise_surrogate(loss, [pair]) - self.beta * zero_with_gradient(log_q)

    def _uses_closed_form(self) -> bool:
        return self.estimator != "stl" and self.analytic is not False

    def _objective_per_datum(
        self, log_likelihoods: dict[str, Tensor], rates: dict[str, Tensor]
    ) -> Tensor:
        return torch.as_tensor(sum(log_likelihoods.values()) - self.beta * sum(rates.values()))
