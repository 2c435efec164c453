"""The ledger's other half: what is owed to which receiver, and what became of it."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    RowMapping,
    and_,
    exists,
    func,
    insert,
    or_,
    select,
    text,
    union,
    update,
)

from qure_provider.ledger.schema import deliveries, events, parcels, planned, resources, studies

LEASE_SECONDS = 900.0
MAX_TRIES = 168
"""A week of hourly ones: a receiver that was down over a long weekend gets everything when it is back."""
NOT_READY = "there is no ready result now"
"""Why something waits that could be sent again as soon as its result is there."""
_LOCK = 7387302
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
TROUBLED_STATES = (DeliveryState.HELD, DeliveryState.DEAD, DeliveryState.IN_DOUBT)
"""The states that somebody should know of."""
_UNSENT = (DeliveryState.WAITING, DeliveryState.IN_DOUBT, DeliveryState.HELD, DeliveryState.DEAD)
"""The states that a newer revision, or a withdrawal, ends."""
_REACHED = (DeliveryState.DELIVERED, DeliveryState.SENDING, DeliveryState.IN_DOUBT, DeliveryState.DEAD)
"""The states in which the receiver may have it; of what was refused at last, an earlier try or a part."""


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

    Attributes are those of the two tables. ``was_in_doubt``: an earlier try may have arrived; ``owner``: who is sending
    it; ``made_at``: when this revision was made, seconds since the epoch.
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
    owner: str
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

        A new revision supersedes what is still unsent of the older ones, destination by destination. What no rule
        wanted at first is owed as soon as one does; what was held, or had no ready result, waits again where nothing
        speaks against it now, to be checked once more when it is sent. What turns out to be urgent stays so.

        Returns:
            The parcel's revision.
        """
        with self._alone() as connection:
            return _enqueue(connection, run_id, parcel, wanted)

    def claim(
        self,
        owner: str,
        *,
        destination: str,
        run_id: int | None = None,
        even_if_not_due: bool = False,
        not_begun_since: float | None = None,
        only_urgent: bool = False,
        limit: int = 32,
    ) -> list[DeliveryRow]:
        """Take deliveries to send, urgent ones first, and record that they are about to be sent.

        One is in flight for each study and destination, so that revisions arrive in order; an older revision is never
        sent after a newer one. What a dead worker was sending is taken over when its lease has run out; it may have
        arrived.

        Args:
            owner: Who takes them.
            destination: Where they go.
            run_id: Only of this run; None for all.
            even_if_not_due: Whether to take what waits for its next try, too.
            not_begun_since: Not what was tried after this time, seconds since the epoch.
            only_urgent: Whether to leave the others to somebody else.
            limit: How many at most.

        Returns:
            What was taken; ``was_in_doubt`` where an earlier try may have arrived.
        """
        now = time.time()
        is_open = or_(
            deliveries.c.state.in_([DeliveryState.WAITING.value, DeliveryState.IN_DOUBT.value]), _is_abandoned(now)
        )
        condition = and_(deliveries.c.destination == destination, is_open, ~_is_study_in_flight(now))
        if not even_if_not_due:
            condition = and_(condition, or_(deliveries.c.due_at <= now, _is_abandoned(now)))
        if not_begun_since is not None:
            condition = and_(condition, func.coalesce(deliveries.c.sending_at, 0.0) < not_begun_since)
        if run_id is not None:
            condition = and_(condition, deliveries.c.run_id == run_id)
        if only_urgent:
            condition = and_(condition, parcels.c.urgent)
        query = (
            select(deliveries, *_PARCEL_COLUMNS)
            .join(parcels, parcels.c.id == deliveries.c.parcel_id)
            .where(condition)
            .order_by(parcels.c.urgent.desc(), deliveries.c.id)
            .limit(limit * 4)
            .with_for_update(of=deliveries)
        )
        with self._alone() as connection:
            _supersede(connection, and_(deliveries.c.destination == destination, _is_unsent(now)))
            taken: dict[str, DeliveryRow] = {}
            for row in connection.execute(query).mappings():
                if len(taken) < limit:
                    taken.setdefault(row["study_instance_uid"], _row(row, owner))
            connection.execute(
                update(deliveries)
                .where(deliveries.c.id.in_([row.id for row in taken.values()]))
                .values(
                    state=DeliveryState.SENDING.value,
                    may_have_arrived=_MAY_HAVE_ARRIVED,
                    tries=deliveries.c.tries + 1,
                    sending_at=now,
                    lease_owner=owner,
                    lease_until=now + LEASE_SECONDS,
                )
            )
            return list(taken.values())

    def renew(self, delivery: DeliveryRow) -> bool:
        """Lengthen the lease of what was taken, right before it is sent.

        Returns:
            Whether it is still the owner's; if not, another worker has taken it over, and it must be left alone.
        """
        now = time.time()
        with self._engine.begin() as connection:
            return _settle(connection, delivery, sending_at=now, lease_until=now + LEASE_SECONDS)

    def delivered(self, delivery: DeliveryRow, receipt: Mapping[str, Any]) -> None:
        """Record that it arrived, and how that is known: a fact, whoever holds the lease by now."""
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
        """Record that it did not arrive, or that nobody knows; it is tried again, less and less often.

        What was in doubt stays so: that a later try failed does not say that the first one did.

        Returns:
            Its new state: waiting, in doubt, or dead after the last of ``MAX_TRIES``.
        """
        tries = delivery.tries + 1
        if tries >= MAX_TRIES:
            self.dead(delivery, f"given up after {tries} tries; the last one: {reason}")
            return DeliveryState.DEAD
        wait = min(_FIRST_WAIT_SECONDS * 2 ** min(tries - 1, 10), _LONGEST_WAIT_SECONDS) * random.uniform(0.8, 1.2)  # noqa: S311
        state = DeliveryState.IN_DOUBT if in_doubt or delivery.was_in_doubt else DeliveryState.WAITING
        doubt = {"may_have_arrived": True} if in_doubt else {}
        with self._engine.begin() as connection:
            _settle(connection, delivery, state=state, reason=reason, due_at=time.time() + wait, **doubt)
        return state

    def put_back(self, taken: Iterable[DeliveryRow]) -> None:
        """Record that these were not tried after all; it counts as no try."""
        with self._engine.begin() as connection:
            for row in taken:
                _settle(connection, row, state=row.state, tries=row.tries)

    def held(self, delivery: DeliveryRow, reason: str) -> None:
        """Record that it must not be sent as it is."""
        self._end(delivery, DeliveryState.HELD, Event.HELD, reason)

    def dead(self, delivery: DeliveryRow, reason: str) -> None:
        """Record that it will not be tried again."""
        self._end(delivery, DeliveryState.DEAD, Event.DEAD, reason)

    def _end(self, delivery: DeliveryRow, state: DeliveryState, event: Event, reason: str) -> None:
        with self._engine.begin() as connection:
            if _settle(connection, delivery, state=state, reason=reason):
                study, subject = delivery.study_instance_uid, delivery.subject
                _remember(connection, event, study, subject, destination=delivery.destination, reason=reason)

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
        with self._alone() as connection:
            ids = list(connection.scalars(select(deliveries.c.id).where(condition)))
            _set(connection, ids, state=DeliveryState.WAITING, tries=0, due_at=0.0)
            return len(ids)

    def note(self, destination: str, reason: str) -> None:
        """Record why nothing that waits for a destination was tried."""
        waits = deliveries.c.state.in_([DeliveryState.WAITING.value, DeliveryState.IN_DOUBT.value])
        with self._engine.begin() as connection:
            connection.execute(
                update(deliveries).where(deliveries.c.destination == destination, waits).values(reason=reason)
            )

    def destinations_owed(self) -> list[str]:
        """Return every destination that something is still owed to."""
        owed = [DeliveryState.WAITING.value, DeliveryState.IN_DOUBT.value, DeliveryState.SENDING.value]
        query = select(deliveries.c.destination).where(deliveries.c.state.in_(owed)).distinct()
        with self._engine.begin() as connection:
            return sorted(connection.scalars(query))

    def destinations(self) -> list[str]:
        """Return every destination that a delivery is recorded for."""
        with self._engine.begin() as connection:
            return sorted(connection.scalars(select(deliveries.c.destination).distinct()))

    def is_owed(self, run_id: int) -> bool:
        """Return whether anything that a run owes is due to be sent."""
        now = time.time()
        waits = deliveries.c.state.in_([DeliveryState.WAITING.value, DeliveryState.IN_DOUBT.value])
        is_due = or_(and_(waits, deliveries.c.due_at <= now), _is_abandoned(now))
        query = select(deliveries.c.id).where(deliveries.c.run_id == run_id, is_due).limit(1)
        with self._engine.begin() as connection:
            return connection.scalar(query) is not None

    def of_run(self, run_id: int) -> list[DeliveryRow]:
        """Return all deliveries of a run, and what other runs still owe of its studies."""
        return self._select(_is_of_run(run_id))

    def of_study(self, study_instance_uid: str) -> list[DeliveryRow]:
        """Return all deliveries of a study."""
        return self._select(parcels.c.study_instance_uid == study_instance_uid)

    def earlier_receipts(self, delivery: DeliveryRow) -> list[Mapping[str, Any]]:
        """Return the receipts of older revisions of a parcel at its destination that were not taken back there."""
        condition = and_(
            parcels.c.kind == delivery.kind.value,
            parcels.c.subject == delivery.subject,
            parcels.c.revision < delivery.revision,
            deliveries.c.destination == delivery.destination,
            deliveries.c.state == DeliveryState.DELIVERED.value,
        )
        found = self._select(condition)
        with self._engine.begin() as connection:
            gone = _withdrawn(connection, {row.study_instance_uid for row in found})
        return [row.receipt for row in found if not _is_taken_back(row, gone)]

    def receipts_of_study(self, delivery: DeliveryRow) -> list[Mapping[str, Any]]:
        """Return the receipts of all objects of a delivery's study at its destination, also of what was taken back."""
        condition = and_(
            parcels.c.kind == ParcelKind.OBJECTS.value,
            parcels.c.study_instance_uid == delivery.study_instance_uid,
            deliveries.c.destination == delivery.destination,
            deliveries.c.state == DeliveryState.DELIVERED.value,
        )
        return [row.receipt for row in self._select(condition)]

    def counts(self, run_id: int) -> dict[str, dict[str, int]]:
        """Return, for each destination, how many deliveries of a run are in which state."""
        query = (
            select(deliveries.c.destination, deliveries.c.state, func.count())
            .where(_is_of_run(run_id))
            .group_by(deliveries.c.destination, deliveries.c.state)
        )
        counted: dict[str, dict[str, int]] = {}
        with self._engine.begin() as connection:
            for destination, state, number in connection.execute(query):
                counted.setdefault(destination, {})[state] = number
        return counted

    def in_trouble(
        self, run_id: int | None = None, *, states: Sequence[DeliveryState] = TROUBLED_STATES
    ) -> list[DeliveryRow]:
        """Return deliveries of urgent results, and of withdrawals, that somebody should know of.

        A withdrawal that could not be sent is one of them at once: until it arrives its receiver shows what was taken
        back.

        Args:
            run_id: Only of this run and of its studies; None for all.
            states: Which states those are.
        """
        is_withdrawal_waiting = and_(
            parcels.c.kind == ParcelKind.WITHDRAWAL.value,
            deliveries.c.state == DeliveryState.WAITING.value,
            deliveries.c.reason != "",
        )
        is_troubled = or_(deliveries.c.state.in_([state.value for state in states]), is_withdrawal_waiting)
        condition = and_(parcels.c.urgent, is_troubled)
        return self._select(condition if run_id is None else and_(condition, _is_of_run(run_id)))

    def not_withdrawn(self, *, since: float = 0.0, study_instance_uid: str = "") -> list[DeliveryRow]:
        """Return what was, may have been or still would be delivered, and is not taken back.

        Args:
            since: Of what was delivered only that since this time, seconds since the epoch.
            study_instance_uid: Only of this study.
        """
        is_superseded = deliveries.c.state == DeliveryState.SUPERSEDED.value
        condition = and_(
            deliveries.c.state != DeliveryState.NOT_WANTED.value,
            or_(~is_superseded, deliveries.c.may_have_arrived),
            or_(deliveries.c.delivered_at.is_(None), deliveries.c.delivered_at >= since),
            parcels.c.kind != ParcelKind.WITHDRAWAL.value,
        )
        if study_instance_uid:
            condition = and_(condition, parcels.c.study_instance_uid == study_instance_uid)
        found = self._select(condition)
        with self._engine.begin() as connection:
            gone = _withdrawn(connection, {row.study_instance_uid for row in found})
        return [row for row in found if not _is_taken_back(row, gone)]

    def standing(self, studies: Collection[str]) -> list[DeliveryRow]:
        """Return what was delivered of some studies, in any revision, and is not taken back."""
        names = sorted(studies)
        found: list[DeliveryRow] = []
        for start in range(0, len(names), 500):
            found += self._select(
                and_(
                    deliveries.c.state == DeliveryState.DELIVERED.value,
                    parcels.c.kind != ParcelKind.WITHDRAWAL.value,
                    parcels.c.study_instance_uid.in_(names[start : start + 500]),
                )
            )
        with self._engine.begin() as connection:
            gone = _withdrawn(connection, studies)
        return [row for row in found if not _is_taken_back(row, gone)]

    def withdraw(self, taken_back: Iterable[DeliveryRow], *, by: str, why: str) -> None:
        """Owe destinations the withdrawal of what they have or may have, and send nothing more of it.

        Args:
            taken_back: From ``not_withdrawn``.
            by: Who takes it back.
            why: Why.
        """
        ids = [row.id for row in taken_back]
        with self._alone() as connection:
            groups: dict[tuple[str, str], list[DeliveryRow]] = {}
            for row in _found(connection, deliveries.c.id.in_(ids)):  # some may have been sent since they were read
                groups.setdefault((row.subject, row.destination), []).append(row)
            for (subject, destination), rows in groups.items():
                reached = [row for row in rows if row.state in _REACHED or row.was_in_doubt]
                if reached:
                    newest = max(reached, key=lambda row: row.revision)
                    parcel = NewParcel(
                        kind=ParcelKind.WITHDRAWAL,
                        subject=subject,
                        digest=newest.digest,
                        study_instance_uid=newest.study_instance_uid,
                        product=newest.product,
                        resource_ids=newest.resource_ids,
                        urgent=True,
                    )
                    _enqueue(connection, None, parcel, [Wanted(destination, newest.sends)])
                unsent = and_(
                    deliveries.c.destination == destination,
                    deliveries.c.state.in_([state.value for state in _UNSENT]),
                    deliveries.c.parcel_id.in_(
                        select(parcels.c.id).where(parcels.c.subject == subject, parcels.c.kind == rows[0].kind.value)
                    ),
                )
                ids = list(connection.scalars(select(deliveries.c.id).where(unsent)))
                _set(connection, ids, state=DeliveryState.SUPERSEDED, reason="it was withdrawn")
                _remember(
                    connection,
                    Event.WITHDRAWN,
                    rows[0].study_instance_uid,
                    subject,
                    destination=destination,
                    resources=sorted({number for row in rows for number in row.resource_ids}),
                    by=by,
                    why=why,
                )

    def withdrawn_resources(self, study_instance_uid: str) -> set[int]:
        """Return the resources of a study whose results were taken back somewhere: they go nowhere any more."""
        with self._engine.begin() as connection:
            found = _withdrawn(connection, {study_instance_uid})
        return set().union(*found.values())

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

    def _select(self, condition: ColumnElement[bool]) -> list[DeliveryRow]:
        with self._engine.begin() as connection:
            return _found(connection, condition)

    @contextmanager
    def _alone(self) -> Iterator[Connection]:
        """Begin a transaction beside which no other enqueues, claims or withdraws; SQLite has one writer anyway."""
        with self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            yield connection


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


_FORMER, _FORMER_PARCEL = deliveries.alias(), parcels.alias()
_MAY_HAVE_ARRIVED = or_(
    deliveries.c.may_have_arrived,
    deliveries.c.state.in_([DeliveryState.SENDING.value, DeliveryState.IN_DOUBT.value, DeliveryState.DEAD.value]),
)
"""What to remember of a delivery that leaves its state."""


def _found(connection: Connection, condition: ColumnElement[bool]) -> list[DeliveryRow]:
    query = (
        select(deliveries, *_PARCEL_COLUMNS)
        .join(parcels, parcels.c.id == deliveries.c.parcel_id)
        .where(condition)
        .order_by(deliveries.c.id)
    )
    return [_row(row) for row in connection.execute(query).mappings()]


def _is_of_run(run_id: int) -> ColumnElement[bool]:
    """Whether a run owes it, or it is of the run's studies and has not arrived, whoever owes it."""
    other, other_parcel = deliveries.alias(), parcels.alias()
    of_studies = (
        select(studies.c.study_instance_uid)
        .join(resources, resources.c.study_id == studies.c.id)
        .join(planned, planned.c.resource_id == resources.c.id)
        .where(planned.c.run_id == run_id)
    )
    owed = (
        select(other.c.id)
        .join(other_parcel, other_parcel.c.id == other.c.parcel_id)
        .where(
            other.c.state.in_([*(state.value for state in OPEN_STATES), DeliveryState.DEAD.value]),
            other_parcel.c.study_instance_uid.in_(of_studies),
        )
    )
    own = select(other.c.id).where(other.c.run_id == run_id)
    return deliveries.c.id.in_(union(own, owed))


def _is_abandoned(now: float) -> ColumnElement[bool]:
    """Whether the worker that was sending it has lost its lease."""
    return and_(deliveries.c.state == DeliveryState.SENDING.value, deliveries.c.lease_until < now)


def _is_unsent(now: float) -> ColumnElement[bool]:
    return or_(deliveries.c.state.in_([state.value for state in _UNSENT]), _is_abandoned(now))


def _is_study_in_flight(now: float) -> ColumnElement[bool]:
    """Whether something else of the same study is being sent to the same destination."""
    return exists(
        select(_FORMER.c.id)
        .join(_FORMER_PARCEL, _FORMER_PARCEL.c.id == _FORMER.c.parcel_id)
        .where(
            _FORMER.c.destination == deliveries.c.destination,
            _FORMER.c.state == DeliveryState.SENDING.value,
            _FORMER.c.lease_until >= now,
            _FORMER_PARCEL.c.study_instance_uid == parcels.c.study_instance_uid,
        )
        .correlate(deliveries, parcels)
    )


def _newest(connection: Connection, parcel: NewParcel) -> RowMapping | None:
    query = (
        select(parcels)
        .where(parcels.c.kind == parcel.kind.value, parcels.c.subject == parcel.subject)
        .order_by(parcels.c.revision.desc())
        .limit(1)
    )
    return connection.execute(query).mappings().one_or_none()


def _enqueue(connection: Connection, run_id: int | None, parcel: NewParcel, wanted: Sequence[Wanted]) -> int:
    now = time.time()
    newest = _newest(connection, parcel)
    if newest is not None and newest["digest"] == parcel.digest:
        parcel_id, revision = newest["id"], newest["revision"]
        if parcel.urgent:
            connection.execute(update(parcels).where(parcels.c.id == parcel_id).values(urgent=True))
    else:
        revision = 1 if newest is None else newest["revision"] + 1
        parcel_id = _insert_parcel(connection, parcel, revision, now)
    query = select(deliveries.c.destination, deliveries.c.state, deliveries.c.reason).where(
        deliveries.c.parcel_id == parcel_id
    )
    known = {row.destination: row for row in connection.execute(query)}
    for item in wanted:
        if item.destination not in known:
            _insert_delivery(connection, parcel_id, run_id, item, now)
        elif _is_wanted_anew(known[item.destination], item):
            _want(connection, parcel_id, run_id, item, now)
        else:
            continue
        if item.state is DeliveryState.HELD:
            study, destination = parcel.study_instance_uid, item.destination
            _remember(connection, Event.HELD, study, parcel.subject, destination=destination, reason=item.reason)
    is_of_subject = and_(parcels.c.kind == parcel.kind.value, parcels.c.subject == parcel.subject)
    _supersede(connection, and_(is_of_subject, _is_unsent(now)))
    return int(revision)


def _is_wanted_anew(known: Any, item: Wanted) -> bool:
    """Whether a delivery that came to rest, or waits for its result, is owed now."""
    if known.state == DeliveryState.NOT_WANTED.value:
        return item.state is not DeliveryState.NOT_WANTED
    is_at_rest = known.state == DeliveryState.HELD.value or (
        known.state == DeliveryState.WAITING.value and known.reason == NOT_READY
    )
    return is_at_rest and item.state is DeliveryState.WAITING


def _supersede(connection: Connection, condition: ColumnElement[bool]) -> None:
    """End deliveries that a newer revision to the same destination has taken the place of."""
    newer, newer_parcel = deliveries.alias(), parcels.alias()
    is_outdated = exists(
        select(newer.c.id)
        .join(newer_parcel, newer_parcel.c.id == newer.c.parcel_id)
        .where(
            newer.c.destination == deliveries.c.destination,
            newer_parcel.c.kind == parcels.c.kind,
            newer_parcel.c.subject == parcels.c.subject,
            newer_parcel.c.revision > parcels.c.revision,
        )
        .correlate(deliveries, parcels)
    )
    query = (
        select(deliveries.c.id, deliveries.c.destination, parcels.c.study_instance_uid, parcels.c.subject)
        .join(parcels, parcels.c.id == deliveries.c.parcel_id)
        .where(condition, is_outdated)
    )
    for row in connection.execute(query).all():
        _set(connection, [row.id], state=DeliveryState.SUPERSEDED, reason="a newer revision takes its place")
        _remember(connection, Event.SUPERSEDED, row.study_instance_uid, row.subject, destination=row.destination)


def _withdrawn(connection: Connection, studies: Collection[str]) -> dict[tuple[str, str], set[int]]:
    """Return, by subject and destination, the resources whose results were taken back."""
    taken_back: dict[tuple[str, str], set[int]] = {}
    names = sorted(studies)
    for start in range(0, len(names), 500):
        query = select(events.c.subject, events.c.detail).where(
            events.c.kind == Event.WITHDRAWN.value, events.c.study_instance_uid.in_(names[start : start + 500])
        )
        for row in connection.execute(query):
            taken_back.setdefault((row.subject, row.detail["destination"]), set()).update(row.detail["resources"])
    return taken_back


def _is_taken_back(delivery: DeliveryRow, gone: Mapping[tuple[str, str], set[int]]) -> bool:
    """Whether all that a delivery was made of is among what ``_withdrawn`` returned."""
    return gone.get((delivery.subject, delivery.destination), set()) >= {*delivery.resource_ids}


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


def _want(connection: Connection, parcel_id: int, run_id: int | None, item: Wanted, now: float) -> None:
    connection.execute(
        update(deliveries)
        .where(deliveries.c.parcel_id == parcel_id, deliveries.c.destination == item.destination)
        .values(
            run_id=run_id,
            sends=list(item.sends),
            state=item.state.value,
            reason=item.reason,
            due_at=now,
            created_at=now,
        )
    )


def _settle(
    connection: Connection, delivery: DeliveryRow, *, state: DeliveryState | None = None, **values: Any
) -> bool:
    """Change what is being sent, unless another worker has taken it over; with a state, the lease ends."""
    if state is not None:
        values |= {"state": state.value, "lease_owner": "", "lease_until": 0.0}
    changed = connection.execute(
        update(deliveries)
        .where(
            deliveries.c.id == delivery.id,
            deliveries.c.state == DeliveryState.SENDING.value,
            deliveries.c.lease_owner == delivery.owner,
        )
        .values(**values)
    )
    return changed.rowcount > 0


def _set(connection: Connection, ids: Sequence[int], *, state: DeliveryState, **values: Any) -> None:
    connection.execute(
        update(deliveries)
        .where(deliveries.c.id.in_(ids))
        .values(state=state.value, may_have_arrived=_MAY_HAVE_ARRIVED, lease_owner="", lease_until=0.0, **values)
    )


def _remember(connection: Connection, event: Event, study_instance_uid: str, subject: str, **detail: Any) -> None:
    connection.execute(
        insert(events).values(
            at=time.time(), kind=event.value, study_instance_uid=study_instance_uid, subject=subject, detail=detail
        )
    )


def _row(row: RowMapping, owner: str | None = None) -> DeliveryRow:
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
        was_in_doubt=bool(row["may_have_arrived"]) or state in {DeliveryState.IN_DOUBT, DeliveryState.SENDING},
        owner=row["lease_owner"] if owner is None else owner,
        made_at=row["made_at"],
        delivered_at=row["delivered_at"],
    )
