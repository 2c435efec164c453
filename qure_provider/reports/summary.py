"""A night's summary: what became of everything, as data and as a page without names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from qure_provider.api.model import Meaning
from qure_provider.reports.page import environment
from qure_provider.reports.result import UNVERIFIED

SCHEMA = 1


class SummaryFormatError(ValueError):
    """A stored summary is not of a shape that this version reads."""


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
        reason: Why there is no result, what failed, or which of its files are held.
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

    @property
    def picture(self) -> str:
        """The file name of ``image``; empty where there is none."""
        return self.image.rpartition("/")[2]


def in_store(row: SummaryRow, name: str) -> str:
    """Return the way from a run's own folder in the store to a file of a resource."""
    return f"../../../{row.folder}/{name}"


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
        paging: Which ``meanings`` and ``findings`` people are told of, and by how many ``notifiers``.
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
    paging: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_simulated(self) -> bool:
        """Whether an emulator gave any of the results: its words say so."""
        return any("SIMULATED" in row.impression for row in self.rows)

    @property
    def meanings(self) -> dict[str, int]:
        """How many of the results that came mean what."""
        return dict(sorted(Counter(row.meaning for row in self.rows if row.outcome == "ready").items()))

    @property
    def pages_on(self) -> str:
        """Which results people are told of at once, in words; empty where nobody is."""
        if not self.paging.get("notifiers"):
            return ""
        meanings, findings = (", ".join(self.paging[name]) for name in ("meanings", "findings"))
        return f"{meanings or 'no triage meaning'}; findings: {findings or 'none listed, so no X-ray'}"

    @property
    def unanswered(self) -> int:
        """How many resources have no answer."""
        return sum(not row.is_resolved for row in self.rows)

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
            "meanings": self.meanings,
            "alerts": dict(self.alerts),
            "deliveries": {name: dict(states) for name, states in sorted(self.deliveries.items())},
            "paging": dict(self.paging),
            "problems": list(self.problems),
            "resources": [asdict(row) for row in self.rows],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Summary:
        """Read what ``to_json`` wrote.

        Raises:
            SummaryFormatError: If it is of another schema or not a summary at all.
        """
        if not isinstance(value, Mapping) or value.get("schema") != SCHEMA:
            raise SummaryFormatError(f"The summary is not of schema {SCHEMA}, which this version reads.")
        try:
            rows = tuple(SummaryRow(**row) for row in value["resources"])
            own = {"rows", "problems", "paging"}
            others = {item.name: value[item.name] for item in fields(cls) if item.name not in own}
            return cls(rows=rows, problems=tuple(value["problems"]), paging=value.get("paging", {}), **others)
        except (KeyError, TypeError) as error:
            raise SummaryFormatError(f"The summary is damaged: {type(error).__name__}.") from None

    def to_html(
        self,
        href: Callable[[SummaryRow, str], str] = in_store,
        *,
        index: str = "result.json",
        links: Mapping[str, str] | None = None,
        study: str = "",
    ) -> str:
        """Return the page.

        Args:
            href: Gives the address of a file of a resource.
            index: The file, or the empty name of the page, that says which files a resource has.
            links: What stands above the page: text to address.
            study: The address of a study's page, with ``{}`` in the place of its pseudonym; empty where there is none.
        """
        order = {"urgent": 0, "abnormal": 1, "unknown": 2}
        rows = sorted(self.rows, key=lambda row: (row.is_resolved, order.get(row.meaning, 3), row.study, row.resource))
        value = self.to_json()
        return (
            environment()
            .get_template("summary.html.jinja")
            .render(
                summary=self,
                value=value,
                rows=rows,
                href=href,
                index=index,
                links=links or {},
                study_page=study,
                notice=UNVERIFIED,
                tiles=[(meaning.value, self.meanings.get(meaning.value, 0)) for meaning in Meaning],
                files=[(name.replace("_", " "), self.counts.get(name, 0)) for name in ("found", *_PARTS)],
                alerts=[("sent", self.alerts.get("sent", 0)), ("never got through", self.alerts.get("failed", 0))],
            )
        )


_PARTS = ("selected", "not_selected", "duplicate", "quarantined")


def files_add_up(counts: Mapping[str, Any]) -> bool:
    """Return whether ``found = selected + not selected + duplicate + quarantined``."""
    return bool(counts.get("found") == sum(counts.get(part, 0) for part in _PARTS))
