"""What made tests come out one way and then another: an answer that was not the best, and clocks on the wall."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import examples
from tests.builders.drops import FLOAT32, cost, random_case, sets_of_drops
from tests.conftest import ROOT
from wdmoe_opencompass.selection import build_policy

# seed, tokens, worth, duplex; a search by bracket answered the first three with up to 1.6 times the least cost
LAYERS = [
    (8044, 3, 2.0, "shared"),
    (809533, 3, 2.0, "shared"),
    (909772, 3, 2.0, "shared"),
    (1, 1, 0.5, "frequency_division"),
    (2, 2, 4.0, "shared"),
    (3, 4, 12.0, "frequency_division"),
    (4, 4, 2.0, "shared"),
    (5, 5, 0.5, "shared"),
    (6, 5, 4.0, "frequency_division"),
    (7, 2, 0.0, "shared"),
]


@pytest.mark.parametrize("may_lose_all", [False, True])
@pytest.mark.parametrize(("seed", "tokens", "worth", "duplex"), LAYERS)
def test_under_the_even_split_no_set_of_drops_is_better(seed, tokens, worth, duplex, may_lose_all):
    routing, channel, profile, budget = random_case(seed, tokens, duplex=duplex)
    policy = build_policy("dual_price", dict(worth=worth, split="even", may_lose_all=may_lose_all))
    keep = policy.select(routing, channel).keep.numpy()
    costs, _ = cost("even", worth, routing, profile, budget, sets_of_drops(tokens, 2, may_lose_all))
    (ours,), _ = cost("even", worth, routing, profile, budget, keep[None])
    assert ours == pytest.approx(costs.min(), rel=FLOAT32)


def test_no_property_test_has_a_deadline_per_example():
    assert settings.default.deadline is None
    own = re.compile(r"settings\(.*deadline=(?!None)")
    assert not [path.name for path in (ROOT / "tests").rglob("*.py") if own.search(path.read_text())]


def test_no_test_of_the_page_waits_for_a_time():
    sources = {path.name: path.read_text() for path in (ROOT / "tests" / "report").rglob("*.py")}
    assert not [name for name, text in sources.items() if re.search(r"wait_for_timeout|time\.sleep", text)]


@pytest.mark.parametrize("count", [None, 7])
def test_a_factor_multiplies_the_examples_of_any_test(monkeypatch, count):
    seen = []

    @given(number=st.integers())
    def tried(number):
        seen.append(number)

    test = tried if count is None else settings(max_examples=count)(tried)
    monkeypatch.setattr(examples, "FACTOR", 3)
    examples.multiply_examples(test)
    test()
    assert len(seen) >= 2.5 * (count or settings.default.max_examples)
    assert len(examples.seeds(4)) == 12
