"""Telling people when an urgent result does not reach its readers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qure_provider import settings
from qure_provider.triggers.alerts import Alert, channel_of, send_to_all

if TYPE_CHECKING:
    from qure_provider.delivery.courier import Trouble
    from qure_provider.ledger.ledger import Ledger


def tell_of_troubles(
    ledger: Ledger, notifiers: Sequence[Mapping[str, Any]], troubles: Iterable[Trouble], facts: Mapping[str, str]
) -> None:
    """Alert people of urgent results that are held, in doubt or given up; once for each destination and state.

    Args:
        ledger: Where it is recorded that they were told.
        notifiers: Who is told.
        troubles: What went wrong.
        facts: ``dag_id``, ``run_id`` and ``link`` of the run.
    """
    for trouble in troubles:
        delivery = trouble.delivery
        if not delivery.urgent:
            continue
        resource_id = delivery.resource_ids[0]
        suffix = f"|{delivery.destination}|{trouble.state.value}"
        sent = ledger.sent_alerts([resource_id])
        waiting = [item for item in notifiers if (resource_id, channel_of(item) + suffix) not in sent]
        if not waiting:
            continue
        alert = Alert(
            study_ref=settings.short_ref(delivery.study_instance_uid),
            product=delivery.product,
            meaning="urgent",
            triage="see the result",
            problem=f"{trouble.state.value} for {delivery.destination}: {trouble.reason}",
            **facts,
        )
        for channel, error in asyncio.run(send_to_all(waiting, alert)).items():
            ledger.record_alert(resource_id, channel + suffix, error=error)
