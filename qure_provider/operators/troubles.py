"""Telling people when an urgent result does not reach its readers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qure_provider import settings
from qure_provider.triggers.alerts import Alert, channel_of, send_to_all

if TYPE_CHECKING:
    from qure_provider.ledger.deliveries import DeliveryRow
    from qure_provider.ledger.ledger import Ledger, ResourceRow


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
    alert = Alert(
        study_ref=settings.short_ref(row.identity.study_instance_uid),
        product=row.usecase or "the service",
        meaning=row.meaning.value,
        triage=row.triage or "none",
        modality=row.modality,
        station=row.station_name,
        acquired=row.acquired,
        problem=problem,
        **facts,
    )
    for channel, error in asyncio.run(send_to_all(waiting, alert)).items():
        ledger.record_alert(row.id, channel + suffix, error=error)


def _worst(rows: Sequence[ResourceRow]) -> ResourceRow:
    from qure_provider.reports.study_report import SEVERITY

    return min(rows, key=lambda row: SEVERITY.index(row.meaning))


def _problem(delivery: DeliveryRow) -> str:
    from qure_provider.ledger.deliveries import ParcelKind

    what = "the withdrawal of this result is " if delivery.kind is ParcelKind.WITHDRAWAL else ""
    return f"{what}{delivery.state.value} for {delivery.destination}: {delivery.reason}"
