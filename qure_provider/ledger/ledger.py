"""The ledger in the words of the pipeline: plan, acknowledge, answer, settle, count."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    RowMapping,
    and_,
    case,
    exists,
    func,
    insert,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from qure_provider.api.model import Meaning, Outcome, ResourceRef, ResultAnswer, Route
from qure_provider.dicom.model import Identity, SelectedSeries, Series, StudyFacts
from qure_provider.ledger.database import LedgerError, is_current, migrate, open_engine
from qure_provider.ledger.deliveries import OPEN_STATES, Deliveries
from qure_provider.ledger.doubts import UNCHANGED
from qure_provider.ledger.pseudonyms import Pseudonyms
from qure_provider.ledger.schema import (
    acknowledged,
    alerts,
    batches,
    deliveries,
    identity_maps,
    parcels,
    planned,
    resources,
    runs,
    studies,
)

COMPUTING_SECONDS = 180.0
"""How long another run leaves a series alone that one has begun to ask computation of."""
_CHUNK = 500
_REPLANNED = "This night was planned anew since; the batch is no more."
_T = TypeVar("_T")


class LeaseLostError(Exception):
    """Another try of this task has taken the batch over; this one must stop and leave the rest to it."""


class Why(StrEnum):
    """Why a run answers for a resource."""

    NEW = "new"
    REVISION = "revision"
    WAITING = "waiting"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class RunRow:
    """One night's run.

    Attributes:
        id: Its key.
        night: The night's name.
        folder: Where its files lie, relative to the store's root.
        began_at: Seconds since the epoch.
        deadline: When waiting ends, seconds since the epoch.
        completeness: How the export was judged complete.
        counts: What the plan counted.
    """

    id: int
    night: str
    folder: str
    began_at: float
    deadline: float
    completeness: str
    counts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ResourceRow:
    """What is recorded of one resource.

    Attributes are those of the ``resources`` table; ``identity`` is whose it was when it was sent, and ``why`` the
    reason that the run in question answers for it (None where no run was asked about).
    """

    id: int
    uid: str
    route: Route
    revision: int
    series_instance_uid: str
    identity: Identity
    modality: str
    body_part: str
    station_name: str
    acquired: str
    facts: StudyFacts
    outcome: Outcome | None
    reason: str
    triage: str | None
    meaning: Meaning
    usecase: str | None
    file_counts: Mapping[str, int]
    store_path: str | None
    doubt: str
    uploaded_at: float | None
    computed_at: float | None
    ready_at: float | None
    settled_at: float | None
    updated_at: float
    sent_uid: str | None = None
    digest: str | None = None
    baseline: str | None = None
    sent_in_parts: bool = False
    instances: int = 1
    why: Why | None = None

    @property
    def ref(self) -> ResourceRef:
        """What its result is asked for: the UID that the service knows, a pseudonym where it was de-identified."""
        return ResourceRef(self.sent_uid or self.uid, self.route, self.uid if self.sent_uid else "")

    @property
    def is_over(self) -> bool:
        """Whether nothing more is waited for: a final outcome and, where ready, a set of files that stopped growing."""
        if self.settled_at is not None:
            return True
        return self.outcome is not None and self.outcome.is_final and self.outcome is not Outcome.READY

    @property
    def is_to_be_sent(self) -> bool:
        """Whether its images are needed: they were not all uploaded, or the service says that it has them not."""
        return self.uploaded_at is None or self.outcome is Outcome.NOT_UPLOADED

    @property
    def is_resolved(self) -> bool:
        """Whether it is over and the service gave its answer: a result, or that the image is not for it."""
        return self.is_over and self.outcome is not None and self.outcome.value in _FINISHED


@dataclass(frozen=True, slots=True)
class PlannedSeries:
    """A selected series and what the ledger knows of its resources.

    Attributes:
        selected: The series.
        rows: Its resources' rows, in the order of ``selected.resources``.
        has_shrunk: Whether it is a part of what the service holds already, for which nothing is sent.
    """

    selected: SelectedSeries
    rows: tuple[ResourceRow, ...]
    has_shrunk: bool = False


@dataclass(frozen=True, slots=True)
class Terms:
    """What a run does with what it takes on.

    Attributes:
        policy: The identity policy that it sends under.
        destinations: A digest of the receivers that it delivers to.
    """

    policy: str
    destinations: str

    def allow(self, row: Mapping[str, Any]) -> bool:
        """Return whether a run of these terms may take on what another run planned.

        Args:
            row: A resource, with the ``counts`` of the run that planned it, and whether that is its own run
                (``is_own``) or of the same DAG and group (``is_same_dag``).
        """
        if row["is_own"]:
            return True
        theirs = row["counts"].get("terms")
        if theirs is None:
            return bool(row["is_same_dag"]) and not row["counts"].get("dry_run")
        has_identity = _is_held(row) or row["is_same_dag"] or theirs["policy"] == self.policy
        return has_identity and theirs["destinations"] == self.destinations and not row["counts"]["dry_run"]


@dataclass(frozen=True, slots=True)
class Owed:
    """What earlier runs left.

    Attributes:
        by_manifest: Manifest path in the store to the resources that are taken on, each in the newest manifest that
            carries it.
        left: The UIDs that are not taken on since the results of earlier runs of the same DAG go elsewhere, by the ids
            of these runs.
    """

    by_manifest: Mapping[str, Sequence[ResourceRow]]
    left: Mapping[str, set[str]]


class Ledger:
    """What became of every resource.

    Every method is one transaction. Open it where it is used and close it; it holds no state of its own.

    Args:
        engine: From ``open_engine``.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert

    @classmethod
    @contextmanager
    def open(cls, url: str, *, create: bool = False) -> Iterator[Ledger]:
        """Open the ledger.

        Args:
            url: An SQLAlchemy URL.
            create: Whether to make or upgrade the tables first.

        Raises:
            LedgerError: If the tables are missing or of another version and ``create`` is false.
        """
        engine = open_engine(url)
        try:
            if create:
                migrate(engine)
            elif not is_current(engine):
                raise LedgerError("The ledger has no tables of this version yet: run the plan task first.")
            yield cls(engine)
        finally:
            engine.dispose()

    @property
    def deliveries(self) -> Deliveries:
        """The half of the ledger that says what was delivered where."""
        return Deliveries(self._engine)

    @property
    def pseudonyms(self) -> Pseudonyms:
        """The half of the ledger that says what was sent in place of whose a study is."""
        return Pseudonyms(self._engine)

    # Runs

    def begin_run(
        self,
        *,
        dag_id: str,
        run_id: str,
        group_id: str,
        clear_number: int,
        night: str,
        conn_id: str,
        folder: str,
        deadline: float,
        completeness: str,
        planner: str = "",
    ) -> RunRow:
        """Record that a run begins, or find it again.

        A retry finds the deadline that the first try set. A clear by a person (``clear_number`` grew) sets a new one.
        The last ``planner`` alone, a try of the plan's task, can record the plan.

        Returns:
            The run's row.
        """
        key = and_(runs.c.dag_id == dag_id, runs.c.run_id == run_id, runs.c.group_id == group_id)
        values = {
            "clear_number": clear_number,
            "night": night,
            "conn_id": conn_id,
            "folder": folder,
            "began_at": time.time(),
            "deadline": deadline,
            "completeness": completeness,
            "counts": {},
            "finished_at": None,
        }
        with self._engine.begin() as connection:
            known = connection.execute(select(runs).where(key)).mappings().one_or_none()
            if known is None:
                connection.execute(insert(runs).values(dag_id=dag_id, run_id=run_id, group_id=group_id, **values))
            elif known["clear_number"] != clear_number:
                connection.execute(update(runs).where(key).values(**values))
            connection.execute(update(runs).where(key).values(planner=planner))
            return _run_row(connection.execute(select(runs).where(key)).mappings().one())

    def find_run(self, *, dag_id: str, run_id: str, group_id: str) -> RunRow | None:
        """Return the run's row, or None if its plan never began."""
        query = select(runs).where(runs.c.dag_id == dag_id, runs.c.run_id == run_id, runs.c.group_id == group_id)
        with self._engine.begin() as connection:
            row = connection.execute(query).mappings().one_or_none()
            return _run_row(row) if row else None

    def run_of_batch(self, batch_id: int) -> RunRow:
        """Return the run that a batch belongs to.

        Raises:
            LeaseLostError: If the night was planned anew since, so that the batch is no more.
        """
        query = select(runs).join(batches, batches.c.run_id == runs.c.id).where(batches.c.id == batch_id)
        with self._engine.begin() as connection:
            row = connection.execute(query).mappings().one_or_none()
            if row is None:
                raise LeaseLostError(_REPLANNED)
            return _run_row(row)

    def manifest_of_batch(self, batch_id: int) -> str:
        """Return where the batch's manifest lies in the store.

        Raises:
            LeaseLostError: If the batch is no more.
        """
        with self._engine.begin() as connection:
            manifest = connection.scalar(select(batches.c.manifest).where(batches.c.id == batch_id))
        if manifest is None:
            raise LeaseLostError(_REPLANNED)
        return str(manifest)

    def finish_run(self, run_id: int) -> None:
        """Record that the run's summary was written."""
        with self._engine.begin() as connection:
            connection.execute(update(runs).where(runs.c.id == run_id).values(finished_at=time.time()))

    def usual_found(self, *, dag_id: str, before: float, nights: int = 14) -> float | None:
        """Return the median number of selected series of the last finished nights; None of fewer than three.

        Args:
            dag_id: The DAG whose nights are looked at.
            before: Only runs that began before this time.
            nights: How many of them at most.
        """
        query = (
            select(runs.c.counts)
            .where(runs.c.dag_id == dag_id, runs.c.began_at < before, runs.c.finished_at.is_not(None))
            .order_by(runs.c.began_at.desc())
            .limit(nights)
        )
        with self._engine.begin() as connection:
            counts = sorted(row.get("series", 0) for row in connection.scalars(query))
        if len(counts) < 3:
            return None
        middle = len(counts) // 2
        return float(counts[middle]) if len(counts) % 2 else (counts[middle - 1] + counts[middle]) / 2

    def runs_of_night(self, night: str) -> list[RunRow]:
        """Return the runs for a night, oldest first."""
        with self._engine.begin() as connection:
            query = select(runs).where(runs.c.night == night).order_by(runs.c.id)
            return [_run_row(row) for row in connection.execute(query).mappings()]

    def all_runs(self) -> list[RunRow]:
        """Return every run, oldest first."""
        with self._engine.begin() as connection:
            return [_run_row(row) for row in connection.execute(select(runs).order_by(runs.c.id)).mappings()]

    def prune(self, before: float, *, only_count: bool = False) -> dict[str, int]:
        """Forget runs that finished before a time, and resources that no run and no open delivery speaks of any more.

        Args:
            before: Seconds since the epoch.
            only_count: Whether to forget nothing and only say what would be.

        Returns:
            How many runs, resources and studies were forgotten.
        """
        is_owed = deliveries.c.state.in_([state.value for state in OPEN_STATES])
        with self._engine.connect() as connection, connection.begin() as transaction:
            old = list(connection.scalars(select(runs.c.id).where(runs.c.finished_at < before)))
            owed_runs = set(connection.scalars(select(deliveries.c.run_id).where(is_owed)))
            gone_runs = [run_id for run_id in old if run_id not in owed_runs]
            for chunk in _chunks(gone_runs):
                connection.execute(planned.delete().where(planned.c.run_id.in_(chunk)))
                connection.execute(batches.delete().where(batches.c.run_id.in_(chunk)))
                connection.execute(runs.delete().where(runs.c.id.in_(chunk)))
            owed_studies = (
                select(parcels.c.study_instance_uid)
                .join(deliveries, deliveries.c.parcel_id == parcels.c.id)
                .where(is_owed)
            )
            gone = list(
                connection.scalars(
                    select(resources.c.id)
                    .join(studies, studies.c.id == resources.c.study_id)
                    .where(
                        resources.c.updated_at < before,
                        resources.c.id.not_in(select(planned.c.resource_id)),
                        studies.c.study_instance_uid.not_in(owed_studies),
                    )
                )
            )
            for some in _chunks(gone):
                connection.execute(acknowledged.delete().where(acknowledged.c.resource_id.in_(some)))
                connection.execute(alerts.delete().where(alerts.c.resource_id.in_(some)))
                connection.execute(identity_maps.delete().where(identity_maps.c.resource_id.in_(some)))
                connection.execute(resources.delete().where(resources.c.id.in_(some)))
            orphans = studies.c.id.not_in(select(resources.c.study_id))
            gone_studies = connection.execute(studies.delete().where(orphans)).rowcount
            if only_count:
                transaction.rollback()
        return {"runs": len(gone_runs), "resources": len(gone), "studies": gone_studies}

    # Planning

    def known_series(self, series_instance_uids: Iterable[str]) -> set[str]:
        """Return which of these series had images that the service acknowledged."""
        known: set[str] = set()
        with self._engine.begin() as connection:
            for chunk in _chunks(list(series_instance_uids)):
                query = (
                    select(resources.c.series_instance_uid)
                    .join(acknowledged, acknowledged.c.resource_id == resources.c.id)
                    .where(resources.c.series_instance_uid.in_(chunk))
                    .distinct()
                )
                known.update(connection.scalars(query))
        return known

    def assess(
        self,
        selected: Sequence[SelectedSeries],
        *,
        conn_id: str = "qure_default",
        recompute: bool = False,
        only_shown: bool = False,
    ) -> list[PlannedSeries]:
        """Compare what is to be sent with what is known, and record what is new.

        A resource whose instances or whose study's identity differ from what was sent before, or that was sent by
        another connection, becomes a new revision. A part of a series does not: its result would take the place of the
        whole one's.

        Args:
            selected: The series of this night.
            conn_id: The Qure connection that they would be sent by.
            recompute: Whether to send again what an earlier run finished, and a part of what the service holds, too.
            only_shown: Whether nothing of it will be sent: what is new is then recorded for this run alone, and takes
                the place of nothing.

        Returns:
            One entry for each series, in order. Each row's ``why`` says new, revision, waiting (an earlier run left it
            unfinished) or done.
        """
        now = time.time()
        with self._engine.begin() as connection:
            study_ids = self._record_studies(connection, selected, now)
            wanted = [_Wanted.of(entry, study_ids[_identity_key(entry.series.identity)], conn_id) for entry in selected]
            refs = [item.ref.uid for group in wanted for item in group]
            latest = self._latest(connection, refs)
            shrunk = set() if recompute else self._shrunk(connection, wanted, latest)
            rows: list[dict[str, Any]] = []
            whys: dict[str, Why] = {}
            for group in wanted:
                for item in group:
                    known = latest.get(item.ref.uid)
                    if item.ref.uid in shrunk:
                        whys[item.ref.uid] = _why_known(latest[item.ref.uid])
                        continue
                    why = item.compare(known, recompute=recompute)
                    whys[item.ref.uid] = why
                    if why in {Why.NEW, Why.REVISION}:
                        revision = 1 if known is None else known["revision"] + 1
                        rows.append(item.values(revision=revision, now=now) | {"only_shown": only_shown})
            for batch in _chunks(rows):
                statement = self._insert(resources).values(batch)
                anew = {name: statement.excluded[name] for name in batch[0] if name not in {"uid", "revision"}}
                connection.execute(
                    statement.on_conflict_do_update(
                        index_elements=["uid", "revision"], set_=anew, where=resources.c.only_shown
                    )
                )
            if rows:
                latest |= self._latest(connection, [row["uid"] for row in rows], or_only_shown=only_shown)
            identities = self._identities(connection, {row["study_id"] for row in latest.values()})
            return [
                PlannedSeries(
                    entry,
                    tuple(
                        _resource_row(
                            latest[item.ref.uid], identities[latest[item.ref.uid]["study_id"]], whys[item.ref.uid]
                        )
                        for item in group
                    ),
                    has_shrunk=any(item.ref.uid in shrunk for item in group),
                )
                for entry, group in zip(selected, wanted, strict=True)
            ]

    def replace_plan(
        self,
        run: RunRow,
        *,
        batches_of_rows: Sequence[tuple[Route, str, Sequence[ResourceRow]]],
        done: Sequence[ResourceRow],
        counts: Mapping[str, Any],
        planner: str = "",
    ) -> list[int]:
        """Record what the run answers for, in place of what an earlier try of its plan recorded.

        Args:
            run: The run.
            batches_of_rows: For each batch its route, its manifest's path in the store and its resources.
            done: Resources that are left alone: an earlier run finished them, or waits for them.
            counts: What the plan counted, kept for the summary.
            planner: Who began the run's plan last.

        Returns:
            The batches' ids, in order.

        Raises:
            LeaseLostError: If another try of the plan began since.
        """
        with self._engine.begin() as connection:
            mine = connection.execute(
                update(runs).where(runs.c.id == run.id, runs.c.planner == planner).values(planner=planner)
            )
            if not mine.rowcount:
                raise LeaseLostError("Another try of the plan began since; it plans the night.")
            connection.execute(planned.delete().where(planned.c.run_id == run.id))
            connection.execute(batches.delete().where(batches.c.run_id == run.id))
            ids = []
            values = [
                {"run_id": run.id, "resource_id": row.id, "batch_id": None, "why": (row.why or Why.DONE).value}
                for row in done
            ]
            for route, manifest, rows in batches_of_rows:
                batch_id = connection.execute(
                    insert(batches)
                    .values(run_id=run.id, route=route.value, manifest=manifest, owner="")
                    .returning(batches.c.id)
                ).scalar_one()
                ids.append(batch_id)
                values += [
                    {"run_id": run.id, "resource_id": row.id, "batch_id": batch_id, "why": (row.why or Why.NEW).value}
                    for row in rows
                ]
            for chunk in _chunks(values):
                connection.execute(insert(planned), chunk)
            waiting = [row.id for _, _, rows in batches_of_rows for row in rows if row.why is Why.WAITING]
            for some in _chunks(waiting):
                _reopen(connection, some)
            connection.execute(
                update(runs).where(runs.c.id == run.id).values(counts=dict(counts), planned_at=time.time())
            )
            return ids

    def owed_manifests(self, run_id: int, *, terms: Terms, since: float, only_own: bool = False) -> Owed:
        """Return what earlier runs left waiting, or never got uploaded, by the manifest it travelled in.

        A revision that a newer one took the place of is not among it: its answer would be the newer one's. Nor is what
        was not uploaded by a run that has no summary: it may be under way, or somebody stopped it.

        Only what goes where the asking run's results go is taken on, never what was planned by a dry run; and what is
        yet to be sent only where it is sent under the same identity, or was planned by the same DAG. What the asking
        run itself waited for before it was cleared is among it.

        Args:
            run_id: The run that asks.
            terms: What it would do with them.
            since: Only what was planned after this time, seconds since the epoch.
            only_own: Whether to return only what the run itself waited for before.

        Returns:
            What it takes on, and whose was left.
        """
        newer = resources.alias()
        is_superseded = exists().where(
            newer.c.uid == resources.c.uid, newer.c.revision > resources.c.revision, ~newer.c.only_shown
        )
        unfinished = [Outcome.PENDING.value, Outcome.TIMED_OUT.value, Outcome.NOT_COMPUTED.value]
        is_waiting = and_(
            resources.c.uploaded_at.is_not(None),
            or_(
                resources.c.outcome.is_(None),
                resources.c.outcome.in_(unfinished),
                and_(
                    resources.c.outcome == Outcome.READY.value,
                    or_(resources.c.settled_at.is_(None), resources.c.doubt == UNCHANGED),
                ),
            ),
        )
        is_not_sent = and_(
            runs.c.id != run_id,
            runs.c.finished_at.is_not(None),
            or_(
                and_(resources.c.uploaded_at.is_(None), resources.c.outcome.is_(None)),
                resources.c.outcome == Outcome.NOT_UPLOADED.value,
            ),
        )
        is_owed = and_(
            resources.c.planned_at >= since,
            ~resources.c.only_shown,
            ~is_superseded,
            or_(is_waiting, is_not_sent),
            runs.c.id == run_id if only_own else true(),
        )
        asking = runs.alias()
        is_same_dag = and_(asking.c.dag_id == runs.c.dag_id, asking.c.group_id == runs.c.group_id)
        query = (
            select(
                resources,
                batches.c.manifest,
                runs.c.counts,
                runs.c.run_id.label("run_name"),
                (runs.c.id == run_id).label("is_own"),
                is_same_dag.label("is_same_dag"),
            )
            .join(planned, planned.c.resource_id == resources.c.id)
            .join(batches, batches.c.id == planned.c.batch_id)
            .join(runs, runs.c.id == planned.c.run_id)
            .join(asking, asking.c.id == run_id)
            .where(runs.c.conn_id == asking.c.conn_id, is_owed)
            .order_by(batches.c.id)
        )
        with self._engine.begin() as connection:
            found = connection.execute(query).mappings().all()
            newest = {row["id"]: row for row in found if terms.allow(dict(row))}
            identities = self._identities(connection, {row["study_id"] for row in newest.values()})
        by_manifest: dict[str, list[ResourceRow]] = {}
        for row in newest.values():
            resource = _resource_row(row, identities[row["study_id"]], Why.WAITING)
            by_manifest.setdefault(row["manifest"], []).append(resource)
        left: dict[str, set[str]] = {}
        for row in found:
            if row["id"] not in newest and row["is_same_dag"] and not row["counts"].get("dry_run"):
                left.setdefault(row["run_name"], set()).add(row["uid"])
        return Owed(by_manifest, left)

    # Leases

    def take_lease(self, batch_id: int, owner: str) -> None:
        """Take a batch over from whoever worked on it; they notice when they next record something.

        Airflow starts a new try only when it believes the old one dead, so the newest try is the one to go on.

        Raises:
            LeaseLostError: If the batch is no more.
        """
        with self._engine.begin() as connection:
            taken = connection.execute(
                update(batches).where(batches.c.id == batch_id).values(owner=owner).returning(batches.c.id)
            )
            if taken.scalar_one_or_none() is None:
                raise LeaseLostError(_REPLANNED)

    def check_lease(self, batch_id: int, owner: str) -> None:
        """Raise unless the batch is still ours.

        Raises:
            LeaseLostError: If it is not.
        """
        with self._engine.begin() as connection:
            holder = connection.scalar(select(batches.c.owner).where(batches.c.id == batch_id))
        if holder != owner:
            raise LeaseLostError("Another try of this task has taken the batch over.")

    # Steps

    def rows_of_batch(self, batch_id: int) -> list[ResourceRow]:
        """Return the batch's resources in the order they were recorded."""
        return self._rows(planned.c.batch_id == batch_id)

    def rows_of_run(self, run_id: int) -> list[ResourceRow]:
        """Return every resource that the run answers for."""
        return self._rows(planned.c.run_id == run_id)

    def rows_of_study(self, study_instance_uid: str) -> list[ResourceRow]:
        """Return every resource of a study, each in its newest revision."""
        query = (
            select(resources)
            .join(studies, studies.c.id == resources.c.study_id)
            .where(studies.c.study_instance_uid == study_instance_uid, ~resources.c.only_shown)
            .order_by(resources.c.id)
        )
        with self._engine.begin() as connection:
            newest = {row["uid"]: row for row in connection.execute(query).mappings()}
            identities = self._identities(connection, {row["study_id"] for row in newest.values()})
        return [_resource_row(row, identities[row["study_id"]], None) for row in newest.values()]

    def study_uids(self) -> list[str]:
        """Return the StudyInstanceUID of every study, newest first."""
        meant = select(resources.c.study_id).where(~resources.c.only_shown)
        query = select(studies.c.study_instance_uid).where(studies.c.id.in_(meant)).order_by(studies.c.id.desc())
        with self._engine.begin() as connection:
            return list(dict.fromkeys(connection.scalars(query)))

    def rows_by_id(self, resource_ids: Iterable[int]) -> list[ResourceRow]:
        """Return resources by their keys, of whatever revision, in order."""
        query = select(resources).where(resources.c.id.in_(list(resource_ids))).order_by(resources.c.id)
        with self._engine.begin() as connection:
            found = connection.execute(query).mappings().all()
            identities = self._identities(connection, {row["study_id"] for row in found})
        return [_resource_row(row, identities[row["study_id"]], None) for row in found]

    def sent_uids(self, study_instance_uid: str) -> frozenset[str]:
        """Return the SOPInstanceUIDs of a study that the service acknowledged, in any revision, and their series'."""
        of_study = (
            select(resources.c.id)
            .join(studies, studies.c.id == resources.c.study_id)
            .where(studies.c.study_instance_uid == study_instance_uid, ~resources.c.only_shown)
        )
        images = select(acknowledged.c.sop_instance_uid).where(acknowledged.c.resource_id.in_(of_study))
        series = select(resources.c.series_instance_uid).where(resources.c.id.in_(of_study))
        with self._engine.begin() as connection:
            return frozenset([*connection.scalars(images), *connection.scalars(series)])

    def acknowledged(self, resource_ids: Iterable[int]) -> dict[int, set[str]]:
        """Return, for each resource, the SOPInstanceUIDs that the service said it holds."""
        with self._engine.begin() as connection:
            return _acknowledged(connection, resource_ids)

    def acknowledge(self, instances: Iterable[tuple[int, str]]) -> None:
        """Record that the service holds these instances.

        Args:
            instances: Pairs of resource id and SOPInstanceUID.
        """
        values = [{"resource_id": resource_id, "sop_instance_uid": uid} for resource_id, uid in instances]
        with self._engine.begin() as connection:
            for chunk in _chunks(values):
                connection.execute(self._insert(acknowledged).values(chunk).on_conflict_do_nothing())

    def retract(self, instances: Iterable[tuple[int, str]]) -> None:
        """Record that the service does not hold these instances, whatever it said before; their resources are open.

        Those that have their answer meanwhile, by another run, keep it.

        Args:
            instances: Pairs of resource id and SOPInstanceUID.
        """
        gone: dict[int, list[str]] = {}
        for resource_id, uid in instances:
            gone.setdefault(resource_id, []).append(uid)
        with self._engine.begin() as connection:
            answered = set(
                connection.scalars(
                    select(resources.c.id).where(resources.c.id.in_(gone), resources.c.outcome.in_(_FINISHED))
                )
            )
            for resource_id, uids in gone.items():
                if resource_id in answered:
                    continue
                for chunk in _chunks(uids):
                    connection.execute(
                        acknowledged.delete().where(
                            acknowledged.c.resource_id == resource_id, acknowledged.c.sop_instance_uid.in_(chunk)
                        )
                    )
                connection.execute(update(resources).where(resources.c.id == resource_id).values(uploaded_at=None))

    def mark_uploaded(self, resource_ids: Iterable[int]) -> None:
        """Record that all instances of these resources are held by the service, where nobody recorded it before."""
        now = time.time()
        self._update(
            resource_ids, resources.c.uploaded_at.is_(None), uploaded_at=now, outcome=None, reason="", updated_at=now
        )

    def mark_not_uploaded(self, resource_ids: Iterable[int], reason: str) -> None:
        """Record why not all instances of these resources could be sent, where nobody else has sent them meanwhile."""
        self._update(
            resource_ids,
            resources.c.uploaded_at.is_(None),
            outcome=Outcome.NOT_UPLOADED.value,
            reason=reason,
            updated_at=time.time(),
        )

    def begin_compute(self, resource_id: int, run_id: int) -> bool:
        """Record that a run asks the service to compute a series, so that no other does at the same time.

        Returns:
            Whether it is to: not where it is computed already, or another run began within the last minutes.
        """
        now = time.time()
        is_free = or_(
            resources.c.computing_until.is_(None),
            resources.c.computing_until < now,
            resources.c.computing_run_id == run_id,
        )
        statement = (
            update(resources)
            .where(resources.c.id == resource_id, resources.c.computed_at.is_(None), is_free)
            .values(computing_run_id=run_id, computing_until=now + COMPUTING_SECONDS)
        )
        with self._engine.begin() as connection:
            return connection.execute(statement).rowcount > 0

    def end_compute(self, resource_id: int, run_id: int) -> None:
        """Record that a run has its answer, whatever it is, so that another may ask."""
        statement = update(resources).where(resources.c.id == resource_id, resources.c.computing_run_id == run_id)
        with self._engine.begin() as connection:
            connection.execute(statement.values(computing_until=None))

    def mark_computed(self, resource_ids: Iterable[int]) -> None:
        """Record that the service queued these series, or had done so."""
        now = time.time()
        self._update(resource_ids, computed_at=now, outcome=None, reason="", updated_at=now)

    def record_failure(
        self, resource_ids: Iterable[int], outcome: Outcome, reason: str, *, is_outdated: bool = False
    ) -> None:
        """Record that a step failed for these resources; what another run brought meanwhile stands.

        Where no result stands, nothing is known of what its triage means, whatever an earlier answer said.

        Args:
            resource_ids: The resources.
            outcome: What is known of them now.
            reason: In fixed words, with what to do where something can be done; no patient data.
            is_outdated: Whether a ready result is known to be no longer what the service says.
        """
        known: dict[str, Any] = {"outcome": outcome.value, "reason": reason, "updated_at": time.time()}
        is_open: ColumnElement[bool] = resources.c.settled_at.is_(None)
        if outcome is not Outcome.READY:
            known |= {"meaning": Meaning.UNKNOWN.value, "triage": None}
            if not is_outdated:
                is_open &= resources.c.outcome.is_distinct_from(Outcome.READY.value)
        self._update(resource_ids, is_open, **known)

    def record_answer(
        self, resource_id: int, answer: ResultAnswer, *, store_path: str | None = None, settled: bool = False
    ) -> None:
        """Record what the service said of a resource.

        Args:
            resource_id: The resource.
            answer: The answer. Its URLs are not kept.
            store_path: Where what was fetched lies, relative to the store's root; None keeps what is recorded.
            settled: Whether the set of files has stopped growing.
        """
        now = time.time()
        values: dict[str, Any] = {
            "outcome": answer.outcome.value,
            "reason": answer.reason,
            "triage": answer.triage,
            "meaning": answer.meaning.value,
            "usecase": answer.usecase,
            "file_counts": answer.file_counts,
            "updated_at": now,
        }
        if store_path is not None:
            values["store_path"] = store_path
        if settled:
            values["settled_at"] = now
        with self._engine.begin() as connection:
            if answer.outcome is Outcome.READY:
                values["digest"] = answer.digest
                values["ready_at"] = func.coalesce(resources.c.ready_at, now)
            connection.execute(update(resources).where(resources.c.id == resource_id).values(**values))

    def mark_timed_out(self, resource_ids: Iterable[int], reason: str) -> None:
        """Record that waiting ended before the service had a result."""
        self.record_failure(resource_ids, Outcome.TIMED_OUT, reason)

    def record_doubt(self, resource_id: int, doubt: str) -> None:
        """Record why a result may not be the answer to what was sent last; it is held back until a person decides."""
        self._update([resource_id], doubt=doubt)

    def result_before_change(self, resource_id: int) -> str | None:
        """Return where the last result of an older revision lies whose images, study or patient were others.

        Returns:
            A folder, relative to the store's root; None where there is none.
        """
        older, study, older_study = resources.alias(), studies.alias(), studies.alias()
        query = (
            select(older.c.store_path)
            .join(resources, and_(resources.c.uid == older.c.uid, resources.c.revision > older.c.revision))
            .join(study, study.c.id == resources.c.study_id)
            .join(older_study, older_study.c.id == older.c.study_id)
            .where(
                resources.c.id == resource_id,
                or_(
                    older.c.fingerprint != resources.c.fingerprint,
                    older_study.c.study_instance_uid != study.c.study_instance_uid,
                    older_study.c.patient_id != study.c.patient_id,
                ),
                older.c.store_path.is_not(None),
            )
            .order_by(older.c.revision.desc())
            .limit(1)
        )
        with self._engine.begin() as connection:
            return connection.scalar(query)

    def lacks_result_before(self, resource_id: int) -> bool:
        """Return whether other images were sent as this resource before, and no result of them was ever fetched."""
        older = resources.alias()
        query = (
            select(func.count(), func.count(older.c.store_path))
            .join(resources, and_(resources.c.uid == older.c.uid, resources.c.revision > older.c.revision))
            .where(resources.c.id == resource_id, older.c.fingerprint != resources.c.fingerprint)
        )
        with self._engine.begin() as connection:
            revisions, results = connection.execute(query).one()
        return bool(revisions and not results)

    def mark_sent_in_parts(self, resource_ids: Iterable[int]) -> None:
        """Record that a part of these was sent by an earlier try, so that the service may have computed that alone."""
        self._update(resource_ids, sent_in_parts=True)

    def record_baseline(self, resource_id: int, digest: str) -> None:
        """Record what the service said before it was asked to compute anew; an empty text where it had nothing."""
        self._update([resource_id], baseline=digest)

    def mark_settled(self, resource_ids: Iterable[int]) -> None:
        """Record that the set of files of these ready resources has stopped growing, or was waited for long enough."""
        self._update(resource_ids, settled_at=time.time())

    # Alerts

    def sent_alerts(self, resource_ids: Iterable[int]) -> set[tuple[int, str]]:
        """Return which (resource, channel) pairs were alerted already."""
        return self._alerts(resource_ids, alerts.c.sent_at.is_not(None))

    def unsent_alerts(self, resource_ids: Iterable[int]) -> set[tuple[int, str]]:
        """Return of which (resource, channel) pairs an alert was tried and never got through."""
        return self._alerts(resource_ids, alerts.c.sent_at.is_(None))

    def begin_alert(self, resource_id: int, channel: str, *, seconds: float) -> bool:
        """Record that somebody is about to send an alert, so that nobody else does.

        Args:
            resource_id: The resource it is about.
            channel: Which of the configured notifiers.
            seconds: After this time without a word of what became of it, another may try.

        Returns:
            Whether to send it; not where it was sent, or another is trying.
        """
        now = time.time()
        statement = (
            self._insert(alerts)
            .values(resource_id=resource_id, channel=channel, tries=0, last_error="", claimed_until=now + seconds)
            .on_conflict_do_update(
                index_elements=["resource_id", "channel"],
                set_={"claimed_until": now + seconds},
                where=and_(alerts.c.sent_at.is_(None), func.coalesce(alerts.c.claimed_until, 0.0) < now),
            )
        )
        with self._engine.begin() as connection:
            return connection.execute(statement).rowcount == 1

    def record_alert(self, resource_id: int, channel: str, *, error: str = "") -> None:
        """Record that an alert was sent, or that a try failed.

        Args:
            resource_id: The resource it was about.
            channel: Which of the configured notifiers.
            error: The exception's class where the try failed; empty where it was sent.
        """
        sent_at = None if error else time.time()
        statement = self._insert(alerts).values(
            resource_id=resource_id, channel=channel, tries=1, sent_at=sent_at, last_error=error[:250]
        )
        with self._engine.begin() as connection:
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["resource_id", "channel"],
                    set_={
                        "tries": alerts.c.tries + 1,
                        "sent_at": func.coalesce(alerts.c.sent_at, statement.excluded.sent_at),
                        "last_error": statement.excluded.last_error,
                        "claimed_until": None,
                    },
                )
            )

    def alert_counts(self, run_id: int, channels: Sequence[str]) -> dict[str, int]:
        """Return how many alerts about a run's resources were sent, and how many never got through.

        Args:
            run_id: The run.
            channels: The notifiers that are set now: of those that were set otherwise only what was sent counts. Where
                none is, all count.
        """
        of_these = [alerts.c.channel.startswith(channel, autoescape=True) for channel in channels]
        is_current = or_(*of_these) if of_these else true()
        query = (
            select(func.count(alerts.c.sent_at), func.count(case((is_current & alerts.c.sent_at.is_(None), 1))))
            .select_from(alerts)
            .join(planned, planned.c.resource_id == alerts.c.resource_id)
            .where(planned.c.run_id == run_id)
        )
        with self._engine.begin() as connection:
            sent, failed = connection.execute(query).one()
        return {"sent": sent, "failed": failed}

    # Parts

    def _rows(self, condition: Any) -> list[ResourceRow]:
        query = (
            select(resources, planned.c.why)
            .join(planned, planned.c.resource_id == resources.c.id)
            .where(condition)
            .order_by(resources.c.id)
        )
        with self._engine.begin() as connection:
            found = connection.execute(query).mappings().all()
            identities = self._identities(connection, {row["study_id"] for row in found})
        return [_resource_row(row, identities[row["study_id"]], Why(row["why"])) for row in found]

    def _alerts(self, resource_ids: Iterable[int], condition: ColumnElement[bool]) -> set[tuple[int, str]]:
        query = select(alerts.c.resource_id, alerts.c.channel).where(condition)
        with self._engine.begin() as connection:
            return {
                (row.resource_id, row.channel)
                for chunk in _chunks(list(resource_ids))
                for row in connection.execute(query.where(alerts.c.resource_id.in_(chunk)))
            }

    def _update(self, resource_ids: Iterable[int], *conditions: Any, **values: Any) -> None:
        with self._engine.begin() as connection:
            for chunk in _chunks(list(resource_ids)):
                connection.execute(update(resources).where(resources.c.id.in_(chunk), *conditions).values(**values))

    def _record_studies(self, connection: Connection, selected: Sequence[SelectedSeries], now: float) -> dict[str, int]:
        values = {
            key: _study_values(entry, key, now) for entry in selected for key in [_identity_key(entry.series.identity)]
        }
        for batch in _chunks(list(values.values())):
            connection.execute(self._insert(studies).values(batch).on_conflict_do_nothing())
        found: dict[str, int] = {}
        for chunk in _chunks(list(values)):
            query = select(studies.c.identity_key, studies.c.id).where(studies.c.identity_key.in_(chunk))
            found.update((row.identity_key, row.id) for row in connection.execute(query))
        return found

    def _shrunk(
        self, connection: Connection, wanted: Iterable[Iterable[_Wanted]], latest: Mapping[str, RowMapping]
    ) -> set[str]:
        """Return which of these the service holds already, and with more images."""
        fewer = {
            latest[item.ref.uid]["id"]: item
            for group in wanted
            for item in group
            if item.ref.uid in latest and item.is_fewer_than(latest[item.ref.uid])
        }
        held = _acknowledged(connection, fewer)
        return {item.ref.uid for key, item in fewer.items() if item.instance_uids < held[key]}

    def _latest(
        self, connection: Connection, uids: Sequence[str], *, or_only_shown: bool = False
    ) -> dict[str, RowMapping]:
        latest: dict[str, RowMapping] = {}
        is_meant = true() if or_only_shown else ~resources.c.only_shown
        for chunk in _chunks(uids):
            query = select(resources).where(resources.c.uid.in_(chunk), is_meant).order_by(resources.c.revision)
            latest.update((row["uid"], row) for row in connection.execute(query).mappings())
        return latest

    def _identities(self, connection: Connection, study_ids: Iterable[int]) -> dict[int, Identity]:
        identities: dict[int, Identity] = {}
        for chunk in _chunks(list(study_ids)):
            for row in connection.execute(select(studies).where(studies.c.id.in_(chunk))):
                identities[row.id] = Identity(
                    study_instance_uid=row.study_instance_uid,
                    patient_id=row.patient_id,
                    issuer_of_patient_id=row.issuer_of_patient_id,
                    accession_number=row.accession_number,
                    birth_date=row.birth_date,
                    sex=row.sex,
                    patient_name=row.patient_name,
                )
        return identities


def _acknowledged(connection: Connection, resource_ids: Iterable[int]) -> dict[int, set[str]]:
    held: dict[int, set[str]] = {resource_id: set() for resource_id in resource_ids}
    for chunk in _chunks(list(held)):
        for row in connection.execute(select(acknowledged).where(acknowledged.c.resource_id.in_(chunk))):
            held[row.resource_id].add(row.sop_instance_uid)
    return held


def _reopen(connection: Connection, resource_ids: Sequence[int]) -> None:
    """Wait for these again; what the service said that it does not hold, or never computed, is to be sent again."""
    of_these = resources.c.id.in_(resource_ids)
    is_lost = and_(of_these, resources.c.outcome == Outcome.NOT_UPLOADED.value, resources.c.uploaded_at.is_not(None))
    is_not_computed = and_(of_these, resources.c.outcome == Outcome.NOT_COMPUTED.value)
    connection.execute(
        acknowledged.delete().where(acknowledged.c.resource_id.in_(select(resources.c.id).where(is_lost)))
    )
    connection.execute(update(resources).where(is_lost).values(uploaded_at=None, computed_at=None))
    connection.execute(update(resources).where(is_not_computed).values(computed_at=None))
    connection.execute(update(resources).where(of_these).values(outcome=None, reason="", settled_at=None))


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A resource as this night would send it."""

    ref: ResourceRef
    selected: SelectedSeries
    study_id: int
    conn_id: str
    fingerprint: str
    instance_uids: frozenset[str]

    @classmethod
    def of(cls, selected: SelectedSeries, study_id: int, conn_id: str) -> list[_Wanted]:
        series = selected.series
        if selected.route is Route.XRAY:
            parts = [(ref, [instance]) for ref, instance in zip(selected.resources, series.instances, strict=True)]
        else:
            parts = [(selected.resources[0], list(series.instances))]
        return [
            cls(
                ref,
                selected,
                study_id,
                conn_id,
                _digest(sorted((i.sop_instance_uid, i.size) for i in instances)),
                frozenset(i.sop_instance_uid for i in instances),
            )
            for ref, instances in parts
        ]

    def is_fewer_than(self, known: RowMapping) -> bool:
        return _is_held(known) and self._is_of(known) and len(self.instance_uids) < known["instances"]

    def compare(self, known: RowMapping | None, *, recompute: bool) -> Why:
        if known is None:
            return Why.NEW
        if known["fingerprint"] != self.fingerprint or not self._is_of(known) or recompute:
            return Why.REVISION
        return _why_known(known)

    def _is_of(self, known: RowMapping) -> bool:
        """Whether it is what was sent before, but for its images: the same study and series by the same connection."""
        place = (self.study_id, self.conn_id, self.selected.series.series_instance_uid)
        return place == (known["study_id"], known["conn_id"], known["series_instance_uid"])

    def values(self, *, revision: int, now: float) -> dict[str, Any]:
        series = self.selected.series
        return {
            "uid": self.ref.uid,
            "revision": revision,
            "route": self.ref.route.value,
            "study_id": self.study_id,
            "series_instance_uid": series.series_instance_uid,
            "conn_id": self.conn_id,
            "fingerprint": self.fingerprint,
            "modality": _storable(series.modality),
            "body_part": _storable(series.body_part),
            "station_name": _storable(series.station_name),
            "acquired": _storable(series.acquired),
            "instances": len(self.instance_uids),
            "facts": asdict(facts_of(series)),
            "reason": "",
            "doubt": "",
            "planned_at": now,
            "updated_at": now,
        }


_FINISHED = frozenset({Outcome.READY.value, Outcome.INVALID.value, Outcome.UNSUPPORTED.value})


def _is_held(known: Mapping[Any, Any]) -> bool:
    """Whether the service has all images of a recorded resource: see ``ResourceRow.is_to_be_sent``."""
    return known["uploaded_at"] is not None and known["outcome"] != Outcome.NOT_UPLOADED.value


def _why_known(known: RowMapping) -> Why:
    is_ready = known["outcome"] == Outcome.READY.value
    is_settled = known["settled_at"] is not None and known["doubt"] != UNCHANGED
    is_finished = known["outcome"] in _FINISHED and (not is_ready or is_settled)
    return Why.DONE if is_finished else Why.WAITING


def facts_of(series: Series) -> StudyFacts:
    """Return what a series' header says of its study."""
    return StudyFacts(
        study_date=series.study_date,
        study_time=series.study_time,
        study_description=series.study_description,
        study_id=series.study_id,
        referring_physician=series.referring_physician,
        placer_order_number=series.placer_order_number,
        filler_order_number=series.filler_order_number,
        modality=series.modality,
        body_part=series.body_part,
        station_name=series.station_name,
        acquired=series.acquired,
    )


def _study_values(entry: SelectedSeries, key: str, now: float) -> dict[str, Any]:
    identity = entry.series.identity
    return {
        "study_instance_uid": identity.study_instance_uid,
        "patient_id": _storable(identity.patient_id),
        "issuer_of_patient_id": _storable(identity.issuer_of_patient_id),
        "accession_number": _storable(identity.accession_number),
        "birth_date": _storable(identity.birth_date),
        "sex": _storable(identity.sex),
        "patient_name": _storable(identity.patient_name),
        "identity_key": key,
        "study_date": _storable(entry.series.study_date),
        "first_seen_at": now,
    }


def _storable(text: str) -> str:
    """Return a header's text as PostgreSQL takes it: without NUL, which is against DICOM and happens."""
    return text.replace("\0", "\ufffd")


def _identity_key(identity: Identity) -> str:
    return _digest(
        [
            identity.study_instance_uid,
            identity.patient_id,
            identity.issuer_of_patient_id,
            identity.accession_number,
            identity.birth_date,
            identity.sex,
            identity.patient_name,
        ]
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def _run_row(row: RowMapping) -> RunRow:
    return RunRow(
        id=row["id"],
        night=row["night"],
        folder=row["folder"],
        began_at=row["began_at"],
        deadline=row["deadline"],
        completeness=row["completeness"],
        counts=row["counts"],
    )


def _resource_row(row: RowMapping, identity: Identity, why: Why | None) -> ResourceRow:
    return ResourceRow(
        id=row["id"],
        uid=row["uid"],
        route=Route(row["route"]),
        revision=row["revision"],
        series_instance_uid=row["series_instance_uid"],
        identity=identity,
        modality=row["modality"],
        body_part=row["body_part"],
        station_name=row["station_name"],
        acquired=row["acquired"],
        facts=StudyFacts(**row["facts"]),
        outcome=Outcome(row["outcome"]) if row["outcome"] else None,
        reason=row["reason"],
        triage=row["triage"],
        meaning=Meaning(row["meaning"]) if row["meaning"] else Meaning.UNKNOWN,
        usecase=row["usecase"],
        file_counts=row["file_counts"] or {},
        store_path=row["store_path"],
        doubt=row["doubt"],
        uploaded_at=row["uploaded_at"],
        computed_at=row["computed_at"],
        ready_at=row["ready_at"],
        settled_at=row["settled_at"],
        updated_at=row["updated_at"],
        sent_uid=row["sent_uid"],
        digest=row["digest"],
        baseline=row["baseline"],
        sent_in_parts=row["sent_in_parts"],
        instances=row["instances"],
        why=why,
    )


def _chunks(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]
