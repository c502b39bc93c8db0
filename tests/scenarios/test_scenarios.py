"""Every scenario under every inference: it works, or raises the error that says why it cannot."""

import pytest

from scenarios import TITLES, make
from scenarios.inferences import INFERENCES


@pytest.mark.parametrize("inference", INFERENCES)
@pytest.mark.parametrize("name", TITLES)
def test_it_works_or_says_why_not(name, inference):
    scenario = make(name)
    if inference == "infer_discrete" and not scenario.discrete:
        assert inference not in scenario.fails
        return
    fails = scenario.fails.get(inference)
    if fails is None:
        INFERENCES[inference](scenario)
        return
    with pytest.raises(fails.error, match=fails.match):
        INFERENCES[inference](scenario)
