"""Tables and figures of a comparison for papers."""

import re
from pathlib import Path

import pytest

from helpers.compare_runs import write
from pyro_vae.cli.compare import main
from pyro_vae.compare import build_latex, compare, draw_figure, render_figure
from pyro_vae.compare.latex import escape_latex

PRIOR = "vae.prior._target_"
HOSTILE = r"50%_of #1 & \input{x} ~^$ <a> --"


@pytest.fixture
def sweep(tmp_path):
    """The folder of two priors and three seeds."""
    for name in ("Normal", "Vamp"):
        for seed in range(3):
            value = -1020.0 + seed + (name == "Vamp")
            metrics = {"log_evidence": value, "rate": 2.0 + seed}
            settings = {PRIOR: f"pyro_vae.priors.{name}", "seed": seed}
            write(tmp_path / "sweep" / f"{name}{seed}", settings, metrics)
    return tmp_path / "sweep"


def cells(table):
    """Returns the cells of the rows of a table."""
    lines = table.split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)&", line.rstrip(" \\"))] for line in lines]


def test_a_table_has_means_errors_and_seeds(sweep):
    table = build_latex(compare([sweep]))
    assert cells(table) == [
        ["Vamp", r"$-1{,}018.00 \pm 0.58$", r"$-18.50 \pm 0.00$", r"$3.00 \pm 0.58$",
         r"$10.50 \pm 0.00$", "3"],
        ["Normal", r"$-1{,}019.00 \pm 0.58$", r"$-18.50 \pm 0.00$", r"$3.00 \pm 0.58$",
         r"$10.50 \pm 0.00$", "3"],
    ]  # fmt: skip
    assert "in nats per datum. Mean $\\pm$ standard error over seeds" in table
    assert table.count(r"\begin{table}") == table.count(r"\end{table}") == 1
    assert "bf" not in table


def test_a_table_has_the_chosen_metrics_with_their_units(sweep):
    table = build_latex(compare([sweep]), metrics=["active_units", "seconds"])
    assert "prior & Active units & Training time (s) & Seeds" in table
    assert "nats" not in table
    for wrong in ("rate", [], ["loss"]):
        with pytest.raises(ValueError, match="Expected metrics to be some of log_evidence"):
            build_latex(compare([sweep]), metrics=wrong)


def test_a_small_error_a_missing_metric_and_one_seed(tmp_path):
    write(tmp_path / "0", {"vae.latent_dim": -1.5}, {"log_evidence": None, "rate": None})
    assert cells(build_latex(compare([tmp_path])))[0][:1] == ["--"]
    write(tmp_path / "1", {"vae.latent_dim": 2})
    table = build_latex(compare([tmp_path]))
    assert "A single seed per configuration" in table
    assert [row[0] for row in cells(table)] == ["$2$", "$-1.5$"]
    write(tmp_path / "2", {"vae.latent_dim": 2, "seed": 1}, {"rate": 8.001})
    assert cells(build_latex(compare([tmp_path])))[0][3] == r"$8.00 \pm {<}0.01$"


def test_text_of_a_run_is_shown_and_not_executed(tmp_path):
    assert escape_latex(HOSTILE) == (
        r"50\%\_of \#1 \& \textbackslash{}input\{x\} \textasciitilde{}\textasciicircum{}\$ "
        r"\textless{}a\textgreater{} -{}-"
    )
    write(tmp_path / "0", {PRIOR: HOSTILE, f"vae.{HOSTILE}": 1}, {"data": HOSTILE})
    write(tmp_path / "1", {PRIOR: "b\n\\end{table}", f"vae.{HOSTILE}": 2}, {"data": HOSTILE})
    comparison = compare([tmp_path])
    table = build_latex(comparison)
    assert set(re.findall(r"\\(\w+)", table)) <= {
        "begin", "bottomrule", "caption", "centering", "end", "input", "label", "midrule", "pm",
        "setlength", "small", "tabcolsep", "textasciicircum", "textasciitilde", "textbackslash",
        "textgreater", "textless", "toprule", "usepackage", "_of",
    }  # fmt: skip
    assert r"\input" not in table.replace(r"\textbackslash{}input", "")
    assert table.count(r"\end{table}") == 1
    assert render_figure(draw_figure(comparison), "pdf").startswith(b"%PDF")


def test_levels_that_begin_a_row_are_no_arguments_of_its_command(tmp_path):
    for place, hidden in enumerate(([200, 100], "*")):
        settings = {"vae.encoder.hidden": hidden}
        write(tmp_path / str(place), settings, {"log_evidence": -20.0 - place})
    rows = cells(build_latex(compare([tmp_path])))
    assert [row[0] for row in rows] == ["{[}200, 100]", "{*}"]


def test_an_exponent_is_a_power_of_ten(tmp_path):
    for place, rate in enumerate((1e-5, 3e-5)):
        write(tmp_path / str(place), {"optimizer.lr": rate}, {"log_evidence": -20.0 - place})
    rows = cells(build_latex(compare([tmp_path])))
    assert [row[0] for row in rows] == [r"$1 \times 10^{-5}$", r"$3 \times 10^{-5}$"]


def test_each_comparable_set_has_a_table(tmp_path):
    for place, data in enumerate(("mnist", "digits", "digits")):
        write(tmp_path / str(place), {"seed": place}, {"data": data})
    table = build_latex(compare([tmp_path]))
    assert re.findall(r"\\label{(.*)}", table) == ["tab:comparison-1", "tab:comparison-2"]
    assert table.index("rows of digits") < table.index("rows of mnist")


def test_a_figure_has_a_marker_and_a_label_per_level(sweep):
    comparison = compare([sweep])
    figure = draw_figure(comparison)
    (axes,) = figure.axes
    points = [line for line in axes.lines if line.get_marker() != "None"]
    assert [line.get_marker() for line in points] == ["o", "s"]
    assert [len(line.get_xdata()) for line in points] == [3, 3]
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "prior"
    assert [text.get_text().strip() for text in legend.get_texts()] == ["Normal", "Vamp"]
    assert axes.get_xlabel() == "Rate (nats per datum)"
    assert axes.get_ylabel() == "Distortion (nats per datum)"
    assert (axes.get_title(), figure.get_size_inches()[0]) == ("", 3.3)
    assert len(draw_figure(comparison, factor="seed").legends[0].get_texts()) == 3


def test_lines_of_the_figure_have_the_elbo_that_they_state(sweep):
    (axes,) = draw_figure(compare([sweep])).axes
    lines = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert len(lines) == len(axes.texts) > 1
    for line, text in zip(lines, axes.texts, strict=True):
        elbo = float(text.get_text().split()[1].replace("\N{MINUS SIGN}", "-"))
        assert line.get_xdata() + line.get_ydata() == pytest.approx(-elbo)


def test_levels_that_matplotlib_would_interpret_are_shown(tmp_path):
    for place, name in enumerate(("_hidden", "$x^", "plain")):
        write(tmp_path / str(place), {PRIOR: name})
    figure = draw_figure(compare([tmp_path]))
    assert len(figure.legends[0].get_texts()) == 3
    assert render_figure(figure, "svg").count(b"<svg") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factor": "prio"}, "Expected factor to be one of: prior, seed; got 'prio'"),
        ({"width": 0.5}, "Expected width to be a number of inches from 1 to 20, got 0.5"),
        ({"width": "wide"}, "got 'wide'"),
    ],
)
def test_a_wrong_argument_of_a_figure_is_one_line(sweep, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        draw_figure(compare([sweep]), **arguments)


def test_no_finished_run_is_one_line(tmp_path):
    write(tmp_path / "0", state="interrupted")
    for function in (build_latex, draw_figure):
        with pytest.raises(ValueError, match=r"Expected finished runs.*, got 1 run: 1 interrupted"):
            function(compare([tmp_path]))


def test_the_command_writes_files_for_papers_and_replaces_only_its_own(sweep, tmp_path, capsys):
    table, figure = tmp_path / "new" / "table.tex", tmp_path / "plane.svg"
    command = [str(sweep), "--factor", "seed", "--latex", str(table), "--figure"]
    assert main([*command, str(figure)]) == 0
    first = figure.read_bytes()
    assert main([*command, str(figure)]) == 0
    assert figure.read_bytes() == first
    assert main([*command, str(figure.with_suffix(".pdf"))]) == 0
    assert main([*command, str(figure.with_suffix(".pdf"))]) == 0
    assert b"/Type0" in figure.with_suffix(".pdf").read_bytes()
    assert str(table) in capsys.readouterr().out
    table.write_text("mine")
    before = (sweep / "comparison.md").stat().st_mtime_ns
    assert main([*command, str(figure)]) == 1
    assert "a new file or one that this command wrote" in capsys.readouterr().err
    assert table.read_text() == "mine"
    assert (sweep / "comparison.md").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--latex", "t.txt", "Expected --latex to end in .tex, got 't.txt'"),
        ("--figure", "f.png", "Expected --figure to end in .pdf or .svg, got 'f.png'"),
        ("--figure", "", "Expected --figure to name a file, got ''"),
        ("--factor", "prio", "Expected factor to be one of: prior, seed; got 'prio'"),
    ],
)
def test_a_wrong_file_is_one_line(sweep, capsys, option, name, message):
    assert main([str(sweep), option, name]) == 1
    assert message in capsys.readouterr().err
    assert not (sweep / "comparison.html").exists()


def test_each_of_thirty_levels_has_its_own_look_and_a_place_in_the_legend(tmp_path):
    for size in range(1, 31):
        write(tmp_path / str(size), {"vae.latent_dim": size, "vae.encoder.hidden": [500] * size})
    comparison = compare([tmp_path])
    for factor in ("latent_dim", "encoder.hidden"):
        figure = draw_figure(comparison, factor=factor)
        points = [line for line in figure.axes[0].lines if line.get_label().startswith(" ")]
        assert len({(line.get_marker(), line.get_color()) for line in points}) == 30
        figure.canvas.draw()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width


def test_seeds_are_those_of_the_log_evidence(tmp_path):
    for seed, evidence in ((0, -1.0), (1, None)):
        write(tmp_path / str(seed), {"seed": seed}, {"log_evidence": evidence})
    (configuration,) = compare([tmp_path]).groups[0].configurations
    assert configuration.seeds == 1
    assert configuration.means["rate"].seeds == 2


@pytest.mark.parametrize("folders", ["runs", Path("runs"), None])
def test_folders_are_a_list(folders):
    with pytest.raises(ValueError, match="Expected folders to be a list, got"):
        compare(folders)
