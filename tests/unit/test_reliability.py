"""docs/reliability.md says what is so: each promise has tests of its name, and each scenario stands in the table."""

import re
from pathlib import Path

import pytest

from chaos.run import choose

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
PROMISES = dict(re.findall(r"(?ms)^### (R\d) (.*?)(?=^##)", DOCUMENT))
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
}


def test_there_are_eight_promises():
    assert list(PROMISES) == [f"R{number}" for number in range(1, 9)]


@pytest.mark.parametrize("promise", [f"R{number}" for number in range(1, 9)])
def test_a_promise_names_its_tests_and_what_it_does_not_cover(promise):
    text = PROMISES[promise]
    named = re.findall(r"`(test_\w+)`", text)
    assert named
    assert set(named) <= TESTS
    assert all(name.startswith(f"test_{promise}_") for name in named)
    assert re.search(r"(?m)^Does not cover: \w", text)


def test_no_test_is_named_for_a_promise_that_there_is_not():
    named = {match[1] for name in TESTS if (match := re.match(r"test_(R\d+)_", name))}
    assert named == set(PROMISES)


def test_every_scenario_stands_in_the_table_with_its_result():
    rows = dict(re.findall(r"(?m)^\| `([\w-]+)` \|.*\| ([^|]+) \|$", DOCUMENT))
    assert list(rows) == [scenario.name for scenario in choose([])]
    assert set(rows.values()) <= {"passed", "not possible on this machine"}
