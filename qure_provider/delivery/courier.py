"""Taking results to their destinations: what is owed is recorded first, then sent, then receipted."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace

from qure_provider.api.model import Meaning, Outcome
from qure_provider.delivery.assemble import Assembler, ready_result
from qure_provider.delivery.destination import Arrival, Destination, HeldError, open_destination
from qure_provider.delivery.rules import Case, Rule, decide, destinations_of
from qure_provider.hooks.receiver import (
    DeliveryInDoubtError,
    ReceiverRefusedError,
    ReceiverSettingsError,
    ReceiverUnavailableError,
)
from qure_provider.ledger.deliveries import DeliveryRow, DeliveryState, NewParcel, ParcelKind, Wanted
from qure_provider.ledger.ledger import Ledger, ResourceRow
from qure_provider.nights import safe_name
from qure_provider.reports.result import Result
from qure_provider.reports.study_report import report_key
from qure_provider.store import Store

log = logging.getLogger(__name__)

UNWANTED = "no rule sends it there"


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
    """

    def __init__(self, store: Store, ledger: Ledger, owner: str) -> None:
        self._store = store
        self._ledger = ledger
        self._owner = owner

    def enqueue(
        self, run_id: int, rows: Sequence[ResourceRow], rules: Sequence[Rule], *, is_final: bool = False
    ) -> None:
        """Record what is owed of these resources' results.

        A study's report waits until all its resources have their answer, unless one is urgent: then it goes at once,
        and again as a newer revision when the rest is there.

        Args:
            run_id: The run that owes it.
            rows: Resources, as recorded now.
            rules: What goes where.
            is_final: Whether nothing more is waited for: reports go out with what is there.
        """
        takers = _takers(rules)
        for row in rows:
            if row.outcome is Outcome.READY and row.store_path:
                self._enqueue_objects(run_id, row, rules, takers.get(ParcelKind.OBJECTS, ()))
        report_takers = takers.get(ParcelKind.REPORT, ())
        if report_takers:
            for study in dict.fromkeys(row.identity.study_instance_uid for row in rows):
                self._enqueue_reports(run_id, study, rules, report_takers, is_final=is_final)

    def deliver(
        self,
        destinations: Iterable[str],
        *,
        run_id: int | None = None,
        seconds: float,
        even_if_not_due: bool = False,
    ) -> list[Trouble]:
        """Send what is owed, to all destinations at once, for a bounded time.

        A destination that does not answer is left alone until a later call.

        Args:
            destinations: Where to.
            run_id: Only what this run owes; None for all.
            seconds: After this time nothing more is begun.
            even_if_not_due: Whether to try again before the time that was set.

        Returns:
            What was held, given up or is in doubt.
        """
        names = list(destinations)
        if not names:
            return []
        give_up = time.monotonic() + seconds
        with ThreadPoolExecutor(max_workers=min(len(names), 8)) as pool:
            parts = pool.map(lambda name: self._deliver_to(name, run_id, give_up, even_if_not_due), names)
            return [trouble for part in parts for trouble in part]

    def render(self, rows: Sequence[ResourceRow], rules: Sequence[Rule], folder: str) -> int:
        """Write what would be sent for these resources into the store, and send nothing.

        Args:
            rows: Resources, as recorded now.
            rules: What goes where.
            folder: Where to, relative to the store's root: a folder for each destination and parcel.

        Returns:
            How many parcels.
        """
        written = 0
        for parcel, wanted in self._all_parcels(rows, rules):
            for item in wanted:
                if item.state is not DeliveryState.NOT_WANTED:
                    target = f"{folder}/{safe_name(item.destination)}/{parcel.kind.value}-{parcel.subject}"
                    self._render_one(parcel, item, target)
                    written += 1
        return written

    def _render_one(self, parcel: NewParcel, item: Wanted, target: str) -> None:
        with closing(open_destination(item.destination)) as destination, self._store.scratch() as scratch:
            rendered = scratch / "rendered"
            rendered.mkdir()
            try:
                if item.state is DeliveryState.HELD:
                    raise HeldError(item.reason)
                assembled = Assembler(self._store, self._ledger, scratch).assemble(_imagined(parcel, item))
                destination.render(assembled.content, rendered)
            except HeldError as error:
                (rendered / "HELD.txt").write_text(f"{error}\n", encoding="utf-8")
            for path in sorted(rendered.iterdir()):
                self._store.put(path, f"{target}/{path.name}")

    def _all_parcels(
        self, rows: Sequence[ResourceRow], rules: Sequence[Rule]
    ) -> Iterable[tuple[NewParcel, list[Wanted]]]:
        takers = _takers(rules)
        for row in rows:
            if row.outcome is Outcome.READY and row.store_path:
                yield self._objects(row, rules, takers.get(ParcelKind.OBJECTS, ()))
        for study in dict.fromkeys(row.identity.study_instance_uid for row in rows):
            yield from self._reports(study, rules, takers.get(ParcelKind.REPORT, ()), is_final=True)

    def _enqueue_objects(
        self, run_id: int, row: ResourceRow, rules: Sequence[Rule], destinations: Sequence[str]
    ) -> None:
        parcel, wanted = self._objects(row, rules, destinations)
        if wanted:
            self._ledger.deliveries.enqueue(run_id, parcel, wanted)

    def _objects(
        self, row: ResourceRow, rules: Sequence[Rule], destinations: Sequence[str]
    ) -> tuple[NewParcel, list[Wanted]]:
        result = ready_result(self._store, row)
        case = _case(row, [result])
        parcel = NewParcel(
            kind=ParcelKind.OBJECTS,
            subject=row.uid,
            digest=_digest([(asset.kind, asset.sha256) for asset in result.assets] + [row.id]),
            study_instance_uid=row.identity.study_instance_uid,
            product=row.usecase or "",
            resource_ids=(row.id,),
            urgent=row.meaning is Meaning.URGENT,
        )
        return parcel, [_wanted(rules, case, name, row.doubt) for name in destinations]

    def _enqueue_reports(
        self, run_id: int, study: str, rules: Sequence[Rule], destinations: Sequence[str], *, is_final: bool
    ) -> None:
        for parcel, wanted in self._reports(study, rules, destinations, is_final=is_final):
            self._ledger.deliveries.enqueue(run_id, parcel, wanted)

    def _reports(
        self, study: str, rules: Sequence[Rule], destinations: Sequence[str], *, is_final: bool
    ) -> Iterable[tuple[NewParcel, list[Wanted]]]:
        rows = self._ledger.rows_of_study(study)
        ready = [row for row in rows if row.outcome is Outcome.READY and row.store_path and row.usecase]
        is_whole = is_final or all(row.is_over or row.outcome is Outcome.NOT_UPLOADED for row in rows)
        for product in dict.fromkeys(row.usecase or "" for row in ready):
            group = [row for row in ready if row.usecase == product]
            if not destinations or not (is_whole or any(row.meaning is Meaning.URGENT for row in group)):
                continue
            results = [ready_result(self._store, row) for row in group]
            case = _case(group[0], results)
            doubt = next((row.doubt for row in group if row.doubt), "")
            parcel = NewParcel(
                kind=ParcelKind.REPORT,
                subject=report_key(study, product),
                digest=_digest([[row.id, _content_digest(result)] for row, result in zip(group, results, strict=True)]),
                study_instance_uid=study,
                product=product,
                resource_ids=tuple(row.id for row in group),
                urgent=any(row.meaning is Meaning.URGENT for row in group),
            )
            yield parcel, [_wanted(rules, case, name, doubt) for name in destinations]

    def _deliver_to(self, name: str, run_id: int | None, give_up: float, even_if_not_due: bool) -> list[Trouble]:
        troubles: list[Trouble] = []
        destination: Destination | None = None
        tried: set[int] = set()
        try:
            while time.monotonic() < give_up:
                claimed = self._ledger.deliveries.claim(
                    self._owner, destination=name, run_id=run_id, even_if_not_due=even_if_not_due
                )
                again = [row for row in claimed if row.id in tried]
                self._ledger.deliveries.put_back(again, "tried in this round already")
                fresh = [row for row in claimed if row.id not in tried]
                if not fresh:
                    break
                for position, row in enumerate(fresh):
                    tried.add(row.id)
                    try:
                        destination = destination or open_destination(name)
                        trouble = self._deliver_one(destination, row)
                    except (ReceiverSettingsError, ReceiverUnavailableError) as error:
                        self._ledger.deliveries.try_later(row, str(error))
                        self._ledger.deliveries.put_back(fresh[position + 1 :], str(error))
                        log.warning("A destination did not take a delivery: destination=%s error=%s", name, error)
                        return troubles
                    if trouble:
                        troubles.append(trouble)
        finally:
            if destination is not None:
                destination.close()
        return troubles

    def _deliver_one(self, destination: Destination, row: DeliveryRow) -> Trouble | None:
        deliveries = self._ledger.deliveries
        try:
            with self._store.scratch() as scratch:
                parcel = Assembler(self._store, self._ledger, scratch).assemble(row)
                if parcel.is_simulated and not destination.is_loopback:
                    raise HeldError("it was made by an emulator, and the destination is not on this machine")
                if row.was_in_doubt and destination.arrived(parcel.content) is Arrival.ARRIVED:
                    deliveries.delivered(row, {"proof": "the destination was asked after a try in doubt"})
                    return None
                receipt = destination.send(parcel.content)
        except HeldError as error:
            deliveries.held(row, str(error))
            return Trouble(row, DeliveryState.HELD, str(error))
        except ReceiverRefusedError as error:
            deliveries.dead(row, str(error))
            return Trouble(row, DeliveryState.DEAD, str(error))
        except DeliveryInDoubtError as error:
            state = deliveries.try_later(row, str(error), in_doubt=True)
            return Trouble(row, state, str(error))
        deliveries.delivered(row, receipt)
        return None


def _takers(rules: Sequence[Rule]) -> dict[ParcelKind, list[str]]:
    """Return which destinations take objects and which take reports."""
    takers: dict[ParcelKind, list[str]] = {}
    for name in destinations_of(rules):
        with closing(open_destination(name)) as destination:
            takers.setdefault(destination.takes, []).append(name)
    return takers


def _wanted(rules: Sequence[Rule], case: Case, destination: str, doubt: str) -> Wanted:
    sends = decide(rules, case, destination)
    if sends is None:
        return Wanted(destination, state=DeliveryState.NOT_WANTED, reason=UNWANTED)
    if doubt:
        return Wanted(destination, sends, DeliveryState.HELD, doubt)
    return Wanted(destination, sends)


def _case(row: ResourceRow, results: Sequence[Result]) -> Case:
    from qure_provider.reports.study_report import worst

    findings = {key for result in results for key, is_true in result.decisions.items() if is_true}
    findings |= {key for result in results for key, _ in result.report.findings_list}
    return Case(
        product=row.usecase or "",
        meaning=worst(result.meaning for result in results),
        modality=row.modality,
        station=row.station_name,
        findings=frozenset(findings),
    )


def _imagined(parcel: NewParcel, item: Wanted) -> DeliveryRow:
    return DeliveryRow(
        id=0,
        kind=parcel.kind,
        subject=parcel.subject,
        revision=1,
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
        made_at=time.time(),
        delivered_at=None,
    )


def _content_digest(result: Result) -> str:
    """Digest what a clinical message says: all but the files that are pictures of the same."""
    texts = replace(result, assets=tuple(asset for asset in result.assets if asset.media == "application/pdf"))
    return _digest(texts.to_json())


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
