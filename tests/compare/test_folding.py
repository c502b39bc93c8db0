"""Settings that follow from a choice, and the factor at which plots start."""

import csv
import json
import re

import pytest

from helpers.compare_runs import write
from pyro_vae.compare import build_csv, build_markdown, build_page, compare

PRIOR = "vae.prior._target_"
OBJECTIVES = {"ELBO": 1, "IWAE": 5}


def objective(name, **settings):
    paths = {f"objective.{key}": value for key, value in settings.items()}
    return {"objective._target_": f"pyro_vae.objectives.{name}"} | paths


def write_all(root, *settings):
    for index, one in enumerate(settings):
        write(root / str(index), one, {"log_evidence": -20.0 - index})
    return compare([root])


def names(comparison):
    return [factor.name for factor in comparison.factors]


def test_a_default_of_a_class_is_part_of_its_level(tmp_path):
    settings = [
        objective(name, num_particles=count) | {"seed": seed}
        for name, count in OBJECTIVES.items()
        for seed in (0, 1)
    ]
    comparison = write_all(tmp_path, *settings)
    assert names(comparison) == ["objective", "seed"]
    (group,) = comparison.groups
    (difference,) = group.differences
    assert (difference.pairs, difference.along) == (2, ("num_particles=5 instead of 1",))
    note = "objective=ELBO has num_particles=1; objective=IWAE has num_particles=5."
    assert comparison.explain_folded(group) == f"Settings that follow from a choice: {note}"
    assert note.replace("_", "\\_") in build_markdown(comparison)
    assert note in build_page(comparison, tmp_path)
    rows = list(csv.DictReader(build_csv(comparison, tmp_path).splitlines()))
    assert [row["objective.num_particles"] for row in rows] == ["1", "1", "5", "5"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_setting_with_two_values_within_a_class_is_a_factor(tmp_path, order):
    settings = [("ELBO", 1), ("IWAE", 1), ("IWAE", 5)][::order]
    comparison = write_all(tmp_path, *(objective(n, num_particles=k) for n, k in settings))
    assert names(comparison) == ["objective", "objective.num_particles"]
    assert comparison.explain_folded(comparison.groups[0]) == ""


def test_a_setting_that_is_missing_in_one_run_of_a_class_is_a_factor(tmp_path):
    settings = [objective("ELBO"), objective("IWAE", k=5), objective("IWAE")]
    assert names(write_all(tmp_path, *settings)) == ["objective", "k"]


def test_a_setting_outside_of_the_class_is_a_factor(tmp_path):
    settings = [objective("ELBO"), objective("IWAE") | {"optimizer.lr": 0.1}]
    assert names(write_all(tmp_path, *settings)) == ["objective", "lr"]


def test_arguments_of_one_class_are_not_mentioned(tmp_path):
    vamp = {PRIOR: "pyro_vae.priors.Vamp", "vae.prior.components": 50}
    comparison = write_all(tmp_path, {}, vamp)
    assert names(comparison) == ["prior"]
    assert comparison.explain_folded(comparison.groups[0]) == ""
    assert "components" in build_csv(comparison, tmp_path)


def test_a_class_within_a_class_is_folded_into_the_outer_one(tmp_path):
    def prior(name, base, scale):
        base = {"vae.prior.base._target_": base, "vae.prior.base.scale": scale}
        return {PRIOR: f"pyro_vae.priors.{name}"} | base

    comparison = write_all(tmp_path / "0", prior("Flow", "a.X", 1), prior("Mixture", "a.Y", 2))
    assert names(comparison) == ["prior"]
    assert comparison.factors[0].implied("Flow") == {"base": "X", "base.scale": "1"}
    swept = [prior("Flow", "a.X", 1), prior("Flow", "a.Y", 2), prior("Mixture", "a.Y", 2)]
    comparison = write_all(tmp_path / "1", *swept)
    assert names(comparison) == ["prior", "base"]
    assert comparison.factors[1].implied("Y") == {"scale": "2"}


def start(comparison, root):
    """Returns the factor at which the plots of the page start."""
    text = re.search(r'id="data">(.*?)</script>', build_page(comparison, root))[1]
    data = json.loads(text)
    return data["factors"][data["start"]]["name"]


def test_plots_start_at_the_factor_with_the_most_finished_levels(tmp_path):
    for seed in range(4):
        for index, name in enumerate(("Normal", "Mixture", "Vamp")):
            settings = {PRIOR: f"pyro_vae.priors.{name}", "vae.latent_dim": 2 + index % 2}
            write(tmp_path / f"{name}{seed}", settings | {"seed": seed})
    for size in (8, 16, 32):
        write(tmp_path / str(size), {"vae.latent_dim": size}, state="interrupted")
    comparison = compare([tmp_path])
    assert names(comparison) == ["latent_dim", "prior", "seed"]
    assert start(comparison, tmp_path) == "prior"


def test_of_equal_factors_plots_start_at_the_first_that_is_not_the_seed(tmp_path):
    settings = [{"seed": s, "vae.latent_dim": d, "train.epochs": d} for s in (0, 1) for d in (2, 4)]
    assert start(write_all(tmp_path, *settings), tmp_path) == "epochs"


def test_the_seed_alone_is_where_plots_start(tmp_path):
    assert start(write_all(tmp_path, {"seed": 0}, {"seed": 1}), tmp_path) == "seed"
