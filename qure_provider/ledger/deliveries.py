"""The ledger's other half: what is owed to which receiver, and what became of it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, and_, func, insert, or_, select, update

from qure_provider.ledger.schema import deliveries, events, parcels

LEASE_SECONDS = 900.0
MAX_TRIES = 24
_FIRST_WAIT_SECONDS = 60.0
_LONGEST_WAIT_SECONDS = 3600.0


class ParcelKind(StrEnum):
    """What is sent as one."""

    OBJECTS = "objects"
    """The files of one resource's result."""
    REPORT = "report"
    """A study's clinical message by one product."""
    WITHDRAWAL = "withdrawal"
    """The same message taken back, or the objects rejected."""


class DeliveryState(StrEnum):
    """What became of a parcel on its way to a destination: exactly one."""

    WAITING = "waiting"
    SENDING = "sending"
    DELIVERED = "delivered"
    IN_DOUBT = "in doubt"
    HELD = "held"
    SUPERSEDED = "superseded"
    DEAD = "dead"
    NOT_WANTED = "not wanted"


OPEN_STATES = (DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.IN_DOUBT, DeliveryState.HELD)
"""The states that something is still to become of."""


class Event(StrEnum):
    """The closed list of what is worth remembering, append only."""

    HELD = "held"
    DELIVERED = "delivered"
    DEAD = "dead"
    SUPERSEDED = "superseded"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class NewParcel:
    """A parcel as it would be sent now.

    Attributes:
        kind: What it is.
        subject: A resource's UID, or a report's key.
        digest: Of its content: the same content is the same revision.
        study_instance_uid: The study.
        product: As the service named it.
        resource_ids: The resources it is made of.
        urgent: Whether it goes first.
    """

    kind: ParcelKind
    subject: str
    digest: str
    study_instance_uid: str
    product: str
    resource_ids: tuple[int, ...]
    urgent: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a rule says of a parcel and a destination.

    Attributes:
        destination: The connection's id, or a folder's URL.
        sends: Which file kinds; empty for all that the destination takes.
        state: ``waiting``, ``held`` or ``not wanted``.
        reason: Why it is held or not wanted.
    """

    destination: str
    sends: tuple[str, ...] = ()
    state: DeliveryState = DeliveryState.WAITING
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """A delivery, with its parcel.

    Attributes are those of the two tables. ``was_in_doubt``: an earlier try may have arrived; ``made_at``: when this
    revision was made, seconds since the epoch.
    """

    id: int
    kind: ParcelKind
    subject: str
    revision: int
    digest: str
    study_instance_uid: str
    product: str
    resource_ids: tuple[int, ...]
    urgent: bool
    destination: str
    sends: tuple[str, ...]
    state: DeliveryState
    reason: str
    tries: int
    receipt: Mapping[str, Any]
    was_in_doubt: bool
    made_at: float
    delivered_at: float | None


class Deliveries:
    """Deliveries and their states; each method is one transaction.

    Args:
        engine: The ledger's engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def enqueue(self, run_id: int | None, parcel: NewParcel, wanted: Sequence[Wanted]) -> int:
        """Record what is owed of a parcel; the same content to the same destination is owed once, whenever it is asked.

        A new revision supersedes what is still unsent of the older ones, destination by destination.

        Returns:
            The parcel's revision.
        """
        now = time.time()
        with self._engine.begin() as connection:
            self._one_at_a_time(connection, parcel.subject)
            newest = (
                connection.execute(
                    select(parcels)
                    .where(parcels.c.kind == parcel.kind.value, parcels.c.subject == parcel.subject)
                    .order_by(parcels.c.revision.desc())
                    .limit(1)
                )
                .mappings()
                .one_or_none()
            )
            if newest is not None and newest["digest"] == parcel.digest:
                parcel_id, revision = newest["id"], newest["revision"]
            else:
                revision = 1 if newest is None else newest["revision"] + 1
                parcel_id = _insert_parcel(connection, parcel, revision, now)
                self._supersede(connection, parcel, parcel_id, [item.destination for item in wanted])
            known = set(connection.scalars(select(deliveries.c.destination).where(deliveries.c.parcel_id == parcel_id)))
            for item in wanted:
                if item.destination in known:
                    continue
                _insert_delivery(connection, parcel_id, run_id, item, now)
                if item.state is DeliveryState.HELD:
                    _remember(connection, Event.HELD, parcel.study_instance_uid, parcel.subject, reason=item.reason)
            return int(revision)

    def claim(
        self,
        owner: str,
        *,
        destination: str,
        run_id: int | None = None,
        even_if_not_due: bool = False,
        limit: int = 32,
    ) -> list[DeliveryRow]:
        """Take deliveries to send, urgent ones first, and record that they are about to be sent.

        One is in flight for each study and destination, so that revisions arrive in order. What a dead worker was
        sending is taken over when its lease has run out; it may have arrived.

        Args:
            owner: Who takes them.
            destination: Where they go.
            run_id: Only of this run; None for all.
            even_if_not_due: Whether to take what waits for its next try, too.
            limit: How many at most.

        Returns:
            What was taken; ``was_in_doubt`` where an earlier try may have arrived.
        """
        now = time.time()
        is_due = deliveries.c.due_at <= now if not even_if_not_due else deliveries.c.due_at.is_not(None)
        is_open = or_(
            and_(
                deliveries.c.state.in_([DeliveryState.WAITING.value, DeliveryState.IN_DOUBT.value]),
                is_due,
            ),
            and_(deliveries.c.state == DeliveryState.SENDING.value, deliveries.c.lease_until < now),
        )
        query = (
            select(deliveries, *_PARCEL_COLUMNS)
            .join(parcels, parcels.c.id == deliveries.c.parcel_id)
            .where(deliveries.c.destination == destination, is_open)
            .order_by(parcels.c.urgent.desc(), deliveries.c.id)
            .limit(limit * 4)
        )
        if run_id is not None:
            query = query.where(deliveries.c.run_id == run_id)
        with self._engine.begin() as connection:
            self._one_at_a_time(connection, destination)
            busy = set(
                connection.scalars(
                    select(parcels.c.study_instance_uid)
                    .join(deliveries, deliveries.c.parcel_id == parcels.c.id)
                    .where(
                        deliveries.c.destination == destination,
                        deliveries.c.state == DeliveryState.SENDING.value,
                        deliveries.c.lease_until >= now,
                    )
                )
            )
            taken: list[DeliveryRow] = []
            for row in connection.execute(query).mappings():
                if row["study_instance_uid"] in busy or len(taken) >= limit:
                    continue
                busy.add(row["study_instance_uid"])
                taken.append(_row(row))
            if taken:
                connection.execute(
                    update(deliveries)
                    .where(deliveries.c.id.in_([row.id for row in taken]))
                    .values(
                        state=DeliveryState.SENDING.value,
                        tries=deliveries.c.tries + 1,
                        sending_at=now,
                        lease_owner=owner,
                        lease_until=now + LEASE_SECONDS,
                    )
                )
            return taken

    def delivered(self, delivery: DeliveryRow, receipt: Mapping[str, Any]) -> None:
        """Record that it arrived, and how that is known."""
        with self._engine.begin() as connection:
            _set(
                connection,
                [delivery.id],
                state=DeliveryState.DELIVERED,
                reason="",
                receipt=dict(receipt),
                delivered_at=time.time(),
            )
            _remember(
                connection,
                Event.DELIVERED,
                delivery.study_instance_uid,
                delivery.subject,
                destination=delivery.destination,
                revision=delivery.revision,
            )

    def try_later(self, delivery: DeliveryRow, reason: str, *, in_doubt: bool = False) -> DeliveryState:
        """Record that it did not arrive, or that nobody knows; it is tried again, less and less often, 24 times.

        Returns:
            Its new state: waiting, in doubt, or dead after the last try.
        """
        tries = delivery.tries + 1
        if tries >= MAX_TRIES:
            self.dead(delivery, f"given up after {tries} tries; the last one: {reason}")
            return DeliveryState.DEAD
        wait = min(_FIRST_WAIT_SECONDS * 2 ** (tries - 1), _LONGEST_WAIT_SECONDS) * random.uniform(0.8, 1.2)  # noqa: S311
        state = DeliveryState.IN_DOUBT if in_doubt else DeliveryState.WAITING
        with self._engine.begin() as connection:
            _set(connection, [delivery.id], state=state, reason=reason, due_at=time.time() + wait)
        return state

    def put_back(self, delivered: Iterable[DeliveryRow], reason: str) -> None:
        """Record that these were not tried after all; it counts as no try."""
        with self._engine.begin() as connection:
            for row in delivered:
                _set(connection, [row.id], state=row.state, reason=reason, tries=row.tries)

    def held(self, delivery: DeliveryRow, reason: str) -> None:
        """Record that it must not be sent as it is."""
        with self._engine.begin() as connection:
            _set(connection, [delivery.id], state=DeliveryState.HELD, reason=reason)
            _remember(connection, Event.HELD, delivery.study_instance_uid, delivery.subject, reason=reason)

    def dead(self, delivery: DeliveryRow, reason: str) -> None:
        """Record that it will not be tried again."""
        with self._engine.begin() as connection:
            _set(connection, [delivery.id], state=DeliveryState.DEAD, reason=reason)
            _remember(connection, Event.DEAD, delivery.study_instance_uid, delivery.subject, reason=reason)

    def reopen(self, *, states: Sequence[DeliveryState], destinations: Sequence[str] = (), since: float = 0.0) -> int:
        """Make deliveries wait again: dead ones after their receiver was mended, held ones to be checked again.

        Args:
            states: Which ones.
            destinations: Only to these; empty for all.
            since: Only what was enqueued after this time, seconds since the epoch.

        Returns:
            How many.
        """
        condition = and_(deliveries.c.state.in_([state.value for state in states]), deliveries.c.created_at >= since)
        if destinations:
            condition = and_(condition, deliveries.c.destination.in_(destinations))
        with self._engine.begin() as connection:
            ids = list(connection.scalars(select(deliveries.c.id).where(condition)))
            _set(connection, ids, state=DeliveryState.WAITING, tries=0, due_at=0.0)
            return len(ids)

    def destinations_owed(self) -> list[str]:
        """Return every destination that something is still owed to."""
        owed = [DeliveryState.WAITING.value, DeliveryState.IN_DOUBT.value, DeliveryState.SENDING.value]
        query = select(deliveries.c.destination).where(deliveries.c.state.in_(owed)).distinct()
        with self._engine.begin() as connection:
            return sorted(connection.scalars(query))

    def of_run(self, run_id: int) -> list[DeliveryRow]:
        """Return all deliveries of a run."""
        return self._select(deliveries.c.run_id == run_id)

    def of_study(self, study_instance_uid: str) -> list[DeliveryRow]:
        """Return all deliveries of a study."""
        return self._select(parcels.c.study_instance_uid == study_instance_uid)

    def earlier_receipts(self, delivery: DeliveryRow) -> list[Mapping[str, Any]]:
        """Return the receipts of older revisions of the same parcel at the same destination."""
        condition = and_(
            parcels.c.kind == delivery.kind.value,
            parcels.c.subject == delivery.subject,
            parcels.c.revision < delivery.revision,
            deliveries.c.destination == delivery.destination,
            deliveries.c.state == DeliveryState.DELIVERED.value,
        )
        return [row.receipt for row in self._select(condition)]

    def counts(self, run_id: int) -> dict[str, dict[str, int]]:
        """Return, for each destination, how many deliveries of a run are in which state."""
        query = (
            select(deliveries.c.destination, deliveries.c.state, func.count())
            .where(deliveries.c.run_id == run_id)
            .group_by(deliveries.c.destination, deliveries.c.state)
        )
        counted: dict[str, dict[str, int]] = {}
        with self._engine.begin() as connection:
            for destination, state, number in connection.execute(query):
                counted.setdefault(destination, {})[state] = number
        return counted

    def delivered_since(self, since: float, *, study_instance_uid: str = "", product: str = "") -> list[DeliveryRow]:
        """Return what was delivered since a time, not counting withdrawals.

        Args:
            since: Seconds since the epoch.
            study_instance_uid: Only of this study.
            product: Only by this product.
        """
        condition = and_(
            deliveries.c.state == DeliveryState.DELIVERED.value,
            deliveries.c.delivered_at >= since,
            parcels.c.kind != ParcelKind.WITHDRAWAL.value,
        )
        if study_instance_uid:
            condition = and_(condition, parcels.c.study_instance_uid == study_instance_uid)
        if product:
            condition = and_(condition, parcels.c.product == product)
        return self._select(condition)

    def withdraw(self, delivery: DeliveryRow, *, by: str, why: str) -> None:
        """Owe a destination the withdrawal of what it was delivered, and send nothing more of it.

        Args:
            delivery: What was delivered.
            by: Who takes it back.
            why: Why.
        """
        parcel = NewParcel(
            kind=ParcelKind.WITHDRAWAL,
            subject=delivery.subject,
            digest=delivery.digest,
            study_instance_uid=delivery.study_instance_uid,
            product=delivery.product,
            resource_ids=delivery.resource_ids,
            urgent=True,
        )
        self.enqueue(None, parcel, [Wanted(delivery.destination, delivery.sends)])
        with self._engine.begin() as connection:
            unsent = (
                select(deliveries.c.id)
                .join(parcels, parcels.c.id == deliveries.c.parcel_id)
                .where(
                    parcels.c.kind == delivery.kind.value,
                    parcels.c.subject == delivery.subject,
                    deliveries.c.destination == delivery.destination,
                    deliveries.c.state.in_([DeliveryState.WAITING.value, DeliveryState.HELD.value]),
                )
            )
            ids = list(connection.scalars(unsent))
            _set(connection, ids, state=DeliveryState.SUPERSEDED, reason="it was withdrawn")
            _remember(
                connection,
                Event.WITHDRAWN,
                delivery.study_instance_uid,
                delivery.subject,
                destination=delivery.destination,
                by=by,
                why=why,
            )

    def withdrawn_because(self, delivery: DeliveryRow) -> str:
        """Return why what a destination was delivered is taken back; empty if it is not."""
        query = (
            select(events.c.detail)
            .where(
                events.c.kind == Event.WITHDRAWN.value,
                events.c.study_instance_uid == delivery.study_instance_uid,
                events.c.subject == delivery.subject,
            )
            .order_by(events.c.id.desc())
        )
        with self._engine.begin() as connection:
            details = connection.scalars(query).all()
        return next((detail["why"] for detail in details if detail["destination"] == delivery.destination), "")

    def receipts(self, kind: ParcelKind, subject: str, destination: str) -> list[Mapping[str, Any]]:
        """Return the receipts of every revision of a parcel at a destination."""
        condition = and_(
            parcels.c.kind == kind.value,
            parcels.c.subject == subject,
            deliveries.c.destination == destination,
            deliveries.c.state == DeliveryState.DELIVERED.value,
        )
        return [row.receipt for row in self._select(condition)]

    def events_of_study(self, study_instance_uid: str) -> list[dict[str, Any]]:
        """Return what happened to a study, oldest first."""
        query = select(events).where(events.c.study_instance_uid == study_instance_uid).order_by(events.c.id)
        with self._engine.begin() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def _select(self, condition: Any) -> list[DeliveryRow]:
        query = (
            select(deliveries, *_PARCEL_COLUMNS)
            .join(parcels, parcels.c.id == deliveries.c.parcel_id)
            .where(condition)
            .order_by(deliveries.c.id)
        )
        with self._engine.begin() as connection:
            return [_row(row) for row in connection.execute(query).mappings()]

    def _one_at_a_time(self, connection: Connection, name: str) -> None:
        """Let nobody else in who gives the same name, until the transaction ends; SQLite has one writer anyway."""
        if connection.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(name))))

    def _supersede(
        self, connection: Connection, parcel: NewParcel, parcel_id: int, destinations: Sequence[str]
    ) -> None:
        unsent = [DeliveryState.WAITING.value, DeliveryState.HELD.value, DeliveryState.DEAD.value]
        older = (
            select(deliveries.c.id)
            .join(parcels, parcels.c.id == deliveries.c.parcel_id)
            .where(
                parcels.c.kind == parcel.kind.value,
                parcels.c.subject == parcel.subject,
                parcels.c.id != parcel_id,
                deliveries.c.destination.in_(destinations),
                deliveries.c.state.in_(unsent),
            )
        )
        ids = list(connection.scalars(older))
        if ids:
            _set(connection, ids, state=DeliveryState.SUPERSEDED, reason="a newer revision takes its place")
            _remember(connection, Event.SUPERSEDED, parcel.study_instance_uid, parcel.subject, number=len(ids))


_PARCEL_COLUMNS = (
    parcels.c.kind,
    parcels.c.subject,
    parcels.c.revision,
    parcels.c.digest,
    parcels.c.study_instance_uid,
    parcels.c.product,
    parcels.c.resource_ids,
    parcels.c.urgent,
    parcels.c.created_at.label("made_at"),
)


def _insert_parcel(connection: Connection, parcel: NewParcel, revision: int, now: float) -> int:
    statement = (
        insert(parcels)
        .values(
            kind=parcel.kind.value,
            subject=parcel.subject,
            revision=revision,
            digest=parcel.digest,
            study_instance_uid=parcel.study_instance_uid,
            product=parcel.product,
            resource_ids=list(parcel.resource_ids),
            urgent=parcel.urgent,
            created_at=now,
        )
        .returning(parcels.c.id)
    )
    return int(connection.execute(statement).scalar_one())


def _insert_delivery(connection: Connection, parcel_id: int, run_id: int | None, item: Wanted, now: float) -> None:
    connection.execute(
        insert(deliveries).values(
            parcel_id=parcel_id,
            destination=item.destination,
            run_id=run_id,
            sends=list(item.sends),
            state=item.state.value,
            reason=item.reason,
            tries=0,
            due_at=now,
            lease_owner="",
            lease_until=0.0,
            receipt={},
            created_at=now,
        )
    )


def _set(connection: Connection, ids: Sequence[int], *, state: DeliveryState, **values: Any) -> None:
    connection.execute(
        update(deliveries)
        .where(deliveries.c.id.in_(ids))
        .values(state=state.value, lease_owner="", lease_until=0.0, **values)
    )


def _remember(connection: Connection, event: Event, study_instance_uid: str, subject: str, **detail: Any) -> None:
    connection.execute(
        insert(events).values(
            at=time.time(), kind=event.value, study_instance_uid=study_instance_uid, subject=subject, detail=detail
        )
    )


def _row(row: RowMapping) -> DeliveryRow:
    state = DeliveryState(row["state"])
    return DeliveryRow(
        id=row["id"],
        kind=ParcelKind(row["kind"]),
        subject=row["subject"],
        revision=row["revision"],
        digest=row["digest"],
        study_instance_uid=row["study_instance_uid"],
        product=row["product"],
        resource_ids=tuple(row["resource_ids"]),
        urgent=row["urgent"],
        destination=row["destination"],
        sends=tuple(row["sends"]),
        state=state,
        reason=row["reason"],
        tries=row["tries"],
        receipt=row["receipt"],
        was_in_doubt=state in {DeliveryState.IN_DOUBT, DeliveryState.SENDING},
        made_at=row["made_at"],
        delivered_at=row["delivered_at"],
    )
