"""What became of one study and of each of its deliveries, by the ledger, as it is now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from qure_provider import settings
from qure_provider.ledger.database import LedgerError
from qure_provider.ledger.deliveries import DeliveryRow
from qure_provider.ledger.ledger import Ledger, ResourceRow
from qure_provider.plugin.archive import KeptRun, NotKeptError
from qure_provider.store import ledger_url


@dataclass(frozen=True, slots=True)
class KnownResource:
    """A resource, without whose it is.

    Attributes:
        ref: Its pseudonym.
        row: What is recorded of it.
        is_shown: Whether the run that is looked at has a page of its result.
        told: Of how many alerts about it that were sent.
    """

    ref: str
    row: ResourceRow
    is_shown: bool
    told: int


@dataclass(frozen=True, slots=True)
class KnownStudy:
    """What the ledger knows of a study.

    Attributes:
        ref: Its pseudonym.
        resources: Its resources, each in its newest revision.
        deliveries: Its deliveries, the newest last, each with the pseudonym of the resource that it is about, which is
            empty for a report.
        events: What happened to it, oldest first.
    """

    ref: str
    resources: tuple[KnownResource, ...]
    deliveries: tuple[tuple[DeliveryRow, str], ...]
    events: tuple[Mapping[str, Any], ...]


def study_of(run: KeptRun, ref: str) -> KnownStudy:
    """Return what is known of a study.

    Args:
        run: A run that answers for it.
        ref: The study's pseudonym.

    Raises:
        NotKeptError: If the run names none so, or the ledger does not know it or cannot be read here.
    """
    shown = {row.resource for row in run.summary.rows if row.study == ref and row.folder}
    if not any(row.study == ref for row in run.summary.rows):
        raise NotKeptError("This night has no such study.")
    try:
        with Ledger.open(ledger_url(settings.store_root())) as ledger:
            return _read(ledger, ref, _uid(ledger, run, ref), shown)
    except LedgerError as error:
        raise NotKeptError(str(error)) from None
    except SQLAlchemyError as error:
        raise NotKeptError(
            f"The ledger cannot be read here ({type(error).__name__}): the API server needs the store's disk, or "
            "[qure] ledger_conn_id."
        ) from None


def _uid(ledger: Ledger, run: KeptRun, ref: str) -> str:
    runs = [known for known in ledger.runs_of_night(run.summary.night) if known.folder == run.folder]
    uids = {row.identity.study_instance_uid for known in runs for row in ledger.rows_of_run(known.id)}
    uid = next((uid for uid in uids if settings.short_ref(uid) == ref), None)
    if uid is None:
        raise NotKeptError(
            "The ledger knows this study no more: its night was pruned, or [qure] pseudonym_key is not the one "
            "that the night was summarized with."
        )
    return uid


def _read(ledger: Ledger, ref: str, uid: str, shown: set[str]) -> KnownStudy:
    rows = ledger.rows_of_study(uid)
    told = [number for number, _ in ledger.sent_alerts(row.id for row in rows)]
    refs = {row.uid: settings.short_ref(row.uid) for row in rows}
    return KnownStudy(
        ref=ref,
        resources=tuple(KnownResource(refs[row.uid], row, refs[row.uid] in shown, told.count(row.id)) for row in rows),
        deliveries=tuple((row, refs.get(row.subject, "")) for row in ledger.deliveries.of_study(uid)),
        events=tuple(ledger.deliveries.events_of_study(uid)),
    )
