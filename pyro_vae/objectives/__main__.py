"""Prints a comparison of the objectives in Markdown: ``python -m pyro_vae.objectives``."""

from pyro_vae import objectives
from pyro_vae.objectives.core.objective import Facts, Objective

__all__ = ["render_table"]

_PYRO_FACTS = {
    "pyro.infer.Trace_ELBO": Facts(
        "E log p(x given z) - KL(q, p)",
        "log p(x), below",
        "yes",
        "no",
        "yes",
        "Kingma and Welling 2013",
    ),
    "pyro.infer.TraceMeanField_ELBO": Facts(
        "E log p(x given z) - KL(q, p)",
        "log p(x), below, for mean-field guides",
        "yes",
        "where PyTorch has one; silently sampled elsewhere",
        "yes",
        "Kingma and Welling 2013",
    ),
    "pyro.infer.RenyiELBO": Facts(
        "as Renyi, the plate's scale within the logarithm",
        "log p(x), below, without subsampling and with all sites in the plate",
        "yes, where sites are reparameterized",
        "no",
        "no",
        "Li and Turner 2016",
    ),
}

_PYRO_NEEDS = {
    "pyro.infer.Trace_ELBO": "no: others by the score function",
    "pyro.infer.TraceMeanField_ELBO": "yes; without validation others get no gradient",
    "pyro.infer.RenyiELBO": "yes; at alpha = 0 others get no gradient",
}

_HEADER = (
    "objective",
    "optimizes, for a datum",
    "a bound on",
    "unbiased gradient?",
    "needs reparameterized sites?",
    "closed-form KL?",
    "additive over data?",
    "source",
)


def render_table() -> str:
    """Returns the table of the objectives of this package, followed by those of Pyro.

    Example:
        >>> print(render_table().splitlines()[0])
        | objective | optimizes, for a datum | ... | source |
    """
    members = {name: getattr(objectives, name) for name in objectives.__all__}
    rows = [
        (f"`{name}`", member.facts, "yes")
        for name, member in members.items()
        if isinstance(member, type) and issubclass(member, Objective) and hasattr(member, "facts")
    ]
    rows += [(f"`{name}`", facts, _PYRO_NEEDS[name]) for name, facts in _PYRO_FACTS.items()]
    lines = [_HEADER, ("---",) * len(_HEADER)]
    lines += [
        (name, f.optimizes, f.bound, f.unbiased, needs, f.closed_form, f.additive, f.source)
        for name, f, needs in rows
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    print(render_table())
