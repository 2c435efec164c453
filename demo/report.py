"""What the demo shows: progress while the night runs, and at its end one row for each result."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from demo.checks import StoredResult
from demo.export import ExportFacts

_DONE = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
_WORDS = {"deferred": "waiting in the triggerer", "up_for_retry": "to be tried again", None: "to come"}
_PLAIN_WIDTH = 150
_MEDIA = {
    "application/dicom": "DICOM",
    "application/pdf": "PDF",
    "application/json": "JSON",
    "image/png": "PNG",
    "x-application/hl7-v2+er7": "HL7",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One result in the table.

    Attributes:
        study: The study's pseudonymous key.
        what: What the image is, as exported.
        product: The product, as the service named it.
        triage: The service's word.
        meaning: What it says on this route.
        impression: The report's conclusion.
        alert: After how many seconds people were told of it, where they were.
        written: How many files of which kind.
        where: The folder, relative to the store.
    """

    study: str
    what: str
    product: str
    triage: str
    meaning: str
    impression: str
    alert: str
    written: str
    where: str


def make_console() -> Console:
    """A terminal, or plain lines of a fixed width where there is none."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PLAIN_WIDTH)


class Progress:
    """Prints a line whenever a task of the run moved on.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._shown: dict[str, str] = {}

    def say(self, text: str) -> None:
        """Print one line, with the seconds since the beginning."""
        self._console.print(f"{time.monotonic() - self._began:6.1f} s  {text}", soft_wrap=True, markup=False)

    def show(self, instances: Iterable[Mapping[str, Any]]) -> None:
        """Print the tasks whose counts changed.

        Args:
            instances: All task instances of the run, as Airflow's API describes them.
        """
        states: dict[str, Counter[str | None]] = {}
        for instance in instances:
            states.setdefault(instance["task_id"], Counter())[instance["state"]] += 1
        for task, counts in states.items():
            text = _in_words(counts)
            if text != self._shown.get(task, "") and set(counts) != {None}:
                self._shown[task] = text
                self.say(f"{task}: {text}")


def _in_words(counts: Counter[str | None]) -> str:
    words: Counter[str] = Counter()
    for state, number in counts.items():
        if state not in _DONE:
            words[_WORDS.get(state, "under way")] += number
    bad = [f"{counts[state]} {state}" for state in ("failed", "upstream_failed") if counts[state]]
    done = sum(number for state, number in counts.items() if state in _DONE)
    return ", ".join(
        [f"{done} of {counts.total()} done", *bad, *(f"{number} {word}" for word, number in words.items())]
    )


def make_rows(
    facts: ExportFacts,
    results: Sequence[StoredResult],
    store: Path,
    keys: Mapping[str, str],
    alerts: Mapping[str, float],
) -> list[Row]:
    """Put exported and stored together.

    Args:
        facts: What was exported.
        results: What lies in the store.
        store: The store's root.
        keys: Folder of a result, relative to the store, to its study's pseudonymous key.
        alerts: What a result was asked by, to the seconds from when the service had it to when people were told.

    Returns:
        One row for each result, in the order of the export, then any that nothing was exported for.
    """
    what = {resource.uid: resource.what for resource in facts.resources}
    order = {uid: number for number, uid in enumerate(what)}
    rows = []
    for result in sorted(results, key=lambda result: order.get(result.uid, len(order))):
        content = result.content
        where = result.folder.relative_to(store).as_posix()
        kinds = Counter(_MEDIA.get(asset["media"], asset["media"]) for asset in content["assets"])
        report = content["report"]
        rows.append(
            Row(
                study=keys.get(where, "unknown"),
                what=what.get(result.uid, "unknown"),
                product=content["usecase"] or "not stated",
                triage=content["triage"] or "not stated",
                meaning=content["meaning"],
                impression=report["impression"] or " ".join(report["lines"]) or "no inline report",
                alert=f"{alerts[result.uid]:.1f} s" if result.uid in alerts else "",
                written=", ".join(
                    [f"{number} {kind}" for kind, number in sorted(kinds.items())]
                    + ([f"{len(held)} held"] if (held := content.get("held")) else [])
                ),
                where=where,
            )
        )
    return rows


def print_rows(console: Console, rows: Iterable[Row]) -> None:
    """Print the table; a folder's long UIDs are shortened to patterns that a shell still finds."""
    table = Table(title="AI results of the night (SIMULATED)", box=box.SIMPLE_HEAD, title_justify="left")
    for heading in (
        "study",
        "image",
        "product",
        "triage",
        "impression",
        "alert after",
        "written",
        "where in the store",
    ):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("study", "where in the store"))
    for row in rows:
        style = {"urgent": "bold red", "abnormal": "yellow"}.get(row.meaning)
        triage = f"{row.triage} ({row.meaning})"
        where = _pattern(row.where)
        cells = (row.study, row.what, row.product, triage, row.impression, row.alert, row.written, where)
        table.add_row(*(Text(cell) for cell in cells), style=style)
    console.print(table)


def _pattern(folder: str) -> str:
    return "/".join(f"*{part[-6:]}" if part.startswith("2.25.") else part for part in folder.split("/"))
