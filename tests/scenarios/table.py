"""The table of scenarios and inferences, in Markdown."""

from scenarios import TITLES, make
from scenarios.inferences import INFERENCES


def table() -> str:
    """Returns one row per scenario, one column per inference, and the reasons below."""
    reasons: list[str] = []
    lines = [
        "| | " + " | ".join(INFERENCES) + " |",
        "|---" * (len(INFERENCES) + 1) + "|",
    ]
    for name, title in TITLES.items():
        scenario = make(name)
        cells = []
        for inference in INFERENCES:
            if inference in scenario.fails:
                why = scenario.fails[inference].why
                if why not in reasons:
                    reasons.append(why)
                cells.append(str(1 + reasons.index(why)))
            elif inference == "infer_discrete" and not scenario.discrete:
                cells.append("")
            else:
                cells.append("yes")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"{i}. {why}" for i, why in enumerate(reasons, 1))]).strip()
