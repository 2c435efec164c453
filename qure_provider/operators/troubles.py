"""Telling people, from a task, of urgent results and of those that do not reach their readers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qure_provider.triggers.alerts import Alert, Entry, channel_of, send, send_to_all
from qure_provider.triggers.results import alert_of

if TYPE_CHECKING:
    from qure_provider.ledger.deliveries import DeliveryRow
    from qure_provider.ledger.ledger import Ledger, ResourceRow


def tell_of_results(ledger: Ledger, notifiers: Sequence[Mapping[str, Any]], alerts: Mapping[int, Alert]) -> None:
    """Tell people of results, all at once; nobody is told twice of the same.

    Args:
        ledger: Where it is recorded who was told of what.
        notifiers: Who is told.
        alerts: By resource.
    """
    sent = ledger.sent_alerts(alerts) if alerts and notifiers else set()

    async def tell() -> None:
        await asyncio.gather(
            *(
                send(notifier, alert, Entry(ledger, resource_id))
                for resource_id, alert in alerts.items()
                for notifier in notifiers
                if (resource_id, channel_of(notifier)) not in sent
            )
        )

    asyncio.run(tell())


def tell_again(
    ledger: Ledger, notifiers: Sequence[Mapping[str, Any]], rows: Iterable[ResourceRow], facts: Mapping[str, str]
) -> None:
    """Try once more to tell people of results where an alert never got through.

    Args:
        ledger: Where it is recorded who was told of what.
        notifiers: Who is told.
        rows: The run's resources.
        facts: ``dag_id``, ``run_id`` and ``link`` of the run.
    """
    by_id = {row.id: row for row in rows} if notifiers else {}
    channels = {channel_of(notifier) for notifier in notifiers}
    unsent = {resource_id for resource_id, channel in ledger.unsent_alerts(by_id) if channel in channels}
    tell_of_results(ledger, notifiers, {number: alert_of(by_id[number], facts) for number in sorted(unsent)})


def tell_of_troubles(
    ledger: Ledger,
    notifiers: Sequence[Mapping[str, Any]],
    facts: Mapping[str, str],
    *,
    run_id: int | None = None,
    is_over: bool = False,
) -> None:
    """Alert people of urgent results, and of withdrawals, that do not reach their receivers.

    What is held, in doubt or given up is told once for each destination and state, whatever is repeated.

    Args:
        ledger: What went wrong; it is recorded there, too, that people were told.
        notifiers: Who is told.
        facts: ``dag_id``, ``run_id`` and ``link`` of the run.
        run_id: Only of what this run owes; None for all.
        is_over: Whether the run ends, so that what still waits for its receiver is told of, too.
    """
    from qure_provider.ledger.deliveries import TROUBLED_STATES, DeliveryState

    if not notifiers:
        return
    states = (*TROUBLED_STATES, DeliveryState.WAITING) if is_over else TROUBLED_STATES
    for delivery in ledger.deliveries.in_trouble(run_id, states=states):
        rows = ledger.rows_by_id(delivery.resource_ids)
        if rows:
            mark = hashlib.sha256(delivery.destination.encode()).hexdigest()[:12]
            suffix = f"|{delivery.kind.value}|{mark}|{delivery.state.value}"
            _tell(ledger, notifiers, _worst(rows), suffix, _problem(delivery), facts)


def tell_of_missing(
    ledger: Ledger, notifiers: Sequence[Mapping[str, Any]], rows: Iterable[ResourceRow], facts: Mapping[str, str]
) -> None:
    """Alert people of results that they were told of and that never came home: failed, or timed out while fetched.

    A result that nobody has ever seen cannot be known to be urgent; the night's summary names it.

    Args:
        ledger: Where it is recorded who was told of what.
        notifiers: Who is told.
        rows: The run's resources.
        facts: ``dag_id``, ``run_id`` and ``link`` of the run.
    """
    from qure_provider.api.model import Outcome

    missing = {row.id: row for row in rows if row.outcome is not Outcome.READY} if notifiers else {}
    for resource_id in sorted({resource_id for resource_id, _ in ledger.sent_alerts(missing)}):
        row = missing[resource_id]
        outcome = row.outcome.value if row.outcome else "not there"
        _tell(ledger, notifiers, row, "|missing", f"its files could not be fetched, and it is now {outcome}", facts)


def _tell(
    ledger: Ledger,
    notifiers: Sequence[Mapping[str, Any]],
    row: ResourceRow,
    suffix: str,
    problem: str,
    facts: Mapping[str, str],
) -> None:
    sent = ledger.sent_alerts([row.id])
    waiting = [item for item in notifiers if (row.id, channel_of(item) + suffix) not in sent]
    if not waiting:
        return
    alert = replace(alert_of(row, facts), problem=problem)
    asyncio.run(send_to_all(waiting, alert, Entry(ledger, row.id, suffix)))


def _worst(rows: Sequence[ResourceRow]) -> ResourceRow:
    from qure_provider.reports.study_report import SEVERITY

    return min(rows, key=lambda row: SEVERITY.index(row.meaning))


def _problem(delivery: DeliveryRow) -> str:
    from qure_provider.ledger.deliveries import ParcelKind

    what = "the withdrawal of this result is " if delivery.kind is ParcelKind.WITHDRAWAL else ""
    return f"{what}{delivery.state.value} for {delivery.destination}: {delivery.reason}"
