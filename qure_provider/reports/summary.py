"""A night's summary: what became of everything, as data and as a page without names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qure_provider.reports.result import UNVERIFIED

if TYPE_CHECKING:
    from jinja2 import Template

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One resource of the night.

    Attributes:
        study: The study's pseudonym.
        resource: The resource's own pseudonym.
        route: ``xray`` or ``ct``.
        modality: Its modality.
        product: As the service named it; empty where it did not.
        outcome: What is known of it.
        is_resolved: Whether the service gave its answer.
        reason: Why there is no result, or what failed.
        triage: The vendor's word.
        meaning: What that word means on this route.
        impression: The report's conclusion, verbatim.
        doubt: Why the result may not be the answer to what was sent last.
        revision: Which sending of it.
        why: Why the night answers for it: new, revision, waiting, done.
        folder: Where its files lie in the store; empty where there are none.
        files: How many files.
        image: The picture to show, relative to the store's root; empty where there is none.
        seconds_to_ready: From its upload to its result; None where not known.
    """

    study: str
    resource: str
    route: str
    modality: str
    product: str
    outcome: str
    is_resolved: bool
    reason: str
    triage: str
    meaning: str
    impression: str
    doubt: str
    revision: int
    why: str
    folder: str
    files: int
    image: str
    seconds_to_ready: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """One night.

    Attributes:
        night: Its name.
        dag_id: The DAG.
        run_id: The run.
        began_at: ISO 8601.
        finished_at: ISO 8601.
        completeness: How the export was judged complete.
        counts: What the plan counted.
        rows: Every resource that the run answers for.
        alerts: How many alerts were sent, and how many never got through.
        deliveries: For each destination, how many deliveries are in which state.
        problems: Why the run is red; empty where it is green.
    """

    night: str
    dag_id: str
    run_id: str
    began_at: str
    finished_at: str
    completeness: str
    counts: Mapping[str, Any]
    rows: tuple[SummaryRow, ...]
    alerts: Mapping[str, int]
    deliveries: Mapping[str, Mapping[str, int]]
    problems: tuple[str, ...]

    @property
    def sums_hold(self) -> bool:
        """Whether every file is accounted for."""
        return files_add_up(self.counts)

    def to_json(self) -> dict[str, Any]:
        """Return what ``summary.json`` holds."""
        return {
            "schema": SCHEMA,
            "notice": UNVERIFIED,
            "night": self.night,
            "dag_id": self.dag_id,
            "run_id": self.run_id,
            "began_at": self.began_at,
            "finished_at": self.finished_at,
            "completeness": self.completeness,
            "counts": dict(self.counts),
            "sums_hold": self.sums_hold,
            "outcomes": dict(sorted(Counter(row.outcome for row in self.rows).items())),
            "meanings": dict(sorted(Counter(row.meaning for row in self.rows if row.outcome == "ready").items())),
            "alerts": dict(self.alerts),
            "deliveries": {name: dict(states) for name, states in sorted(self.deliveries.items())},
            "problems": list(self.problems),
            "resources": [asdict(row) for row in self.rows],
        }

    def to_html(self, root: str) -> str:
        """Return the page.

        Args:
            root: The way from the page's folder to the store's root, such as ``../../..``.
        """
        order = {"urgent": 0, "abnormal": 1, "unknown": 2}
        rows = sorted(self.rows, key=lambda row: (row.is_resolved, order.get(row.meaning, 3), row.study, row.resource))
        return _template().render(summary=self, value=self.to_json(), rows=rows, root=root, notice=UNVERIFIED)


def files_add_up(counts: Mapping[str, Any]) -> bool:
    """Return whether ``found = selected + not selected + duplicate + quarantined``."""
    parts: Sequence[str] = ("selected", "not_selected", "duplicate", "quarantined")
    return bool(counts.get("found") == sum(counts.get(part, 0) for part in parts))


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("summary.html.jinja")
