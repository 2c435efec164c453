"""Runs scenarios one after the other, counts after each, and writes down what came of them."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from chaos import airflow_faults, export_faults, own_faults, receiver_faults, service_faults
from chaos.airflow_place import open_airflow_place
from chaos.conservation import Books, Verdict, check
from chaos.document import NOT_YET, PASSED, not_passed, write_table
from chaos.place import NotPossibleError, UnexpectedError, open_place
from chaos.scenario import SCENARIOS, Layer, Scenario
from qure_provider.emulator.server import running_emulator
from qure_provider.emulator.settings import EmulatorSettings

MODULES = (service_faults, receiver_faults, export_faults, own_faults, airflow_faults)
"""The modules whose import makes the scenarios, in the order in which these are played."""

ORDERED = tuple(each for module in MODULES for each in SCENARIOS.values() if each.run.__module__ == module.__name__)
"""Every scenario; first what could hurt a patient."""


class Result(StrEnum):
    """What a scenario came to."""

    PASSED = PASSED
    FAILED = "FAILED"
    NOT_POSSIBLE = "not possible on this machine"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a scenario.

    Attributes:
        scenario: The scenario.
        result: What it came to.
        verdict: What the conservation check found.
        problem: What else is not as it must be, or why it is not possible; empty where nothing is.
    """

    scenario: Scenario
    result: Result
    verdict: Verdict
    problem: str

    @property
    def counts(self) -> str:
        """What the check counted, as it is printed."""
        return " ".join(f"{name}={number}" for name, number in self.verdict.counts.items())


def choose(names: Sequence[str], *, remaining_of: Path | None = None) -> list[Scenario]:
    """Return the scenarios of these names, in their order; all of them where there are none.

    Args:
        names: The names.
        remaining_of: Of them, only those that did not pass according to the table of this document.

    Raises:
        KeyError: There is none of a name.
    """
    chosen = [SCENARIOS[name] for name in names] or list(ORDERED)
    return not_passed(remaining_of, chosen) if remaining_of else chosen


def listed() -> Iterator[str]:
    """Each scenario in a line."""
    for each in ORDERED:
        yield f"{each.name} ({each.group}, {each.layer}): {each.what}; {each.then}"


def run_all(chosen: Sequence[Scenario], build: Path, *, document: Path) -> int:
    """Run scenarios.

    Args:
        chosen: Which.
        build: Folder for all of it.
        document: The document that gets the table.

    Returns:
        The exit code: 0 if all passed, else 1.
    """
    outcomes: list[Outcome] = []
    write_table(document, ORDERED, {each.name: NOT_YET for each in chosen})
    for layer, opened in _LAYERS.items():
        scenarios = [each for each in chosen if each.layer is layer]
        if not scenarios:
            continue
        with opened(build / layer.name.lower()) as play:
            for each in scenarios:
                began = time.monotonic()
                outcome = play(each)
                outcomes.append(outcome)
                _say(outcome, time.monotonic() - began)
                write_table(document, ORDERED, {each.name: (outcome.counts, outcome.result.value)})
    passed, failed = (sum(each.result is result for each in outcomes) for result in (Result.PASSED, Result.FAILED))
    print(f"{passed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


def _say(outcome: Outcome, seconds: float) -> None:
    print(f"{outcome.result}  {outcome.scenario.name:36} {outcome.counts}  {seconds:5.1f} s", flush=True)
    for line in outcome.verdict.lines():
        print(f"        {line}")
    if outcome.problem:
        print(f"        {outcome.problem}", flush=True)


@contextmanager
def _steps(folder: Path) -> Iterator[Callable[[Scenario], Outcome]]:
    with running_emulator(EmulatorSettings(storage=folder / "service")) as emulator:

        def run(scenario: Scenario) -> Outcome:
            place_folder = folder / scenario.name
            place_folder.mkdir(parents=True)
            with open_place(place_folder, emulator, **scenario.connection) as place:

                def play() -> None:
                    scenario.run(place)
                    place.must_have_struck()

                return _play(scenario, play, place.books)

        yield run


@contextmanager
def _airflow(folder: Path) -> Iterator[Callable[[Scenario], Outcome]]:
    with open_airflow_place(folder) as place:

        def run(scenario: Scenario) -> Outcome:
            place.begin()
            return _play(scenario, lambda: scenario.run(place), place.books)

        yield run


_LAYERS: Mapping[Layer, Callable[[Path], AbstractContextManager[Callable[[Scenario], Outcome]]]] = {
    Layer.STEPS: _steps,
    Layer.AIRFLOW: _airflow,
}


def _play(scenario: Scenario, play: Callable[[], None], books: Callable[[], Books]) -> Outcome:
    """Play a scenario, then count; one that breaks must not end the others."""
    problem, verdict = "", Verdict()
    try:
        play()
    except NotPossibleError as error:
        return Outcome(scenario, Result.NOT_POSSIBLE, verdict, str(error))
    except UnexpectedError as error:
        problem = str(error)
    except Exception:
        problem = traceback.format_exc()
    try:
        verdict = check(books())
    except Exception:
        problem = f"{problem}\n{traceback.format_exc()}".strip()
    is_well = not problem and not any(verdict.counts.values())
    return Outcome(scenario, Result.PASSED if is_well else Result.FAILED, verdict, problem)
