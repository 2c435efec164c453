"""PACS and other archives as destinations, whichever protocol they speak."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Protocol

from airflow.sdk import BaseHook

from qure_provider import connection_forms
from qure_provider.delivery.destination import Arrival, HeldError, ObjectsParcel, Receipt
from qure_provider.dicom.model import Identity
from qure_provider.dicom.rejection import Rejected, rejection_note
from qure_provider.dicom.verify import compare
from qure_provider.hooks.connection import Fields
from qure_provider.hooks.receiver import (
    DeliveryInDoubtError,
    ReceiverRefusedError,
    ReceiverSettingsError,
    ReceiverUnavailableError,
)
from qure_provider.hooks.storing import StoreKind, StoreStatus
from qure_provider.ledger.deliveries import ParcelKind

_ERRORS = {
    StoreKind.IN_DOUBT: DeliveryInDoubtError,
    StoreKind.UNAVAILABLE: ReceiverUnavailableError,
    StoreKind.REFUSED: ReceiverRefusedError,
}
"""What a parcel comes to when some of its objects were not stored; the first kind in this order that occurs counts."""


Store = Callable[[Sequence[Path]], tuple[StoreStatus, ...]]
"""Sends files and says what became of each."""


class Archive(Protocol):
    """What both hooks can do."""

    def find_study(self, study_instance_uid: str) -> Identity | None:
        """Ask whether a study exists there, and whose it is."""

    def find_instances(self, study_instance_uid: str, series: Sequence[str] = ()) -> frozenset[str]:
        """Ask which instances of a study are there."""


class ArchiveDestination:
    """Stores a result's DICOM objects, and says of each how its arrival is known.

    Two settings of the connection's ``extra``: with ``ask_first`` nothing is sent unless the archive has the study, for
    the same patient, now; with ``prove`` it is asked afterwards whether every object is there.
    """

    takes: ClassVar[ParcelKind] = ParcelKind.OBJECTS
    only_dicom: ClassVar[bool] = True
    lanes: ClassVar[int] = 4

    def __init__(self, name: str, archive: Archive, store: Store) -> None:
        self._archive = archive
        self._store = store
        fields = Fields.of(
            BaseHook.get_connection(name),
            {**connection_forms.DICOM, **connection_forms.DICOMWEB},
            ReceiverSettingsError,
        )
        self._asks_first = fields.boolean("ask_first", default=False)
        self._proves = fields.boolean("prove", default=False)

    def send(self, parcel: ObjectsParcel) -> Receipt:
        """Store the objects, or the note that rejects them."""
        if self._asks_first:
            self._check_patient(parcel.identity)
        with TemporaryDirectory(prefix="qure-") as folder:
            paths, objects = self._content(parcel, Path(folder))
            statuses = self._store(paths) if paths else ()
        _raise_unless_stored(statuses)
        if self._proves and self._missing(parcel, objects):
            raise DeliveryInDoubtError("The archive took every object, but does not have them all when asked.")
        return {
            "warnings": sorted({status.reason for status in statuses if status.kind is StoreKind.WARNING}),
            "proof": "the archive was asked" if self._proves else "each object's status",
        }

    def arrived(self, parcel: ObjectsParcel) -> Arrival:
        """Ask the archive for every object."""
        try:
            return Arrival.ABSENT if self._missing(parcel, parcel.objects) else Arrival.ARRIVED
        except ReceiverSettingsError:
            return Arrival.CANNOT_TELL

    def render(self, parcel: ObjectsParcel, folder: Path) -> None:
        """Write the objects."""
        for path in self._content(parcel, folder)[0]:
            if path.parent != folder:
                shutil.copyfile(path, folder / path.name)

    def close(self) -> None:
        """Nothing to let go of: each call has its own association."""

    def _content(self, parcel: ObjectsParcel, folder: Path) -> tuple[list[Path], tuple[Rejected, ...]]:
        if not parcel.withdrawn_because:
            return [path for _, path in parcel.files], parcel.objects
        if not parcel.objects:
            return [], ()
        note = folder / "rejection.dcm"
        rejected = rejection_note(
            note,
            parcel.objects,
            parcel.identity,
            parcel.facts,
            reason=parcel.withdrawn_because,
            rejected_at=parcel.made_at,
        )
        return [note], (rejected,)

    def _check_patient(self, identity: Identity) -> None:
        found = self._archive.find_study(identity.study_instance_uid)
        if found is None:
            raise HeldError("the archive does not have the study")
        contradiction = compare(found, identity)
        if contradiction:
            raise HeldError("the archive has the study under another patient, name or number")

    def _missing(self, parcel: ObjectsParcel, objects: Sequence[Rejected]) -> bool:
        wanted = {item.sop_instance_uid for item in objects}
        series = sorted({item.series_instance_uid for item in objects})
        return not wanted or not wanted <= self._archive.find_instances(parcel.identity.study_instance_uid, series)


def _raise_unless_stored(statuses: Sequence[StoreStatus]) -> None:
    kinds = Counter(status.kind for status in statuses)
    for kind, make in _ERRORS.items():
        if kinds[kind]:
            reasons = "; ".join(sorted({status.reason for status in statuses if status.kind is kind}))
            error = make(f"{kinds[kind]} of {len(statuses)} objects: {kind.value} ({reasons})")
            error.may_have_arrived |= any(status.is_stored for status in statuses)
            raise error
