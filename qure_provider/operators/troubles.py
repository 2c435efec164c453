"""Telling people, from a task, of urgent results and of those that do not reach their readers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qure_provider.triggers.alerts import Alert, Entry, channel_of, send
from qure_provider.triggers.results import alert_of, owed_alerts

if TYPE_CHECKING:
    from qure_provider.api.model import Meaning
    from qure_provider.ledger.deliveries import DeliveryRow
    from qure_provider.ledger.ledger import Ledger, ResourceRow
    from qure_provider.operators.standing import Standing


def tell_of_results(ledger: Ledger, notifiers: Sequence[Mapping[str, Any]], alerts: Mapping[int, Alert]) -> None:
    """Tell people of results, all at once; nobody is told twice that the same one means the same.

    Args:
        ledger: Where it is recorded who was told of what.
        notifiers: Who is told.
        alerts: By resource.
    """
    sent = ledger.sent_alerts(alerts) if alerts and notifiers else set()
    _send_all(
        (notifier, alert, Entry(ledger, resource_id))
        for resource_id, alert in alerts.items()
        for notifier in notifiers
        if (resource_id, channel_of(notifier, alert.meaning)) not in sent
    )


def tell_again(
    ledger: Ledger,
    notifiers: Sequence[Mapping[str, Any]],
    rows: Sequence[ResourceRow],
    facts: Mapping[str, str],
    *,
    pages: Callable[[ResourceRow], bool],
) -> None:
    """Tell people of results where an alert never got through, or that nobody was ever told of.

    The latter came when no notifier was set, or none that worked.

    Args:
        ledger: Where it is recorded who was told of what.
        notifiers: Who is told.
        rows: The run's resources.
        facts: ``dag_id``, ``run_id`` and ``link`` of the run.
        pages: Whether a result is one of those that people are told of.
    """
    if not notifiers:
        return
    owed = owed_alerts(ledger, notifiers, rows, facts)
    known = {number for _, number, _ in owed} | {row.id for row, _ in _told_of(ledger, rows)}
    untold = [row for row in rows if row.id not in known and pages(row)]
    owed += [(notifier, row.id, alert_of(row, facts)) for row in untold for notifier in notifiers]
    _send_all((notifier, alert, Entry(ledger, resource_id)) for notifier, resource_id, alert in owed)


def tell_of_troubles(
    ledger: Ledger,
    notifiers: Sequence[Mapping[str, Any]],
    facts: Mapping[str, str],
    *,
    run_id: int | None = None,
    is_over: bool = False,
) -> None:
    """Alert people of urgent results, and of withdrawals, that do not reach their receivers.

    What is held, in doubt or given up is told once for each destination and state, whatever is repeated; of a
    withdrawal, that its receiver could not be reached, too.

    Args:
        ledger: What went wrong; it is recorded there, too, that people were told.
        notifiers: Who is told.
        facts: ``dag_id``, ``run_id`` and ``link`` of the run.
        run_id: Only of what this run owes; None for all.
        is_over: Whether the run ends, so that what still waits for its receiver, or hangs there, is told of, too.
    """
    from qure_provider.ledger.deliveries import TROUBLED_STATES, DeliveryState

    if not notifiers:
        return
    states = (*TROUBLED_STATES, DeliveryState.WAITING, DeliveryState.SENDING) if is_over else TROUBLED_STATES
    found = []
    for delivery in ledger.deliveries.in_trouble(run_id, states=states):
        rows = ledger.rows_by_id(delivery.resource_ids)
        if rows:
            occasion = f"{delivery.kind.value}|{_mark(delivery.destination)}|{delivery.state.value}"
            found.append(Trouble(_worst(rows), occasion, _problem(delivery)))
    tell(ledger, notifiers, found, facts)


def tell_of_missing(
    ledger: Ledger, notifiers: Sequence[Mapping[str, Any]], rows: Iterable[ResourceRow], facts: Mapping[str, str]
) -> None:
    """Alert people of results that they were told of and that never came home: failed, or timed out while fetched.

    What they were told already while it was still tried, they are not told again.

    A result that nobody has ever seen cannot be known to be urgent; the night's summary names it.

    Args:
        ledger: Where it is recorded who was told of what.
        notifiers: Who is told.
        rows: The run's resources.
        facts: ``dag_id``, ``run_id`` and ``link`` of the run.
    """
    from qure_provider.api.model import Outcome

    found = []
    missing = [row for row in rows if row.outcome is not Outcome.READY] if notifiers else []
    for row, meaning in _told_of(ledger, missing):
        outcome = row.outcome.value if row.outcome else "not there"
        if row.is_resolved:
            found.append(Trouble(row, "taken back", f"the service took it back, and it is now {outcome}", meaning))
        else:
            found.append(Trouble(row, _MISSING, f"its files could not be fetched, and it is now {outcome}", meaning))
    tell(ledger, notifiers, found, facts)


def tell_of_unfetched(
    ledger: Ledger, notifiers: Sequence[Mapping[str, Any]], rows: Iterable[ResourceRow], facts: Mapping[str, str]
) -> None:
    """Alert people of results that they were told of and that cannot be fetched, while that is still tried.

    Args:
        ledger: Where it is recorded who was told of what.
        notifiers: Who is told.
        rows: What could not be fetched.
        facts: ``dag_id``, ``run_id`` and ``link`` of the run.
    """
    problem = "its files could not be fetched so far; they are asked for again"
    told = _told_of(ledger, rows) if notifiers else []
    tell(ledger, notifiers, [Trouble(row, _MISSING, problem, meaning) for row, meaning in told], facts)


def tell_of_standing(
    ledger: Ledger, notifiers: Sequence[Mapping[str, Any]], found: Iterable[Standing], facts: Mapping[str, str]
) -> None:
    """Alert people of results that receivers still have though there is another answer since, once for each answer.

    Args:
        ledger: Where it is recorded that people were told.
        notifiers: Who is told.
        found: What they still have.
        facts: ``dag_id``, ``run_id`` and ``link`` of the run.
    """
    troubles = [
        Trouble(item.row, f"stands|{_mark(item.delivery.destination)}|{item.row.outcome}", item.problem)
        for item in found
    ]
    tell(ledger, notifiers, troubles, facts)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something about a resource that people are told of.

    Attributes:
        row: The resource.
        occasion: Nobody is told twice of the same.
        problem: What is wrong.
        meaning: What its triage means, where that is not recorded as it was never fetched.
    """

    row: ResourceRow
    occasion: str
    problem: str
    meaning: Meaning | None = None

    def alert(self, facts: Mapping[str, str]) -> Alert:
        """Return what is said of it."""
        meaning = self.row.meaning if self.meaning is None else self.meaning
        return replace(alert_of(self.row, facts), meaning=meaning.value, problem=self.problem)


_MISSING = "missing"


def tell(
    ledger: Ledger, notifiers: Sequence[Mapping[str, Any]], troubles: Iterable[Trouble], facts: Mapping[str, str]
) -> None:
    """Tell people of troubles, all at once: one that cannot be told must not hold up the others."""
    by_occasion = {(item.row.id, f"|{item.occasion}"): item for item in troubles} if notifiers else {}
    if not by_occasion:
        return
    sent = ledger.sent_alerts({number for number, _ in by_occasion})
    alerts = {key: item.alert(facts) for key, item in by_occasion.items()}
    _send_all(
        (notifier, alert, Entry(ledger, number, occasion))
        for (number, occasion), alert in alerts.items()
        for notifier in notifiers
        if (number, channel_of(notifier, alert.meaning) + occasion) not in sent
    )


def _send_all(alerts: Iterable[tuple[Mapping[str, Any], Alert, Entry]]) -> None:
    """Send alerts at once, so that a notifier that hangs holds up no other."""

    async def send_all() -> None:
        await asyncio.gather(*(send(*alert) for alert in alerts))

    asyncio.run(send_all())


def _told_of(ledger: Ledger, rows: Iterable[ResourceRow]) -> list[tuple[ResourceRow, Meaning]]:
    """Return of which results people were told, and the worst that they were told."""
    from qure_provider.api.model import Meaning
    from qure_provider.reports.study_report import SEVERITY

    by_id = {row.id: row for row in rows}
    told: dict[int, list[Meaning]] = {}
    for number, channel in ledger.sent_alerts(by_id):
        word = channel.partition("|")[2] or Meaning.URGENT
        if word in set(Meaning):
            told.setdefault(number, []).append(Meaning(word))
    return [(by_id[number], min(told[number], key=SEVERITY.index)) for number in sorted(told)]


def _mark(destination: str) -> str:
    return hashlib.sha256(destination.encode()).hexdigest()[:12]


def _worst(rows: Sequence[ResourceRow]) -> ResourceRow:
    from qure_provider.reports.study_report import SEVERITY

    return min(rows, key=lambda row: SEVERITY.index(row.meaning))


def _problem(delivery: DeliveryRow) -> str:
    from qure_provider.ledger.deliveries import DeliveryState, ParcelKind

    what = "the withdrawal of this result is " if delivery.kind is ParcelKind.WITHDRAWAL else ""
    hangs = "it has no receipt yet" if delivery.state is DeliveryState.SENDING else ""
    return f"{what}{delivery.state.value} for {delivery.destination}: {hangs or delivery.reason or 'not tried yet'}"
