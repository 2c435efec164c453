"""Runs scenarios one after the other, counts after each, and writes down what came of them."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from chaos import service_faults
from chaos.conservation import Verdict, check
from chaos.document import write_table
from chaos.place import UnexpectedError, open_place
from chaos.scenario import SCENARIOS, Layer, Scenario
from qure_provider.emulator.server import running_emulator
from qure_provider.emulator.settings import EmulatorSettings

GROUPS = (service_faults,)
"""The modules whose import makes the scenarios, in the order in which these are run."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a scenario.

    Attributes:
        scenario: The scenario.
        verdict: What the conservation check found.
        problem: What else is not as it must be; empty where nothing is.
    """

    scenario: Scenario
    verdict: Verdict
    problem: str

    @property
    def passed(self) -> bool:
        """Whether all is as it must be."""
        return not self.problem and not any(self.verdict.counts.values())

    @property
    def counts(self) -> str:
        """What the check counted, as it is printed."""
        return " ".join(f"{name}={number}" for name, number in self.verdict.counts.items())


def choose(names: Sequence[str]) -> list[Scenario]:
    """Return the scenarios of these names, all of them where there are none; the order is their own.

    Raises:
        KeyError: There is none of a name.
    """
    wanted = {SCENARIOS[name].name for name in names} or set(SCENARIOS)
    return [each for each in SCENARIOS.values() if each.name in wanted]


def listed() -> Iterator[str]:
    """Each scenario in a line."""
    for each in SCENARIOS.values():
        yield f"{each.name} ({each.group}, {each.layer}): {each.what}; {each.then}"


def run_all(chosen: Sequence[Scenario], build: Path, *, document: Path | None) -> int:
    """Run scenarios.

    Args:
        chosen: Which.
        build: Folder for all of it.
        document: The document that gets the table; None for none.

    Returns:
        The exit code: 0 if all passed, else 1.
    """
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        layers = {Layer.STEPS: stack.enter_context(_steps(build / "steps"))}
        for each in chosen:
            began = time.monotonic()
            outcome = layers[each.layer](each)
            outcomes.append(outcome)
            _say(outcome, time.monotonic() - began)
    if document:
        write_table(document, [(each.scenario, each.counts, each.passed) for each in outcomes])
    failed = sum(not each.passed for each in outcomes)
    print(f"{len(outcomes) - failed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


def _say(outcome: Outcome, seconds: float) -> None:
    word = "passed" if outcome.passed else "FAILED"
    print(f"{word}  {outcome.scenario.name:44} {outcome.counts}  {seconds:5.1f} s", flush=True)
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
                problem = _attempt(lambda: scenario.run(place)) or _attempt(place.must_have_struck)
                place.note_sources()
                return Outcome(scenario, check(place.books()), problem)

        yield run


def _attempt(action: Callable[[], None]) -> str:
    """Do something; returns what went wrong."""
    try:
        action()
    except UnexpectedError as error:
        return str(error)
    except Exception:  # one scenario that breaks must not end the others
        return traceback.format_exc()
    return ""
