"""Putting together what is sent, and holding back what must not be."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pendulum

from qure_provider import settings
from qure_provider.api.model import Outcome
from qure_provider.delivery.destination import HeldError, NotReadyError, ObjectsParcel, Parcel, ReportParcel
from qure_provider.delivery.rules import NEVER_ONWARD
from qure_provider.dicom.complete import complete_objects
from qure_provider.dicom.objects import UnreadableError
from qure_provider.dicom.rejection import Rejected
from qure_provider.dicom.verify import is_simulated, verify_objects
from qure_provider.hooks.media import Media
from qure_provider.ledger.deliveries import NOT_READY, DeliveryRow, ParcelKind
from qure_provider.ledger.ledger import Ledger, ResourceRow
from qure_provider.reports.result import Asset, Result
from qure_provider.reports.study_report import StudyReport, worst
from qure_provider.store import Store

PDF_KINDS = ("report_pdf", "pdf")
LACKING = "an image was sent again and has no newer result: a report without it could replace one that had it"
NO_FILES = "the result has no file that the rule sends and the destination takes"


@dataclass(frozen=True, slots=True)
class Assembled:
    """A parcel that may go out.

    Attributes:
        content: The parcel.
        is_simulated: Whether an emulator made it.
    """

    content: Parcel
    is_simulated: bool


class Assembler:
    """Makes parcels from the store and the ledger.

    Args:
        store: Where results are.
        ledger: Whose they are, and what was sent.
        scratch: A local folder for the copies that are sent.
    """

    def __init__(self, store: Store, ledger: Ledger, scratch: Path) -> None:
        self._store = store
        self._ledger = ledger
        self._scratch = scratch

    def assemble(self, delivery: DeliveryRow, *, only_dicom: bool = False) -> Assembled:
        """Make a delivery's parcel.

        Args:
            delivery: The delivery.
            only_dicom: Whether its destination takes DICOM objects alone.

        Raises:
            HeldError: If a result may not be the right one, or not the right patient's.
            NotReadyError: If a result is asked for anew, so that there is none now.
        """
        is_withdrawal = delivery.kind is ParcelKind.WITHDRAWAL
        rows = self._ledger.rows_by_id(delivery.resource_ids) if is_withdrawal else self._current(delivery)
        if not rows:
            raise HeldError("the ledger has forgotten the images that it is of")
        checked = [self._check(row, number, is_withdrawal=is_withdrawal) for number, row in enumerate(rows)]
        simulated = any(item.is_simulated for item in checked)
        if delivery.subject not in {row.uid for row in rows}:
            missing = () if is_withdrawal else self._lacking(delivery, rows)
            report = self._report(delivery, rows, checked, lacking=len(missing))
            return Assembled(ReportParcel(report, is_withdrawal), simulated)
        if is_withdrawal:
            return Assembled(self._withdrawn_objects(delivery, checked[0]), simulated)
        return Assembled(self._objects(delivery, checked[0], only_dicom=only_dicom), simulated)

    def _current(self, delivery: DeliveryRow) -> list[ResourceRow]:
        """Return the resources of a delivery, unless something newer is known of them."""
        of_study = self._ledger.rows_of_study(delivery.study_instance_uid)
        newest = {row.id: row for row in of_study}
        rows = [newest[resource_id] for resource_id in delivery.resource_ids if resource_id in newest]
        if len(rows) != len(delivery.resource_ids):
            raise HeldError("the images were sent again since; their newer result takes its place")
        if len({row.identity for row in of_study}) > 1:
            raise HeldError(
                "images of the study were sent with different patient data or accession numbers; export all of it again"
            )
        if delivery.kind is ParcelKind.REPORT and not delivery.urgent and lacks_newer(of_study):
            raise HeldError(LACKING)
        if self._ledger.deliveries.withdrawn_resources(delivery.study_instance_uid) & {*delivery.resource_ids}:
            raise HeldError("a result in it was withdrawn; only a newer one can go out")
        return rows

    def _check(self, row: ResourceRow, number: int, *, is_withdrawal: bool) -> _Checked:
        """Check that a result is the right patient's; what is taken back went out before, so it is not held."""
        if row.doubt and not is_withdrawal:
            raise HeldError(row.doubt)
        try:
            result = stored_result(self._store, row) if is_withdrawal else ready_result(self._store, row)
        except ValueError:
            raise HeldError("the stored result is damaged; recompute brings a new one") from None
        folder = self._scratch / f"fetched-{number}"
        folder.mkdir()
        fetched = [(asset, self._local(row, asset, folder)) for asset in result.assets]
        files = [(asset, path) for asset, path in fetched if asset.kind not in NEVER_ONWARD]
        objects = [path for asset, path in files if is_dicom(asset)]
        copies = [path for asset, path in fetched if asset.kind in NEVER_ONWARD and is_dicom(asset)]
        sent = self._ledger.sent_uids(row.identity.study_instance_uid)
        contradiction = verify_objects(objects, row.identity, sent, copies=copies)
        if contradiction and not is_withdrawal:
            raise HeldError(contradiction)
        return _Checked(row, result, files, any(is_simulated(path) for path in objects) or _says_simulated(result))

    def _withdrawn_objects(self, delivery: DeliveryRow, checked: _Checked) -> ObjectsParcel:
        """Name what arrived, by the receipts, and what may have: all that could have been sent."""
        row = checked.row
        receipts = self._ledger.deliveries.receipts(ParcelKind.OBJECTS, delivery.subject, delivery.destination)
        arrived = [Rejected(*uids) for receipt in receipts for uids in receipt.get("objects", ())]
        files = [(asset, path) for asset, path in checked.files if not delivery.sends or asset.kind in delivery.sends]
        objects = {item.sop_instance_uid: item for item in [*self._complete(row, files).uids, *arrived]}
        return ObjectsParcel(
            identity=row.identity,
            facts=row.facts,
            files=(),
            objects=tuple(objects.values()),
            folder=row.store_path or "",
            made_at=_moment(delivery),
            withdrawn_because=self._ledger.deliveries.withdrawn_because(delivery) or "withdrawn",
        )

    def _objects(self, delivery: DeliveryRow, checked: _Checked, *, only_dicom: bool) -> ObjectsParcel:
        row = checked.row
        folder = (row.store_path or "").removeprefix("studies/")
        arrived = _arrived(
            receipt
            for receipt in self._ledger.deliveries.earlier_receipts(delivery)
            if receipt.get("folder", folder) == folder  # each revision of the images has a folder with all of it
        )
        taken = [
            (asset, path)
            for asset, path in checked.files
            if is_sent(asset.kind, delivery.sends, is_dicom=is_dicom(asset), only_dicom=only_dicom)
        ]
        if not taken:
            raise HeldError(held_back(checked.result, delivery.sends, only_dicom=only_dicom) or NO_FILES)
        wanted = [(asset, path) for asset, path in taken if asset.sha256 not in arrived]
        completed = self._complete(row, wanted)
        self._check_uids(delivery, wanted, completed)
        return ObjectsParcel(
            identity=row.identity,
            facts=row.facts,
            files=tuple((asset, completed.paths.get(path, path)) for asset, path in wanted),
            objects=completed.uids,
            folder=row.store_path or "",
            made_at=_moment(delivery),
        )

    def _check_uids(self, delivery: DeliveryRow, files: Sequence[tuple[Asset, Path]], completed: _Completed) -> None:
        """Hold an object whose UID another one bears at the destination: many archives keep the first, and say nothing.

        Raises:
            HeldError: If there is one.
        """
        receipts = self._ledger.deliveries.receipts_of_study(delivery)
        contents = _arrived(receipts)
        taken = {uids[1] for receipt in receipts for uids in receipt.get("objects", ())}
        for asset, path in files:
            made = completed.objects.get(path)
            if made is not None and made.sop_instance_uid in taken and asset.sha256 not in contents:
                raise HeldError(
                    "another object with the same UID was delivered there before, and an archive may keep that one "
                    "without a word: see which of the two it has"
                )

    def _complete(self, row: ResourceRow, files: Sequence[tuple[Asset, Path]]) -> _Completed:
        folder = self._scratch / "completed"
        folder.mkdir()
        objects = [path for asset, path in files if is_dicom(asset)]
        sent = self._ledger.sent_uids(row.identity.study_instance_uid)
        try:
            completed = complete_objects(objects, folder, row.identity, row.facts, sent)
        except UnreadableError:
            raise HeldError("an object of the result cannot be written again") from None
        return _Completed(
            completed.paths,
            {
                path: Rejected(item.sop_class_uid, item.sop_instance_uid, item.series_instance_uid)
                for path, item in completed.objects.items()
            },
        )

    def _lacking(self, delivery: DeliveryRow, rows: Sequence[ResourceRow]) -> list[ResourceRow]:
        return lacking(self._ledger.rows_of_study(delivery.study_instance_uid), rows, delivery.product)

    def _report(
        self, delivery: DeliveryRow, rows: Sequence[ResourceRow], checked: Sequence[_Checked], *, lacking: int
    ) -> StudyReport:
        if not delivery.product:
            raise HeldError("the service did not say which product it is of")
        leading = min(checked, key=lambda item: item.result.meaning is not worst(c.result.meaning for c in checked))
        pdf = next((path for asset, path in leading.files if asset.kind in PDF_KINDS), None)
        return StudyReport(
            identity=rows[0].identity,
            facts=leading.row.facts,
            product=delivery.product,
            revision=delivery.revision,
            results=tuple(item.result for item in checked),
            issued=_moment(delivery),
            lacking=lacking,
            pdf=pdf,
        )

    def _local(self, row: ResourceRow, asset: Asset, folder: Path) -> Path:
        path = self._store.path(f"{row.store_path}/{asset.name}")
        if isinstance(path, Path):
            return path
        local = folder / asset.name
        with path.open("rb") as source, local.open("wb") as sink:  # type: ignore[no-untyped-call]
            shutil.copyfileobj(source, sink, 1 << 20)
        return local


@dataclass(frozen=True, slots=True)
class _Checked:
    row: ResourceRow
    result: Result
    files: list[tuple[Asset, Path]]
    is_simulated: bool


def _arrived(receipts: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Return the checksums of the files that arrived."""
    return frozenset(digest for receipt in receipts for digest in receipt.get("sha256", ()))


@dataclass(frozen=True, slots=True)
class _Completed:
    paths: Mapping[Path, Path]
    objects: Mapping[Path, Rejected]

    @property
    def uids(self) -> tuple[Rejected, ...]:
        return tuple(self.objects.values())


def ready_result(store: Store, row: ResourceRow) -> Result:
    """Return a ready resource's result from the store.

    Raises:
        NotReadyError: If the resource is not ready.
    """
    if row.outcome is not Outcome.READY:
        raise NotReadyError(NOT_READY)
    return stored_result(store, row)


def stored_result(store: Store, row: ResourceRow) -> Result:
    """Return what was fetched for a resource, whatever its newest answer is.

    Raises:
        NotReadyError: If nothing was.
    """
    if not row.store_path:
        raise NotReadyError(NOT_READY)
    return Result.from_json(store.read_json(f"{row.store_path}/result.json"))


def lacks_newer(of_study: Iterable[ResourceRow]) -> bool:
    """Return whether an image of a study was sent again and has neither a newer result nor another final answer."""
    return any(
        row.revision > 1 and not (row.outcome is Outcome.READY and row.store_path) and not row.is_resolved
        for row in of_study
    )


def is_sent(kind: str, sends: Sequence[str], *, is_dicom: bool, only_dicom: bool) -> bool:
    """Return whether a file goes to a destination.

    Args:
        kind: The service's key for it.
        sends: Which kinds are sent; empty for all.
        is_dicom: Whether it is a DICOM object.
        only_dicom: Whether the destination takes those alone.
    """
    return kind not in NEVER_ONWARD and (not sends or kind in sends) and (is_dicom or not only_dicom)


def held_back(result: Result, sends: Sequence[str], *, only_dicom: bool) -> str:
    """Return why files of a result, which would be sent, are not handed on; empty where there are none of these.

    Args:
        result: The result.
        sends: Which kinds are sent; empty for all.
        only_dicom: Whether the destination takes DICOM objects alone.
    """
    reasons = {
        file.reason
        for file in result.held
        if is_sent(file.kind, sends, is_dicom=file.name.endswith(".dcm"), only_dicom=only_dicom)
    }
    return "; ".join(sorted(reasons))


def lacking(of_study: Iterable[ResourceRow], reported: Sequence[ResourceRow], product: str) -> list[ResourceRow]:
    """Return what a study's report by a product says nothing of though it is, or may be, of that product.

    Args:
        of_study: Every resource of the study, each in its newest revision.
        reported: Those whose results it is made of.
        product: Its product.
    """
    known = {row.uid for row in reported}
    routes = {row.route for row in reported}
    return [
        row
        for row in of_study
        if row.uid not in known
        and row.route in routes
        and not (row.outcome is Outcome.READY and row.usecase not in (None, "", product))
    ]


def _moment(delivery: DeliveryRow) -> datetime:
    return pendulum.from_timestamp(delivery.made_at, tz=settings.timezone())


def is_dicom(asset: Asset) -> bool:
    """Return whether a file is a DICOM object."""
    return asset.media == Media.DICOM.value


def _says_simulated(result: Result) -> bool:
    report = result.report
    texts = [report.impression, report.findings, *report.lines, *(text for _, text in report.findings_list)]
    return any("SIMULATED" in text for text in texts)
