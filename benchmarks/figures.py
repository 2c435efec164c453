"""What was measured, as data: figures, the rounds they come from, a table and JSON lines."""

from __future__ import annotations

import json
import operator
import statistics
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}


class WrongResultError(Exception):
    """A run lost something, counted wrongly or ended in an error: its time is worth nothing."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should be.

    Attributes:
        of: Which of its numbers: ``ours`` or ``ratio``.
        relation: ``>=`` or ``<=``.
        value: The bound.
    """

    of: str
    relation: str
    value: float

    def __str__(self) -> str:
        return f"{self.of} {self.relation} {self.value:g}"

    def is_met(self, figure: Figure) -> bool:
        """Tell whether a figure keeps the bound; one without the number does not."""
        number = figure.ours if self.of == "ours" else figure.ratio
        return number is not None and _COMPARE[self.relation](number, self.value)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report.

    Attributes:
        name: What was measured, and against what.
        ours: Our number.
        unit: Of both numbers.
        theirs: The other's; None where the figure stands by itself.
        target: What it should be; None where nothing is asked.
    """

    name: str
    ours: float
    unit: str
    theirs: float | None = None
    target: Target | None = None

    @property
    def ratio(self) -> float | None:
        """Ours divided by theirs."""
        return self.ours / self.theirs if self.theirs else None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        return self.target.is_met(self) if self.target else None

    def to_json(self, part: str) -> str:
        """Return it as one line of JSON, with the part of the benchmark that it is of."""
        return json.dumps(
            {
                "part": part,
                "name": self.name,
                "ours": self.ours,
                "theirs": self.theirs,
                "ratio": self.ratio,
                "unit": self.unit,
                "target": str(self.target) if self.target else None,
                "met": self.met,
            }
        )


def alternate(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Let contenders take turns, in the opposite order every other round, so that none has the better moments.

    Args:
        contenders: Each by its name; runs once and returns what it measured.
        rounds: How often.

    Returns:
        The median of each.
    """
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(rounds):
        for name in order:
            measured[name].append(contenders[name]())
        order.reverse()
    return {name: statistics.median(values) for name, values in measured.items()}


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent of all do not exceed.

    Args:
        values: At least one.
        percent: From 0 to 100.

    Raises:
        ValueError: If there is no value.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100).__int__() - 1)]


def one_after_the_other(*sections: Iterator[Figure]) -> Iterator[Figure]:
    """Measure each; what goes wrong in one costs the figures of no other.

    Args:
        sections: Each begins to measure when its first figure is asked for.

    Yields:
        The figures of all.

    Raises:
        WrongResultError: At the end, if any of them ended in an error.
    """
    problems: list[str] = []
    for section in sections:
        try:
            yield from section
        except WrongResultError as error:
            problems.append(str(error))
        except Exception as error:
            traceback.print_exc()
            problems.append(f"{type(error).__name__}: {error}")
    if problems:
        raise WrongResultError("; and ".join(problems))


class Lines:
    """The file with one JSON line a figure; each is written at once, so that what comes later cannot lose it.

    Args:
        path: The file. What it has of other parts than those that are measured now stays.
        parts: What is measured now.
    """

    def __init__(self, path: Path, parts: Iterable[str]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        old = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        now = set(parts)
        kept = [line for line in old if json.loads(line).get("part", "") not in {"", *now}]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def write(self, part: str, figure: Figure) -> None:
        """Add a figure."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(f"{figure.to_json(part)}\n")


def print_table(figures: Iterable[Figure], title: str, console: Console) -> None:
    """Print figures for people."""
    table = Table("figure", "ours", "theirs", "unit", "ratio", "target", "met", title=title, title_justify="left")
    for figure in figures:
        table.add_row(
            figure.name,
            _number(figure.ours),
            _number(figure.theirs),
            figure.unit,
            _number(figure.ratio),
            str(figure.target or ""),
            {True: "yes", False: "NO", None: ""}[figure.met],
        )
    console.print(table)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
