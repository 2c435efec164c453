"""A few seconds of what ``make fuzz`` does at length, and whether it would notice."""

import random

import pytest
from fuzz import __main__ as program
from fuzz.targets import TARGETS, Target

FEW = {"ehr": 25, "objects": 40, "exports": 40, "reports": 150, "headers": 1000}


@pytest.mark.parametrize("name", TARGETS)
def test_R8_damaged_input_comes_to_a_named_end(name):
    tally = program.run_cases(name, "tests", range(FEW.get(name, 400)))

    assert tally.failures == []
    assert len(tally.outcomes) > (name != "exports")


@pytest.mark.parametrize("name", sorted(TARGETS.keys() - {"objects"}))
def test_a_case_can_be_run_again(name):
    first, second = (TARGETS[name].run(random.Random("again")) for _ in range(2))
    assert first == second


def crash(rng):
    raise KeyError(rng.random())


def hang(rng):
    while True:
        try:
            rng.random()
        except Exception:  # as a parser would that catches everything
            continue


def grow(rng):
    return "grown" if len(bytearray(4 * program.MEMORY)) else ""


@pytest.mark.parametrize(("bad", "error"), [(crash, "KeyError"), (hang, "TooSlowError"), (grow, "MemoryError")])
def test_what_must_not_happen_is_noticed(monkeypatch, bad, error):
    monkeypatch.setitem(TARGETS, "bad", Target(bad, 1))
    monkeypatch.setattr(program, "CASE_SECONDS", 0.2)

    tally = program.run_all(2, "tests", only="bad")["bad"]

    assert [number for number, _ in tally.failures] == [0, 1]
    assert all(error in text for _, text in tally.failures)
