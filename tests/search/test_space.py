"""The space of a search, from overrides of the command line."""

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution as Choice
from optuna.distributions import FloatDistribution as Float
from optuna.distributions import IntDistribution as Int

from pyro_vae.search.space import build_space

COMPONENTS = {"vae.prior.components": {"vae/prior": ["vamp", "mixture"]}}
PRIORS = ["vae/prior=normal,vamp,mixture", "vae.prior.components=range(10,50,10)"]


def space(*overrides, conditions=()):
    return build_space(OverridesParser.create().parse_overrides(overrides), dict(conditions))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a=1,2,5", Choice(["1", "2", "5"])),
        ("a=x,'y z',true,null", Choice(["x", "'y z'", "true", "null"])),
        ("a=[1],[2,3]", Choice(["[1]", "[2,3]"])),
        ("a=choice(x,y)", Choice(["x", "y"])),
        ("+g/h=x,y", Choice(["x", "y"])),
        # The end of a range is left out, as in a grid.
        ("a=range(1,5)", Int(1, 4)),
        ("a=range(1,9,3)", Int(1, 7, step=3)),
        ("a=range(5,1,-2)", Int(3, 5, step=2)),
        ("a=range(0,1,0.25)", Float(0.0, 0.75, step=0.25)),
        # Both ends of an interval are in it.
        ("a=interval(0,1)", Float(0.0, 1.0)),
        ("a=int(interval(2,20))", Int(2, 20)),
        ("a=tag(log,interval(1e-4,1e-2))", Float(1e-4, 1e-2, log=True)),
        ("a=tag(log,int(interval(2,64)))", Int(2, 64, log=True)),
    ],
)
def test_values_of_an_override(override, expected):
    (dimension,) = space(override).dimensions
    assert dimension.distribution == expected
    assert dimension.key == override.partition("=")[0]


def test_shuffled_ranges_are_choices():
    (dimension,) = space("a=shuffle(range(1,4))").dimensions
    assert sorted(dimension.distribution.choices) == ["1", "2", "3"]


def test_a_later_override_replaces_an_earlier_one():
    found = space("a=1,2", "b=3", "a=5", "b=interval(0,1)")
    assert found.fixed == ("a=5",)
    assert [d.key for d in found.dimensions] == ["b"]


def test_each_draw_can_be_composed_and_respects_conditions():
    found = space(*PRIORS, "seed=1", "~data.n", conditions=COMPONENTS)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(60):
        fixed, deleted, prior, *rest = found.suggest(study.ask())
        assert (fixed, deleted) == ("seed=1", "~data.n")
        seen.add((prior, *rest))
        assert bool(rest) == (prior != "vae/prior=normal")
    assert len(seen) == 1 + 2 * 4


def test_settings_come_after_those_that_they_depend_on():
    conditions = {"a": {"b": "1"}, "b": {"c": ["2"]}}
    found = space("a=1,2", "b=1,3", "c=2,4", conditions=conditions)
    assert [d.key for d in found.dimensions] == ["c", "b", "a"]


def test_corners_use_each_choice_and_both_ends():
    corners = space(*PRIORS, "x=interval(0,1)", conditions=COMPONENTS).list_corners()
    words = {word for corner in corners for word in corner}
    assert {f"vae/prior={name}" for name in ("normal", "vamp", "mixture")} < words
    assert {"vae.prior.components=10", "vae.prior.components=40", "x=0.0", "x=1.0"} < words
    assert all("components" not in " ".join(c) for c in corners if "vae/prior=normal" in c)


def test_corners_follow_conditions_of_conditions():
    chain = {"b": {"a": "2"}, "c": {"b": "2"}}
    corners = space("a=1,2", "b=1,2", "c=interval(0,1)", conditions=chain).list_corners()
    assert ["a=2", "b=2", "c=1.0"] in corners
    assert ["a=2", "b=1"] in corners
    assert ["a=1"] in corners


def test_equal_spaces_have_equal_descriptions():
    one = space(*PRIORS, "seed=1", conditions=COMPONENTS)
    assert one.describe() == space("seed=1", *PRIORS[::-1], conditions=COMPONENTS).describe()
    assert one.describe() != space("seed=2", *PRIORS, conditions=COMPONENTS).describe()
    assert one.describe() != space("seed=1", *PRIORS).describe()


def test_descriptions_name_values_and_conditions():
    found = space(
        *PRIORS, "x=interval(0,1)", "y=tag(log,int(interval(1,9)))", "seed=1", conditions=COMPONENTS
    )
    assert found.describe() == [
        "seed=1",
        "vae.prior.components from 10 to 40 in steps of 10 if vae/prior is vamp or mixture",
        "vae/prior=normal,vamp,mixture",
        "x from 0.0 to 1.0",
        "y from 1 to 9 on a logarithmic scale",
    ]


@pytest.mark.parametrize(
    ("overrides", "conditions", "message"),
    [
        (["a=1"], {}, "Expected a setting to search, such as .*, got none"),
        (["a=interval(2,1)"], {}, "interval of a between two numbers, .* got 2.0 and 1.0"),
        (["a=tag(log,interval(0,1))"], {}, "between two positive numbers, .* got 0.0 and 1.0"),
        (
            ["a=tag(log,choice(1,2))"],
            {},
            "Expected the tag log for an interval only, got it for other .* a",
        ),
        (
            ["a=tag(best,interval(0,1))"],
            {},
            "Expected log as the only tag of the values of a, got best",
        ),
        (["a=range(1,2)"], {}, r"range of a with two values or more, got \[1\]"),
        (["seed=0,1"], {}, r"hydra.sweeper.seeds=\[0,1,2\] to judge .* a search over seed"),
        (["threads=1,2"], {}, "Expected settings to search that affect the result, got threads"),
        (["a=1,1"], {}, "Expected different values of a, got 1, 1"),
        (["a=1,2"], {"b": {"a": "1"}}, "settings that are searched, got one of 'b'; .* are a"),
        (["a=1,2", "b=1,2"], {"b": {"a": "3"}}, "values of a, which are 1, 2; got 3"),
        (["a=1,2", "b=1,2"], {"b": {"a": []}}, "values of a, which are 1, 2; got none"),
        (["a=1,2", "b=1,2"], {"b": "a"}, "conditions as {SETTING: .* got 'a' for 'b'"),
        (["a=1,2", "b=1,2"], {"b": {"b": "1"}}, "condition of 'b' to be on a choice .* got 'b'"),
        (["a=1", "b=1,2"], {"b": {"a": "1"}}, "condition of 'b' to be on a choice .* got 'a'"),
        (["a=1,2", "b=1,2"], {"b": {"a": 1}, "a": {"b": 1}}, "without a circle, got a, b"),
    ],
)
def test_wrong_spaces_are_refused(overrides, conditions, message):
    with pytest.raises(ValueError, match=message):
        space(*overrides, conditions=conditions)
