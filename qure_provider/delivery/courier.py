"""Taking results to their destinations: what is owed is recorded first, then sent, then receipted."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from qure_provider import settings
from qure_provider.api.model import Meaning, Outcome
from qure_provider.background import in_background
from qure_provider.delivery.assemble import (
    LACKING,
    NO_FILES,
    Assembler,
    held_back,
    is_dicom,
    is_sent,
    lacking,
    lacks_newer,
    ready_result,
)
from qure_provider.delivery.destination import (
    Arrival,
    Destination,
    HeldError,
    NotReadyError,
    ObjectsParcel,
    Parcel,
    open_destination,
)
from qure_provider.delivery.rules import Case, Rule, decide, destinations_of
from qure_provider.hooks.media import Media
from qure_provider.hooks.receiver import (
    ReceiverError,
    ReceiverRefusedError,
    ReceiverSettingsError,
)
from qure_provider.ledger.deliveries import (
    LEASE_SECONDS,
    TROUBLED_STATES,
    DeliveryRow,
    DeliveryState,
    NewParcel,
    ParcelKind,
    Wanted,
)
from qure_provider.ledger.ledger import Ledger, ResourceRow
from qure_provider.nights import safe_name
from qure_provider.reports.result import Asset, Result
from qure_provider.reports.study_report import report_key, worst
from qure_provider.store import Store
from qure_provider.triggers.alerts import Paging

log = logging.getLogger(__name__)

UNWANTED = "no rule sends it there"
NOTHING_NEW = "all of it had arrived with an earlier revision"
ENOUGH = 3
"""After so many deliveries in a row that did not get through, a destination is left alone until a later call."""
AT_A_TIME = 8
"""How many deliveries are taken at once: what is urgent of the same study waits for them."""
PATIENCE_SECONDS = 7200.0
"""How long one that was begun is waited for: a slow archive takes a big result, a share that hangs stops no task."""
_RENEW_SECONDS = LEASE_SECONDS / 3


@dataclass(frozen=True, slots=True)
class Trouble:
    """A delivery that somebody should know of.

    Attributes:
        delivery: The delivery.
        state: What became of it.
        reason: Why.
    """

    delivery: DeliveryRow
    state: DeliveryState
    reason: str


class Courier:
    """Enqueues what rules want and sends what is owed.

    Args:
        store: Where results are.
        ledger: Where deliveries are recorded.
        owner: Who holds the leases: the task instance.
        paging: Which results people are told of; with the urgent ones, they go first.
    """

    def __init__(self, store: Store, ledger: Ledger, owner: str, paging: Paging | None = None) -> None:
        self._store = store
        self._ledger = ledger
        self._owner = owner
        self._paging = paging or Paging()
        self._under_way: dict[int, DeliveryRow] = {}

    def enqueue(
        self, run_id: int, rows: Sequence[ResourceRow], rules: Sequence[Rule], *, is_final: bool = False
    ) -> list[str]:
        """Record what is owed of these resources' results.

        A study's report waits until all its resources have their answer, unless one is urgent: then it goes at once,
        and again as a newer revision when the rest is there.

        Args:
            run_id: The run that owes it.
            rows: Resources, as recorded now.
            rules: What goes where.
            is_final: Whether nothing more is waited for: reports go out with what is there.

        Returns:
            Which destinations can't be used, and which results can't be read, and why; the others are served.
        """
        takers, problems = _takers(rules)
        for parcel, wanted in self._parcels(rows, rules, takers, problems, is_final=is_final):
            self._ledger.deliveries.enqueue(run_id, parcel, wanted)
        return problems

    def deliver(
        self,
        destinations: Iterable[str],
        *,
        run_id: int | None = None,
        seconds: float,
        even_if_not_due: bool = False,
        only_urgent: bool = False,
        lanes: int = 1,
        patience: float = PATIENCE_SECONDS,
        tell: Callable[[], None] | None = None,
    ) -> list[Trouble]:
        """Send what is owed, to all destinations at once, for a bounded time.

        Nothing is tried twice in one call. A destination that does not answer is left alone until a later one. What
        still hangs in the end is left to itself: nobody knows whether it arrived, once its lease has run out.

        Args:
            destinations: Where to.
            run_id: Only what this run owes; None for all.
            seconds: After this time nothing more is begun.
            even_if_not_due: Whether to try again before the time that was set.
            only_urgent: Whether to leave the others to somebody else.
            lanes: How many send to one destination side by side, at most; see ``Destination.lanes``.
            patience: For how many seconds more what was begun by then is waited for.
            tell: Called, perhaps from several threads at once, as soon as something urgent was held, given up or is in
                doubt; the others go on meanwhile. Where it fails the caller has to do it again.

        Returns:
            What was held, given up or is in doubt.
        """
        names = list(destinations)
        if not names:
            return []
        began, give_up = time.time(), time.monotonic() + seconds

        def work(name: str, destination: Destination) -> list[Trouble]:
            with closing(destination):
                return self._deliver_to(
                    name,
                    destination,
                    run_id,
                    began,
                    give_up,
                    even_if_not_due=even_if_not_due,
                    only_urgent=only_urgent,
                    tell=tell,
                )

        opened = [(name, destination) for name in names for destination in self._open_lanes(name, lanes)]
        begun = [in_background(partial(work, *lane), "qure-deliver") for lane in opened]
        done = self._wait_for(begun, give_up + patience)
        if hanging := [name for (name, _), future in zip(opened, begun, strict=True) if future not in done]:
            log.error("Deliveries hang and are left to themselves: destinations=%s", " ".join(hanging))
        return [trouble for future in begun if future in done for trouble in future.result()]

    def _wait_for(self, begun: Sequence[Future[list[Trouble]]], until: float) -> set[Future[list[Trouble]]]:
        """Wait for lanes, and keep the leases of what they send; returns those that came to an end."""
        while True:
            left = until - time.monotonic()
            done, going = wait(begun, timeout=max(0.0, min(left, _RENEW_SECONDS)))
            if not going or left <= 0:
                return done
            for row in [*self._under_way.values()]:
                self._ledger.deliveries.renew(row)

    def _open_lanes(self, name: str, lanes: int) -> Iterator[Destination]:
        first = self._open(name)
        if first is None:
            return
        yield first
        for _ in range(min(lanes, first.lanes) - 1):
            destination = self._open(name)
            if destination is None:
                return
            yield destination

    def _open(self, name: str) -> Destination | None:
        """Open a destination and look its connection up, which threads of ``dag.test()`` cannot do at once."""
        try:
            destination = open_destination(name)
        except ReceiverSettingsError as error:
            self._ledger.deliveries.note(name, str(error))
            log.warning("A destination cannot be used: destination=%s error=%s", name, error)
            return None
        with suppress(ReceiverSettingsError):  # each delivery that it stops will say so
            _ = destination.is_loopback
        return destination

    def render(self, rows: Sequence[ResourceRow], rules: Sequence[Rule], folder: str) -> list[str]:
        """Write what would be sent for these resources into the store, and send nothing.

        What would not go out has a ``NOT_SENT.txt`` that says why, and is a problem.

        Args:
            rows: Resources, as recorded now.
            rules: What goes where.
            folder: Where to, relative to the store's root: a folder for each destination and parcel.

        Returns:
            Which destinations can't be used, which results can't be read, and what would not be sent, and why.
        """
        takers, problems = _takers(rules)
        not_sent = []
        for parcel, wanted in self._parcels(rows, rules, takers, problems, is_final=True):
            known = [
                row
                for row in self._ledger.deliveries.of_study(parcel.study_instance_uid)
                if (row.kind, row.subject) == (parcel.kind, parcel.subject)
            ]
            newest = max((row.revision for row in known), default=0)
            same = [row for row in known if row.revision == newest and row.digest == parcel.digest]
            arrived = {row.destination for row in same if row.state is DeliveryState.DELIVERED}
            for item in wanted:
                if item.state is not DeliveryState.NOT_WANTED and item.destination not in arrived:
                    target = f"{folder}/{safe_name(item.destination)}/{parcel.kind.value}-{parcel.subject}"
                    if reason := self._render_one(
                        _imagined(parcel, item, newest if same else newest + 1), item, target
                    ):
                        not_sent.append(_not_sent(parcel, item.destination, reason))
        return [*problems, *not_sent]

    def _render_one(self, delivery: DeliveryRow, item: Wanted, target: str) -> str:
        reason = ""
        with closing(open_destination(item.destination)) as destination, self._store.scratch() as scratch:
            rendered = scratch / "rendered"
            rendered.mkdir()
            try:
                if item.state is DeliveryState.HELD:
                    raise HeldError(item.reason)
                assembler = Assembler(self._store, self._ledger, scratch)
                assembled = assembler.assemble(delivery, only_dicom=destination.only_dicom)
                destination.render(assembled.content, rendered)
            except (HeldError, NotReadyError, ReceiverError) as error:
                reason = str(error)
                (rendered / "NOT_SENT.txt").write_text(f"{reason}\n", encoding="utf-8")
            for path in sorted(rendered.iterdir()):
                self._store.put(path, f"{target}/{path.name}")
        return reason

    def _parcels(
        self,
        rows: Sequence[ResourceRow],
        rules: Sequence[Rule],
        takers: Sequence[_Taker],
        problems: list[str],
        *,
        is_final: bool,
    ) -> Iterator[tuple[NewParcel, list[Wanted]]]:
        """Yield what is owed; a stored result that cannot be read is a problem that stops only what needs it."""
        archives = [taker for taker in takers if taker.kind is ParcelKind.OBJECTS]
        readers = [taker.name for taker in takers if taker.kind is ParcelKind.REPORT]
        if archives:
            for row in rows:
                if row.outcome is Outcome.READY and row.store_path:
                    try:
                        yield self._objects(row, rules, archives)
                    except (OSError, ValueError):
                        problems.append(_unreadable(row.identity.study_instance_uid, row.uid))
        if readers:
            for study in dict.fromkeys(row.identity.study_instance_uid for row in rows):
                try:
                    yield from [*self._reports(study, rules, readers, is_final=is_final)]
                except (OSError, ValueError):
                    problems.append(_unreadable(study))

    def _objects(
        self, row: ResourceRow, rules: Sequence[Rule], takers: Sequence[_Taker]
    ) -> tuple[NewParcel, list[Wanted]]:
        result = ready_result(self._store, row)
        case = _case([row], [result])
        parcel = NewParcel(
            kind=ParcelKind.OBJECTS,
            subject=row.uid,
            digest=_digest([(asset.kind, asset.sha256) for asset in result.assets] + [row.id]),
            study_instance_uid=row.identity.study_instance_uid,
            product=row.usecase or "",
            resource_ids=(row.id,),
            urgent=self._is_urgent([result]),
        )
        return parcel, [_with_files(taker, _wanted(rules, case, taker.name, row.doubt), result) for taker in takers]

    def _reports(
        self, study: str, rules: Sequence[Rule], destinations: Sequence[str], *, is_final: bool
    ) -> Iterable[tuple[NewParcel, list[Wanted]]]:
        rows = self._ledger.rows_of_study(study)
        ready = [row for row in rows if row.outcome is Outcome.READY and row.store_path]
        is_whole = is_final or all(row.is_over or row.outcome is Outcome.NOT_UPLOADED for row in rows)
        lacks = lacks_newer(rows)
        for product in dict.fromkeys(row.usecase or "" for row in ready):
            group = [row for row in ready if (row.usecase or "") == product]
            results = [ready_result(self._store, row) for row in group]
            is_urgent = self._is_urgent(results)
            if not (is_whole or is_urgent):
                continue
            doubt = next((row.doubt for row in group if row.doubt), LACKING if lacks and not is_urgent else "")
            missing = lacking(rows, group, product)
            case = _case(group, results, missing)
            content = [[row.id, _content_digest(result)] for row, result in zip(group, results, strict=True)]
            parcel = NewParcel(
                kind=ParcelKind.REPORT,
                subject=report_key(study, product),
                digest=_digest([content, len(missing)]),
                study_instance_uid=study,
                product=product,
                resource_ids=tuple(row.id for row in group),
                urgent=is_urgent,
            )
            yield parcel, [_wanted(rules, case, name, doubt) for name in destinations]

    def _is_urgent(self, results: Sequence[Result]) -> bool:
        return any(result.meaning is Meaning.URGENT or self._paging.wants(result) for result in results)

    def _deliver_to(
        self,
        name: str,
        destination: Destination,
        run_id: int | None,
        began: float,
        give_up: float,
        *,
        even_if_not_due: bool,
        only_urgent: bool,
        tell: Callable[[], None] | None,
    ) -> list[Trouble]:
        deliveries = self._ledger.deliveries
        troubles: list[Trouble] = []
        failures = 0
        while failures < ENOUGH and time.monotonic() < give_up:
            claimed = deliveries.claim(
                self._owner,
                destination=name,
                run_id=run_id,
                even_if_not_due=even_if_not_due,
                not_begun_since=began,
                only_urgent=only_urgent,
                limit=AT_A_TIME,
            )
            if not claimed:
                break
            for position, row in enumerate(claimed):
                if failures >= ENOUGH or time.monotonic() >= give_up:
                    deliveries.put_back(claimed[position:])
                    break
                if not deliveries.renew(row):
                    continue
                self._under_way[row.id] = row
                try:
                    tried = self._deliver_one(destination, row)
                finally:
                    del self._under_way[row.id]
                if tried.got_through is not None:
                    failures = 0 if tried.got_through else failures + 1
                if tried.state in TROUBLED_STATES:
                    troubles.append(Trouble(row, tried.state, tried.reason))
                    if tell is not None and row.urgent:
                        _try_to(tell)
        return troubles

    def _deliver_one(self, destination: Destination, row: DeliveryRow) -> _Tried:
        deliveries = self._ledger.deliveries
        try:
            receipt = self._send(destination, row)
        except HeldError as error:
            deliveries.held(row, str(error))
            return _Tried(DeliveryState.HELD, str(error))
        except NotReadyError as error:
            return _Tried(deliveries.try_later(row, str(error)), str(error))
        except ReceiverRefusedError as error:
            deliveries.dead(row, str(error))
            return _Tried(DeliveryState.DEAD, str(error), got_through=True)
        except ReceiverError as error:
            log.warning("A delivery did not get through: destination=%s error=%s", row.destination, error)
            state = deliveries.try_later(row, str(error), in_doubt=error.may_have_arrived)
            return _Tried(state, str(error), got_through=False)
        except Exception as error:  # one parcel that cannot be made or sent must not hold up the others
            place = traceback.extract_tb(error.__traceback__)[-1]
            log.error(
                "A delivery failed unexpectedly: destination=%s error=%s at=%s:%d",
                row.destination,
                type(error).__name__,
                place.filename,
                place.lineno or 0,
            )
            reason = f"it failed unexpectedly ({type(error).__name__}); the task's log says where"
            return _Tried(deliveries.try_later(row, reason), reason)
        deliveries.delivered(row, receipt)
        return _Tried(DeliveryState.DELIVERED, got_through=True)

    def _send(self, destination: Destination, row: DeliveryRow) -> dict[str, Any]:
        with self._store.scratch() as scratch:
            assembler = Assembler(self._store, self._ledger, scratch)
            assembled = assembler.assemble(row, only_dicom=destination.only_dicom)
            if assembled.is_simulated and not destination.is_loopback:
                raise HeldError("it was made by an emulator, and the destination is not on this machine")
            content = assembled.content
            if isinstance(content, ObjectsParcel) and not (content.files or content.withdrawn_because):
                return {"proof": NOTHING_NEW}
            if row.was_in_doubt and destination.arrived(content) is Arrival.ARRIVED:
                return {**_contents(content), "proof": "the destination was asked after a try in doubt"}
            return {**_contents(content), **destination.send(content)}


@dataclass(frozen=True, slots=True)
class _Taker:
    """A destination, and what it takes."""

    name: str
    kind: ParcelKind
    only_dicom: bool

    def takes(self, asset: Asset, sends: Sequence[str]) -> bool:
        return is_sent(asset.kind, sends, is_dicom=is_dicom(asset), only_dicom=self.only_dicom)


@dataclass(frozen=True, slots=True)
class _Tried:
    """What became of one try; ``got_through`` is None where the destination had no part in it."""

    state: DeliveryState
    reason: str = ""
    got_through: bool | None = None


def _try_to(tell: Callable[[], None]) -> None:
    """Tell people; what a lane has taken must be sent even where that fails."""
    try:
        tell()
    except Exception as error:
        log.warning("People could not yet be told of an urgent delivery: error=%s", type(error).__name__)


def _takers(rules: Sequence[Rule]) -> tuple[list[_Taker], list[str]]:
    """Return what each destination takes, and which cannot be used."""
    takers, problems = [], []
    for name in destinations_of(rules):
        try:
            with closing(open_destination(name)) as destination:
                takers.append(_Taker(name, destination.takes, destination.only_dicom))
        except ReceiverSettingsError as error:
            problems.append(f"Nothing is delivered to {name!r}: {error}")
    return takers, problems


def _unreadable(study: str, uid: str = "") -> str:
    what = f", resource {settings.short_ref(uid)}" if uid else ""
    return (
        f"Study {settings.short_ref(study)}{what}: nothing new of it is delivered, because its stored result is "
        "missing or damaged. Recompute brings a new one."
    )


def _not_sent(parcel: NewParcel, destination: str, reason: str) -> str:
    study, product = settings.short_ref(parcel.study_instance_uid), parcel.product or "unknown product"
    return f"Study {study}, {product} {parcel.kind.value} for {destination} would not be sent: {reason.rstrip('.')}."


def _wanted(rules: Sequence[Rule], case: Case, destination: str, doubt: str) -> Wanted:
    sends = decide(rules, case, destination)
    if sends is None:
        return Wanted(destination, state=DeliveryState.NOT_WANTED, reason=UNWANTED)
    if doubt:
        return Wanted(destination, sends, DeliveryState.HELD, doubt)
    return Wanted(destination, sends)


def _with_files(taker: _Taker, wanted: Wanted, result: Result) -> Wanted:
    """Return the same, unless there is no file to send: then nothing is wanted, or what would be sent is held back."""
    if wanted.state is DeliveryState.NOT_WANTED or any(taker.takes(asset, wanted.sends) for asset in result.assets):
        return wanted
    if reason := held_back(result, wanted.sends, only_dicom=taker.only_dicom):
        return Wanted(taker.name, wanted.sends, DeliveryState.HELD, reason)
    return Wanted(taker.name, state=DeliveryState.NOT_WANTED, reason=NO_FILES)


def _case(rows: Sequence[ResourceRow], results: Sequence[Result], missing: Sequence[ResourceRow] = ()) -> Case:
    findings = {key for result in results for key, is_true in result.decisions.items() if is_true}
    findings |= {key for result in results for key, _ in result.report.findings_list}
    return Case(
        product=rows[0].usecase or "",
        meaning=worst([*(result.meaning for result in results), *[Meaning.UNKNOWN] * len(missing)]),
        modalities=frozenset(row.modality for row in rows),
        stations=frozenset(row.station_name for row in rows),
        findings=frozenset(findings),
        outcomes=frozenset((row.outcome or Outcome.PENDING).value for row in (*rows, *missing)),
    )


def _contents(parcel: Parcel) -> dict[str, Any]:
    """Return what a receipt says of the files that arrived, so that they are neither sent twice nor forgotten."""
    if not isinstance(parcel, ObjectsParcel) or parcel.withdrawn_because:
        return {}
    return {
        "sha256": [asset.sha256 for asset, _ in parcel.files],
        "objects": [[item.sop_class_uid, item.sop_instance_uid, item.series_instance_uid] for item in parcel.objects],
    }


def _imagined(parcel: NewParcel, item: Wanted, revision: int) -> DeliveryRow:
    return DeliveryRow(
        id=0,
        kind=parcel.kind,
        subject=parcel.subject,
        revision=revision,
        digest=parcel.digest,
        study_instance_uid=parcel.study_instance_uid,
        product=parcel.product,
        resource_ids=parcel.resource_ids,
        urgent=parcel.urgent,
        destination=item.destination,
        sends=item.sends,
        state=item.state,
        reason="",
        tries=0,
        receipt={},
        was_in_doubt=False,
        owner="",
        made_at=time.time(),
        delivered_at=None,
    )


def _content_digest(result: Result) -> str:
    """Digest what a clinical message says: all but the files that are pictures of the same."""
    texts = replace(result, assets=tuple(asset for asset in result.assets if asset.media == Media.PDF.value))
    return _digest(texts.to_json())


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
