"""Prints the table that compares the objectives, in Markdown: ``python -m pyro_vae.objectives``."""

from pyro_vae import objectives
from pyro_vae.objectives.core.objective import Facts, Objective

__all__ = ["table"]

PYRO = {
    "pyro.infer.Trace_ELBO": Facts(
        "E log p(x given z) - KL(q, p)",
        "log p(x), below",
        "of itself",
        "no",
        "yes",
        "Kingma and Welling 2013",
    ),
    "pyro.infer.TraceMeanField_ELBO": Facts(
        "E log p(x given z) - KL(q, p)",
        "log p(x), below, for mean-field guides",
        "of itself",
        "where the registry has one; sampled without a word elsewhere",
        "yes",
        "Kingma and Welling 2013",
    ),
    "pyro.infer.RenyiELBO": Facts(
        "as Renyi, the plate's scale within the logarithm",
        "log p(x), below, without subsampling and with all sites in the plate",
        "of itself, where sites are reparameterized",
        "no",
        "no",
        "Li and Turner 2016",
    ),
}

NEEDS = {
    "pyro.infer.Trace_ELBO": "no: others by the score function",
    "pyro.infer.TraceMeanField_ELBO": "yes; without validation others get no gradient",
    "pyro.infer.RenyiELBO": "yes; at alpha = 0 others get no gradient",
}

HEAD = (
    "objective",
    "optimizes, for a datum",
    "a bound on",
    "unbiased gradient?",
    "needs reparameterized sites?",
    "needs a closed-form KL?",
    "additive over data?",
    "source",
)


def table() -> str:
    """Returns the table: the objectives of this package, then those of Pyro beside them.

    Example:
        >>> print(table().splitlines()[0])
        | objective | optimizes, for a datum | ... | source |
    """
    ours = {name: getattr(objectives, name) for name in objectives.__all__}
    rows = [
        (f"`{name}`", made.facts, "yes")
        for name, made in ours.items()
        if isinstance(made, type) and issubclass(made, Objective) and hasattr(made, "facts")
    ]
    rows += [(f"`{name}`", facts, NEEDS[name]) for name, facts in PYRO.items()]
    lines = [HEAD, ("---",) * len(HEAD)]
    lines += [
        (name, f.optimizes, f.bound, f.unbiased, needs, f.closed_form, f.additive, f.source)
        for name, f, needs in rows
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    print(table())
