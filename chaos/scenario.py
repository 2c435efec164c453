"""Scenarios by name: what goes wrong, what must come of it, and in which layer that is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Layer(StrEnum):
    """Where a scenario is shown."""

    STEPS = "steps"
    """The steps of a night in one process, with real servers on both sides."""
    AIRFLOW = "Airflow"
    """A whole Airflow, each component a process of its own, which can be killed."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario.

    Attributes:
        name: Its name, of words with hyphens.
        group: What goes wrong: the heading that it stands under.
        what: What goes wrong, in words.
        then: What must come of it, in words.
        layer: Where it is shown.
        run: Does it, given the layer's place.
        connection: Settings of the connection to the service, in the layer of steps.
    """

    name: str
    group: str
    what: str
    then: str
    layer: Layer
    run: Callable[[Any], None]
    connection: dict[str, Any]


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    group: str, what: str, then: str, *, layer: Layer = Layer.STEPS, **connection: Any
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a function as a scenario; its name becomes the scenario's."""

    def register(run: Callable[[Any], None]) -> Callable[[Any], None]:
        name = run.__name__.replace("_", "-")
        SCENARIOS[name] = Scenario(name, group, what, then, layer, run, connection)
        return run

    return register
