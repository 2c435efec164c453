"""Putting together what is sent, and holding back what must not be."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pendulum

from qure_provider import settings
from qure_provider.api.model import Outcome
from qure_provider.delivery.destination import HeldError, ObjectsParcel, Parcel, ReportParcel
from qure_provider.dicom.complete import complete_objects
from qure_provider.dicom.rejection import Rejected
from qure_provider.dicom.verify import is_simulated, verify_objects
from qure_provider.hooks.media import Media
from qure_provider.ledger.deliveries import DeliveryRow, ParcelKind
from qure_provider.ledger.ledger import Ledger, ResourceRow
from qure_provider.reports.result import Asset, Result
from qure_provider.reports.study_report import StudyReport, worst
from qure_provider.store import Store

NEVER_ONWARD = frozenset({"original", "original_thumbnail"})
"""The service's copy of the image is lossy and carries the source's UID: it could overwrite the image."""
PDF_KINDS = ("report_pdf", "pdf")


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

    def assemble(self, delivery: DeliveryRow) -> Assembled:
        """Make a delivery's parcel.

        Raises:
            HeldError: If a result may not be the right one, or not the right patient's.
        """
        newest = {row.id: row for row in self._ledger.rows_of_study(delivery.study_instance_uid)}
        rows = [newest[resource_id] for resource_id in delivery.resource_ids if resource_id in newest]
        if len(rows) != len(delivery.resource_ids):
            raise HeldError("the images were sent again since; their newer result takes its place")
        is_withdrawal = delivery.kind is ParcelKind.WITHDRAWAL
        checked = [self._check(row, number, is_withdrawal=is_withdrawal) for number, row in enumerate(rows)]
        simulated = any(item.is_simulated for item in checked)
        if delivery.subject not in {row.uid for row in rows}:
            return Assembled(ReportParcel(self._report(delivery, rows, checked), is_withdrawal), simulated)
        if is_withdrawal:
            return Assembled(self._withdrawn_objects(delivery, rows[0]), simulated)
        return Assembled(self._objects(delivery, rows[0], checked[0]), simulated)

    def _check(self, row: ResourceRow, number: int, *, is_withdrawal: bool) -> _Checked:
        """Check that a result is the right patient's; what is taken back went out before, so it is not held."""
        if row.doubt and not is_withdrawal:
            raise HeldError(row.doubt)
        result = ready_result(self._store, row)
        folder = self._scratch / f"fetched-{number}"
        folder.mkdir()
        fetched = [(asset, self._local(row, asset, folder)) for asset in result.assets]
        files = [(asset, path) for asset, path in fetched if asset.kind not in NEVER_ONWARD]
        objects = [path for asset, path in files if _is_dicom(asset)]
        copies = [path for asset, path in fetched if asset.kind in NEVER_ONWARD and _is_dicom(asset)]
        sent = self._ledger.sent_uids(row.identity.study_instance_uid)
        contradiction = verify_objects(objects, row.identity, sent, copies=copies)
        if contradiction and not is_withdrawal:
            raise HeldError(contradiction)
        return _Checked(row, result, files, any(is_simulated(path) for path in objects) or _says_simulated(result))

    def _withdrawn_objects(self, delivery: DeliveryRow, row: ResourceRow) -> ObjectsParcel:
        receipts = self._ledger.deliveries.receipts(ParcelKind.OBJECTS, delivery.subject, delivery.destination)
        return ObjectsParcel(
            identity=row.identity,
            facts=row.facts,
            files=(),
            objects=tuple(Rejected(*uids) for receipt in receipts for uids in receipt.get("objects", ())),
            folder=row.store_path or "",
            made_at=_moment(delivery),
            withdrawn_because=self._ledger.deliveries.withdrawn_because(delivery) or "withdrawn",
        )

    def _objects(self, delivery: DeliveryRow, row: ResourceRow, checked: _Checked) -> ObjectsParcel:
        arrived = {
            digest
            for receipt in self._ledger.deliveries.earlier_receipts(delivery)
            for digest in receipt.get("sha256", ())
        }
        wanted = [
            (asset, path)
            for asset, path in checked.files
            if (not delivery.sends or asset.kind in delivery.sends) and asset.sha256 not in arrived
        ]
        folder = self._scratch / "completed"
        folder.mkdir()
        objects = [path for asset, path in wanted if _is_dicom(asset)]
        sent = self._ledger.sent_uids(row.identity.study_instance_uid)
        completed = complete_objects(objects, folder, row.identity, row.facts, sent)
        return ObjectsParcel(
            identity=row.identity,
            facts=row.facts,
            files=tuple((asset, completed.paths.get(path, path)) for asset, path in wanted),
            objects=tuple(
                Rejected(item.sop_class_uid, item.sop_instance_uid, item.series_instance_uid)
                for item in completed.objects.values()
            ),
            folder=row.store_path or "",
            made_at=_moment(delivery),
        )

    def _report(self, delivery: DeliveryRow, rows: Sequence[ResourceRow], checked: Sequence[_Checked]) -> StudyReport:
        leading = min(checked, key=lambda item: item.result.meaning is not worst(c.result.meaning for c in checked))
        pdf = next((path for asset, path in leading.files if asset.kind in PDF_KINDS), None)
        return StudyReport(
            identity=rows[0].identity,
            facts=leading.row.facts,
            product=delivery.product,
            revision=delivery.revision,
            results=tuple(item.result for item in checked),
            issued=_moment(delivery),
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


def ready_result(store: Store, row: ResourceRow) -> Result:
    """Return a ready resource's result from the store.

    Raises:
        HeldError: If the resource is not ready.
    """
    if row.outcome is not Outcome.READY or not row.store_path:
        raise HeldError("there is no ready result")
    return Result.from_json(store.read_json(f"{row.store_path}/result.json"))


def _moment(delivery: DeliveryRow) -> datetime:
    return pendulum.from_timestamp(delivery.made_at, tz=settings.timezone())


def _is_dicom(asset: Asset) -> bool:
    return asset.media == Media.DICOM.value


def _says_simulated(result: Result) -> bool:
    text = " ".join([result.report.impression, result.report.findings, *result.report.lines])
    return "SIMULATED" in text
