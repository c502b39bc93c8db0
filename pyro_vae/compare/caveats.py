"""Warnings to read before trusting a comparison."""

from collections import Counter
from collections.abc import Sequence

from pyro_vae.collapse import LEAST_RATE, LEAST_SAMPLE_SIZE, is_collapsed
from pyro_vae.compare.comparable import ComparableSet
from pyro_vae.compare.runs import STATES, RunRecord

__all__ = ["find_caveats"]


def find_caveats(runs: Sequence[RunRecord], sets: Sequence[ComparableSet]) -> list[str]:
    """Returns the warnings to read before trusting a comparison, the most severe first.

    Arguments:
        runs: All runs.
        sets: The comparable sets.
    """
    finished = [run for run in runs if run.state == "finished"]
    warnings = [
        _check_sets(sets),
        _check_states(runs),
        _check_cross_entropy(sets),
        _check_finite(finished),
        _check_collapse(finished),
        _check_sample_sizes(finished),
        _check_particles(finished),
        _check_mixture(finished),
        _check_seeds(finished),
    ]
    return [text for text in warnings if text]


def _check_sets(sets: Sequence[ComparableSet]) -> str:
    if len(sets) < 2:
        return ""
    titles = "; ".join(f"{one.title} ({_format_count(len(one.runs))})" for one in sets[:6])
    more = f"; and {len(sets) - 6} more" if len(sets) > 6 else ""
    return (
        f"The runs form {len(sets)} sets that are not comparable with each other: {titles}{more}. "
        f"Each set is ranked separately. Do not compare metrics between sets."
    )


def _check_states(runs: Sequence[RunRecord]) -> str:
    counts = Counter(run.state for run in runs)
    # A search ended pruned runs on purpose.
    absent = [state for state in STATES if state not in ("finished", "pruned")]
    missing = [f"{counts[state]} {state}" for state in absent if counts[state]]
    if not missing:
        return ""
    return (
        f"Not all runs have finished ({', '.join(missing)}). Means and differences are over the "
        f"finished runs only, so a setting whose runs fail looks better than it is. Run the "
        f"command of the sweep again to complete the missing runs."
    )


def _check_cross_entropy(sets: Sequence[ComparableSet]) -> str:
    count = sum(len(one.runs) for one in sets if one.grey_scale)
    if not count:
        return ""
    return (
        f"{_format_count(count)} scored grey values by a Bernoulli's cross-entropy, which is not a "
        f"likelihood. Their log evidence cannot be compared with that of another likelihood."
    )


def _check_finite(finished: Sequence[RunRecord]) -> str:
    metrics = ("log_evidence", "elbo", "rate", "distortion")
    count = sum(any(run.number(metric) is None for metric in metrics) for run in finished)
    if not count:
        return ""
    return f"{_format_count(count)} ended with a metric that is not finite; it is left out."


def _check_collapse(finished: Sequence[RunRecord]) -> str:
    count = sum(is_collapsed(run.number("active_units"), run.number("rate")) for run in finished)
    if not count:
        return ""
    return (
        f"Posterior collapse: in {_format_count(count)} no latent dimension is active, or the rate "
        f"is below {LEAST_RATE:g} nats per datum."
    )


def _check_sample_sizes(finished: Sequence[RunRecord]) -> str:
    sizes = [run.number("effective_sample_size_min") for run in finished]
    small = [size for size in sizes if size is not None and size < LEAST_SAMPLE_SIZE]
    if not small:
        return ""
    return (
        f"In {_format_count(len(small))} the smallest effective sample size of a row is below "
        f"{LEAST_SAMPLE_SIZE} (lowest: {min(small):.1f}). The log evidence may be too low there, "
        f"by an amount that differs between models. Increase evaluate.num_particles."
    )


def _check_particles(finished: Sequence[RunRecord]) -> str:
    counts = sorted({run.number("log_evidence_particles") or 0 for run in finished} - {0})
    if len(counts) < 2:
        return ""
    listed = ", ".join(f"{count:,.0f}" for count in counts)
    return (
        f"Log evidences were estimated with different numbers of samples per row ({listed}). Fewer "
        f"samples give a lower estimate."
    )


def _check_mixture(finished: Sequence[RunRecord]) -> str:
    """Returns a warning if a mixture, the simpler model, beats some runs."""
    pairs = [(run.number("log_evidence"), run.number("mixture_log_evidence")) for run in finished]
    complete = [(vae, mixture) for vae, mixture in pairs if vae is not None and mixture is not None]
    count = sum(vae < mixture for vae, mixture in complete)
    if not count:
        return ""
    return (
        f"In {count} of {_format_count(len(complete))} a mixture of the same likelihood predicts "
        f"the held-out rows better than the VAE."
    )


def _check_seeds(finished: Sequence[RunRecord]) -> str:
    if len(finished) < 2 or len({run.seed for run in finished}) > 1:
        return ""
    return (
        "All finished runs have the same seed, so the variation by chance is unknown. Sweep "
        "seed=0,1,2 as well."
    )


def _format_count(count: int) -> str:
    return f"{count:,} run{'s' * (count != 1)}"
