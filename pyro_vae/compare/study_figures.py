"""The figures of a study: its history, the importances of settings, and the Pareto front."""

import base64
import io
from typing import TYPE_CHECKING, Any, NamedTuple

from pyro_vae.compare.formatting import NAMES
from pyro_vae.compare.studies import StudyRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["StudyFigure", "draw_study"]

_BLUE, _ORANGE, _GREY = "#2c6fbb", "#d9722b", "#8a8f98"
# On a phone, figures are scaled to four fifths of their width.
_WIDTH, _HEIGHT, _DPI, _FONT = 4.2, 3.0, 200, 11


class StudyFigure(NamedTuple):
    """A figure of a study.

    Attributes:
        title: Its title.
        note: How to read it.
        source: A ``data:`` URL.
        width: Its width, in pixels of a page.
        height: Its height.
    """

    title: str
    note: str
    source: str
    width: int
    height: int


def draw_study(study: StudyRecord) -> list[StudyFigure]:
    """Draws the figures of a study that has finished trials."""
    if not any(trial.values for trial in study.trials):
        return []
    figures = [_draw_history(study, index) for index in range(len(study.objectives))]
    figures += [
        _draw_importances(objective, shares)
        for objective, shares in study.importances.items()
        if shares
    ]
    return figures + ([_draw_front(study)] if len(study.objectives) > 1 else [])


def _label(objective: str) -> str:
    return NAMES.get(objective, objective.replace("_", " ").capitalize())


def _create(height: float = _HEIGHT) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    ax = figure.subplots()
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=_FONT)
    ax.xaxis.label.set_fontsize(_FONT)
    ax.yaxis.label.set_fontsize(_FONT)
    return figure, ax


def _finish(figure: "Figure", title: str, note: str) -> StudyFigure:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    width, height = figure.get_size_inches() * 100
    source = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return StudyFigure(title, note, source, int(width), int(height))


def _draw_history(study: StudyRecord, index: int) -> StudyFigure:
    """Draws the value of each trial, and the best so far."""
    figure, ax = _create()
    finished = [trial for trial in study.trials if trial.values is not None]
    numbers = [trial.number for trial in finished]
    values = [trial.values[index] for trial in finished if trial.values is not None]
    choose = max if study.directions[index] == "maximize" else min
    best = [choose(values[: i + 1]) for i in range(len(values))]
    ax.step(numbers, best, where="post", color=_ORANGE, label="best so far")
    ax.plot(numbers, values, "o", ms=4, color=_BLUE, alpha=0.8, label="finished")
    pruned = [trial.number for trial in study.trials if trial.state == "pruned"]
    if pruned:
        # On the axis, because a pruned trial has no value.
        ax.plot(
            pruned, [0] * len(pruned), "|", color=_GREY, ms=8, label="pruned", clip_on=False,
            transform=ax.get_xaxis_transform(),
        )  # fmt: skip
    ax.set(xlabel="Trial", ylabel=_label(study.objectives[index]))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(frameon=False, fontsize=_FONT, loc="best")
    note = "The value of each finished trial, in the order of their starts."
    return _finish(figure, f"History of {_label(study.objectives[index]).lower()}", note)


def _draw_importances(objective: str, shares: dict[str, float]) -> StudyFigure:
    """Draws the importance of each setting."""
    ordered = sorted(shares.items(), key=lambda pair: pair[1])[-12:]
    figure, ax = _create(1.0 + 0.32 * len(ordered))
    ax.barh([name for name, _ in ordered], [share for _, share in ordered], color=_BLUE)
    ax.set(xlabel="Importance", xlim=(0, 1))
    note = "The share of the variance among the better trials that each setting explains."
    return _finish(figure, f"Importances for {_label(objective).lower()}", note)


def _draw_front(study: StudyRecord) -> StudyFigure:
    """Draws the first two objectives of all finished trials."""
    figure, ax = _create()
    best = {trial.number for trial in study.best}
    for chosen, colour, label in ((False, _GREY, "others"), (True, _ORANGE, "Pareto front")):
        points = [
            trial.values
            for trial in study.trials
            if trial.values is not None and (trial.number in best) == chosen
        ]
        if points:
            xs, ys = zip(*(point[:2] for point in sorted(points)), strict=True)
            ax.plot(xs, ys, "o-" if chosen else "o", color=colour, ms=5, lw=1, label=label)
    ax.set(xlabel=_label(study.objectives[0]), ylabel=_label(study.objectives[1]))
    ax.legend(frameon=False, fontsize=_FONT)
    return _finish(
        figure, "Pareto front", "No other trial is better than those in all objectives at once."
    )
