"""Counting a night and saying what became of everything."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pendulum
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.context import Context

from qure_provider import settings
from qure_provider.api.model import Meaning, Outcome
from qure_provider.delivery.rules import rules_from
from qure_provider.links import NightSummaryLink
from qure_provider.operators.base import QureOperator
from qure_provider.operators.collect import DELIVER_SECONDS
from qure_provider.operators.dry_run import ShowOnly, show_only_of
from qure_provider.operators.plan import OWED_DAYS
from qure_provider.operators.planned import problems_of_plan
from qure_provider.operators.troubles import tell_again, tell_of_missing, tell_of_standing, tell_of_troubles
from qure_provider.retries import NightUnresolvedError
from qure_provider.triggers.alerts import Paging, channel_of, check_paging
from qure_provider.triggers.results import run_facts

if TYPE_CHECKING:
    from qure_provider.ledger.deliveries import DeliveryRow
    from qure_provider.ledger.ledger import Ledger, ResourceRow, RunRow
    from qure_provider.reports.result import Result
    from qure_provider.reports.summary import Summary, SummaryRow
    from qure_provider.store import Store

_PICTURES = ("sc_thumbnail", "sc_full_png", "sc_png", "sc_dicom_thumbnail", "original_thumbnail")
_NAMED = 20
_NOT_DELIVERED = frozenset({"waiting", "sending", "in doubt", "held", "dead"})
_STUCK = frozenset({"held", "dead"})
_WHAT_NOW = "qure_redeliver goes on with what waits; 'airflow qure night' says why each is held or dead."


class QureSummarizeOperator(QureOperator):
    """Write ``summary.json`` and ``index.html`` for the run, and fail if anything is unresolved.

    It fails where the sums are off, a resource has no answer or one in doubt, an alert never got through, the night was
    empty or brought far fewer series than usual. The message names each by its pseudonym.

    Args:
        run_group: The task group whose plan is summarized.
        store_root: The store's root; None for ``[qure] store_root``.
        deliver_to: Destinations that get everything, a list or separated by blanks; what is still owed is tried once
            more.
        rules: What goes where.
        notifiers: Who is told of an urgent result that was not delivered.
        page_on: See ``QureCollectBatchOperator``.
        page_findings: See ``QureCollectBatchOperator``.
        show_only: ``deliver`` only writes what would be delivered into the run's folder in the store; after ``upload``
            it is in order that nothing has an answer.
        least_share_of_usual: The smallest share of the usual number of series (the median of the last 14 nights of this
            DAG, once there are three) that is not worth a warning; 0 for none.
        allow_empty: Whether a night without a single series is in order.
        kwargs: See ``QureOperator``.

    Returns:
        Counts, and the path of ``summary.json`` in the store.
    """

    template_fields = ("deliver_to", "show_only", "qure_conn_id")
    ui_color = "#f2f2d8"
    operator_extra_links = (NightSummaryLink(),)

    def __init__(
        self,
        *,
        run_group: str = "",
        store_root: str | None = None,
        deliver_to: Sequence[str] | str = (),
        rules: Sequence[Mapping[str, Any]] = (),
        notifiers: Sequence[AsyncCallback] = (),
        page_on: Sequence[str] = ("urgent",),
        page_findings: Sequence[str] = (),
        show_only: str | None = None,
        least_share_of_usual: float = 0.5,
        allow_empty: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= least_share_of_usual <= 1:
            raise ValueError("least_share_of_usual must lie between 0 and 1")
        check_paging(notifiers, page_on, page_findings)
        rules_from(deliver_to, rules)
        self.deliver_to = deliver_to
        self.rules = list(rules)
        self.notifiers = [notifier.serialize() for notifier in notifiers]
        self.page_on = list(page_on)
        self.page_findings = list(page_findings)
        self.show_only = show_only
        self.run_group = run_group
        self.store_root = store_root
        self.least_share_of_usual = least_share_of_usual
        self.allow_empty = allow_empty
        self.page_folder = ""

    def execute(self, context: Context) -> dict[str, Any]:
        """Write the summary."""
        from qure_provider.ledger.ledger import Ledger
        from qure_provider.store import Store, ledger_url

        root = self.store_root or settings.store_root()
        store = Store(root)
        dag_run = context["dag_run"]
        with Ledger.open(ledger_url(root), create=True) as ledger:
            run = ledger.find_run(dag_id=dag_run.dag_id, run_id=dag_run.run_id, group_id=self.run_group)
            if run is None or not run.counts:
                raise NightUnresolvedError("The plan did not finish, so nothing of this night was sent: see its log.")
            unusable = self._deliver(context, store, ledger, run)
            summary = self._summary(store, ledger, run, dag_run.dag_id, dag_run.run_id, unusable)
            path = f"{run.folder}/summary.json"
            store.write_json(path, summary.to_json())
            store.write_text(f"{run.folder}/index.html", summary.to_html())
            ledger.finish_run(run.id)
        if root == settings.store_root():  # the only store that the UI shows
            self.page_folder = run.folder
        self.log.info(
            "Summarized: resources=%d urgent=%d unanswered=%d problems=%d",
            len(summary.rows),
            summary.meanings.get(Meaning.URGENT, 0),
            summary.unanswered,
            len(summary.problems),
        )
        if summary.problems:
            raise NightUnresolvedError(f"Night {run.night} needs somebody: {' '.join(summary.problems)}")
        value = summary.to_json()
        return {"summary": path, **{key: value[key] for key in ("outcomes", "meanings", "alerts")}}

    def _deliver(self, context: Context, store: Store, ledger: Ledger, run: RunRow) -> list[str]:
        """Enqueue what no batch did (a worker may have died in between), and try once more what is owed.

        Returns:
            Which destinations can't be used, which results can't be read, and what receivers have that has another
            answer since.
        """
        show_only = show_only_of(self.show_only)
        if show_only is ShowOnly.UPLOAD:
            return []
        rows = ledger.rows_of_run(run.id)
        facts = run_facts(context)
        tell_again(ledger, self.notifiers, rows, facts, pages=partial(self._pages, store))
        tell_of_missing(ledger, self.notifiers, rows, facts)
        rules = rules_from(self.deliver_to, self.rules)
        if not rules:
            return []
        from qure_provider.delivery.courier import Courier
        from qure_provider.delivery.rules import destinations_of
        from qure_provider.operators.standing import find_standing

        courier = Courier(store, ledger, str(context["ti"].id), self._paging())
        if show_only is ShowOnly.DELIVER:
            return _first(
                courier.render(rows, rules, f"{run.folder}/dry_run"),
                "that would not be delivered: see the NOT_SENT.txt files in the run's dry_run folder in the store.",
            )
        problems = courier.enqueue(run.id, rows, rules, is_final=True)
        courier.deliver(destinations_of(rules), run_id=run.id, seconds=DELIVER_SECONDS)
        tell_of_troubles(ledger, self.notifiers, facts, run_id=run.id, is_over=True)
        standing = find_standing(ledger, rows)
        tell_of_standing(ledger, self.notifiers, standing, facts)
        lines = [item.line for item in standing]
        return [*problems, *_first(lines, "that receivers have though there is another answer since.")]

    def _paging(self) -> Paging:
        return Paging(tuple(self.page_on), tuple(self.page_findings))

    def _pages(self, store: Store, row: ResourceRow) -> bool:
        """Whether people are told of a result; nobody is paged for one that came longer ago than it is waited for."""
        if row.outcome is not Outcome.READY or (row.ready_at or 0.0) < time.time() - OWED_DAYS * 86_400:
            return False
        if row.meaning.value in self.page_on:
            return True
        result = _stored(store, row)[0] if self.page_findings else None
        return result is not None and self._paging().wants(result)

    def _summary(
        self, store: Store, ledger: Ledger, run: RunRow, dag_id: str, run_id: str, unusable: Sequence[str]
    ) -> Summary:
        from qure_provider.reports.summary import Summary

        resources = ledger.rows_of_run(run.id)
        rows = tuple(_row(store, row) for row in resources)
        alerts = ledger.alert_counts(run.id, [channel_of(notifier) for notifier in self.notifiers])
        deliveries = ledger.deliveries.counts(run.id)
        usual = ledger.usual_found(dag_id=dag_id, before=run.began_at)
        return Summary(
            night=run.night,
            dag_id=dag_id,
            run_id=run_id,
            began_at=_iso(run.began_at),
            finished_at=_iso(pendulum.now("UTC").timestamp()),
            completeness=run.completeness,
            counts=run.counts,
            rows=rows,
            alerts=alerts,
            deliveries=deliveries,
            paging={
                "meanings": self.page_on,
                "findings": self.page_findings,
                "notifiers": len(self.notifiers),
            },
            problems=(
                *self._problems(run, rows, alerts, usual),
                *problems_of_plan(store, run),
                *unusable,
                *_undelivered(ledger.deliveries.of_run(run.id), deliveries),
            ),
        )

    def _problems(
        self,
        run: RunRow,
        rows: Sequence[SummaryRow],
        alerts: dict[str, int],
        usual: float | None,
    ) -> list[str]:
        from qure_provider.reports.summary import files_add_up

        problems = []
        series = run.counts["series"]
        if not files_add_up(run.counts):
            problems.append("The sums are off: not every file of the export is accounted for.")
        if len(rows) != run.counts["resources"] + run.counts["carried_over"]:
            problems.append("The sums are off: not every selected resource is accounted for.")
        if series == 0 and not self.allow_empty:
            problems.append("The night is empty: no series was selected. Did the PACS export anything?")
        elif usual and series < self.least_share_of_usual * usual:
            problems.append(f"Far fewer series than usual: {series}, where the median is {usual:g}.")
        is_shown_only = show_only_of(self.show_only) is ShowOnly.UPLOAD
        unresolved = [] if is_shown_only else [row for row in rows if not row.is_resolved or row.doubt]
        lines = [
            f"Study {row.study}, resource {row.resource}: {row.outcome}. {row.reason or row.doubt}".rstrip()
            for row in unresolved
        ]
        problems += _first(lines, "that are open or in doubt: see summary.json.")
        if len(rows) > 1 and not is_shown_only and not unresolved and not any(row.folder for row in rows):
            problems.append(
                f"Not one of {len(rows)} resources has a result: do the connection's Source and the selection fit "
                "what was exported?"
            )
        if not (self.notifiers or self.deliver_to or self.rules or alerts["sent"]):
            urgent = sum(row.meaning == Meaning.URGENT.value for row in rows)
            if urgent:
                problems.append(
                    f"{urgent} urgent results, and nobody was told: name notifiers ([qure] notifiers, or the task "
                    "group's argument), or where results are delivered."
                )
        if alerts["failed"]:
            problems.append(f"{alerts['failed']} alerts never got through: tell the people on duty.")
        return problems


def _undelivered(rows: Sequence[DeliveryRow], counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Say how much each destination lacks, and name what waits for a person."""
    problems = []
    for destination, states in counts.items():
        owed = {state: number for state, number in states.items() if state in _NOT_DELIVERED}
        if owed:
            named = ", ".join(f"{number} {state}" for state, number in sorted(owed.items()))
            problems.append(f"Deliveries to {destination}: {named}. {_WHAT_NOW}")
    lines = [
        f"Study {settings.short_ref(row.study_instance_uid)}, {row.product or 'unknown product'} {row.kind.value} for "
        f"{row.destination}: {row.state.value}: {row.reason.rstrip('.')}."
        for row in rows
        if row.state.value in _STUCK
    ]
    return [*problems, *_first(lines, "that are held or dead: see 'airflow qure night'.")]


def _first(lines: Sequence[str], of_what: str) -> list[str]:
    """Return as many lines as a reader takes in, and how many more there are of what."""
    more = len(lines) - _NAMED
    return [*lines[:_NAMED], *([f"And {more} more {of_what}"] if more > 0 else [])]


def _row(store: Store, row: ResourceRow) -> SummaryRow:
    from qure_provider.reports.summary import SummaryRow

    result, problem = _stored(store, row)
    names = {asset.kind: asset.name for asset in reversed(result.assets)} if result else {}
    picture = next((names[kind] for kind in _PICTURES if kind in names), "")
    waited = row.ready_at - row.uploaded_at if row.ready_at and row.uploaded_at else None
    return SummaryRow(
        study=settings.short_ref(row.identity.study_instance_uid),
        resource=settings.short_ref(row.uid),
        route=row.route.value,
        modality=row.modality,
        product=row.usecase or "",
        outcome=row.outcome.value if row.outcome else "not asked",
        is_resolved=row.is_resolved and not problem,
        reason=problem or row.reason or _held(result),
        triage=row.triage or "",
        meaning=row.meaning.value,
        impression=result.impression if result else "",
        doubt=row.doubt,
        revision=row.revision,
        why=row.why.value if row.why else "",
        folder=row.store_path or "",
        files=len(result.assets) if result else 0,
        image=f"{row.store_path}/{picture}" if picture else "",
        seconds_to_ready=None if waited is None else round(waited, 1),
    )


def _held(result: Result | None) -> str:
    """Say which files of a result are not handed on, and why."""
    return "; ".join(f"{file.kind} {file.reason}" for file in result.held) if result else ""


def _stored(store: Store, row: ResourceRow) -> tuple[Result | None, str]:
    """Return what was fetched, and what is wrong with it where it can't be read."""
    from qure_provider.reports.result import Result

    if not row.store_path:
        return None, ""
    try:
        result = Result.from_json(store.read_json(f"{row.store_path}/result.json"))
    except FileNotFoundError:
        return None, "its files are no longer in the store: were they removed?"
    except (OSError, ValueError):
        return None, "its files in the store cannot be read"
    lacks = [] if result.assets or result.held else ["ready without any file"]
    return result, "; ".join([*lacks, *(warning for warning in result.warnings if warning.startswith("files "))])


def _iso(seconds: float) -> str:
    return str(pendulum.from_timestamp(seconds, tz=settings.timezone()).to_iso8601_string())
