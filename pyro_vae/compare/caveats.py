"""What a reader should know before trusting a comparison."""

from collections import Counter
from collections.abc import Sequence

from pyro_vae.collapse import LEAST_RATE, is_collapsed
from pyro_vae.compare.comparable import ComparableSet
from pyro_vae.compare.runs import STATES, Run, seed

__all__ = ["cautions"]

_FEW = 10
"""The effective sample size below which a log evidence may be off, as in the report of a run."""


def cautions(runs: Sequence[Run], sets: Sequence[ComparableSet]) -> list[str]:
    """Returns what a reader should know before trusting a comparison, the gravest first.

    Arguments:
        runs: All runs.
        sets: The comparable sets.
    """
    finished = [run for run in runs if run.state == "finished"]
    said = [
        _protocols(sets),
        _unfinished(runs),
        _cross_entropy(runs, sets),
        _infinite(finished),
        _collapsed(finished),
        _uncertain(finished),
        _particles(finished),
        _below_mixture(finished),
        _one_seed(finished),
    ]
    return [text for text in said if text]


def _protocols(sets: Sequence[ComparableSet]) -> str:
    """Says that not all figures compare."""
    if len(sets) < 2:
        return ""
    titles = "; ".join(f"{one.title} ({_runs_of(len(one.runs))})" for one in sets[:6])
    more = f"; and {len(sets) - 6} more" if len(sets) > 6 else ""
    return (
        f"The runs were judged in {len(sets)} ways that do not compare: {titles}{more}. Each is "
        f"ranked on its own; figures of different ones must not be held against each other."
    )


def _unfinished(runs: Sequence[Run]) -> str:
    """Says that runs are missing."""
    numbers = Counter(run.state for run in runs)
    missing = [f"{numbers[state]} {state}" for state in STATES[1:] if numbers[state]]
    if not missing:
        return ""
    return (
        f"Not all runs have finished ({', '.join(missing)}). Means and differences are over the "
        f"finished ones; a setting that makes runs fail looks better than it is. The same command "
        f"again runs what is missing."
    )


def _cross_entropy(runs: Sequence[Run], sets: Sequence[ComparableSet]) -> str:
    """Says that some figures are no likelihoods."""
    count = sum(len(one.runs) for one in sets if one.grey_scale)
    if not count:
        return ""
    return (
        f"{_runs_of(count)} scored grey values by a Bernoulli's cross-entropy, which is no "
        f"likelihood: what is called evidence there compares with no other likelihood's."
    )


def _infinite(finished: Sequence[Run]) -> str:
    """Says that some figures are not finite."""
    keys = ("log_evidence", "elbo", "rate", "distortion")
    count = sum(any(run.number(key) is None for key in keys) for run in finished)
    return f"{_runs_of(count)} ended with a figure that is not finite, which is left out." * (
        count > 0
    )


def _collapsed(finished: Sequence[Run]) -> str:
    """Says where latents carry nothing."""
    count = sum(is_collapsed(run.number("active_units"), run.number("rate")) for run in finished)
    if not count:
        return ""
    return (
        f"Posterior collapse: in {_runs_of(count)} no latent dimension is active, or the rate is "
        f"below {LEAST_RATE:g} nats per datum."
    )


def _uncertain(finished: Sequence[Run]) -> str:
    """Says whose log evidence rests on few samples."""
    sizes = [run.number("effective_sample_size_min") for run in finished]
    few = [size for size in sizes if size is not None and size < _FEW]
    if not few:
        return ""
    return (
        f"In {_runs_of(len(few))} the importance weights of some row are worth fewer than {_FEW} "
        f"samples (the worst {min(few):.1f}): the log evidence may be too low there, by another "
        f"amount for each model. More evaluate.num_particles help."
    )


def _particles(finished: Sequence[Run]) -> str:
    """Says that log evidences were estimated with different numbers of samples."""
    counts = sorted({run.number("log_evidence_particles") or 0 for run in finished} - {0})
    if len(counts) < 2:
        return ""
    listed = ", ".join(f"{count:,.0f}" for count in counts)
    return (
        f"Log evidences were estimated with different numbers of samples a row ({listed}); fewer "
        f"samples give a lower estimate."
    )


def _below_mixture(finished: Sequence[Run]) -> str:
    """Says how many runs a simpler model beats."""
    pairs = [(run.number("log_evidence"), run.number("mixture_log_evidence")) for run in finished]
    known = [
        (value, mixture) for value, mixture in pairs if value is not None and mixture is not None
    ]
    count = sum(value < mixture for value, mixture in known)
    if not count:
        return ""
    return (
        f"In {count} of {_runs_of(len(known))} a plain mixture of the same likelihood predicts the "
        f"held-out rows better."
    )


def _one_seed(finished: Sequence[Run]) -> str:
    """Says that chance cannot be judged."""
    if len(finished) < 2 or len({seed(run) for run in finished}) > 1:
        return ""
    return (
        "All finished runs have one seed: how much of a difference is chance is not known. "
        "Sweep seed=0,1,2 as well."
    )


def _runs_of(count: int) -> str:
    """Returns a number of runs in words."""
    return f"{count:,} run{'s' * (count != 1)}"
