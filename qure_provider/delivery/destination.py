"""What every destination can do, and where the class for a connection is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from airflow.sdk import BaseHook

from qure_provider.dicom.model import Identity, StudyFacts
from qure_provider.dicom.rejection import Rejected
from qure_provider.hooks.receiver import ReceiverSettingsError
from qure_provider.ledger.deliveries import ParcelKind
from qure_provider.reports.result import Asset
from qure_provider.reports.study_report import StudyReport


class HeldError(Exception):
    """It must not go out as it is: a person has to look. The message says why, in fixed words."""


class NotReadyError(Exception):
    """There is nothing to send at this moment; it is tried again later. The message says why, in fixed words."""


@dataclass(frozen=True, slots=True)
class ObjectsParcel:
    """The files of one resource's result, ready to be sent.

    Attributes:
        identity: Whose they are.
        facts: What else the source says of the study.
        files: Each file with its local path: DICOM objects completed from the source, others as fetched.
        objects: The DICOM objects among them; of a withdrawal those that are taken back.
        folder: Where they lie in the store.
        made_at: When this revision, or the withdrawal, was made, with its zone.
        withdrawn_because: Why they are taken back; empty where they are not.
    """

    identity: Identity
    facts: StudyFacts
    files: tuple[tuple[Asset, Path], ...]
    objects: tuple[Rejected, ...]
    folder: str
    made_at: datetime
    withdrawn_because: str = ""


@dataclass(frozen=True, slots=True)
class ReportParcel:
    """A clinical message, ready to be sent.

    Attributes:
        report: What it says.
        withdrawn: Whether it is taken back.
    """

    report: StudyReport
    withdrawn: bool = False


Parcel = ObjectsParcel | ReportParcel
Receipt = Mapping[str, Any]


class Arrival(Enum):
    """What a destination knows of an earlier try."""

    ARRIVED = "arrived"
    ABSENT = "absent"
    CANNOT_TELL = "cannot tell"


class Destination(Protocol):
    """One receiver."""

    takes: ParcelKind
    """Which kind of parcel it takes."""
    only_dicom: bool
    """Whether it takes DICOM objects alone of a result's files."""
    is_loopback: bool
    """Whether it is on this machine; what an emulator made goes nowhere else."""
    lanes: int
    """How many deliveries may be under way to it side by side."""

    def send(self, parcel: Any) -> Receipt:
        """Send a parcel.

        Returns:
            How its arrival is known; no patient data.

        Raises:
            HeldError: If the receiver's own answer shows that it must not go there (an unknown patient).
            ReceiverError: One of its four kinds.
        """

    def arrived(self, parcel: Any) -> Arrival:
        """Ask whether an earlier try arrived."""

    def render(self, parcel: Any, folder: Path) -> None:
        """Write exactly what ``send`` would send into a folder."""

    def close(self) -> None:
        """Let go of connections."""


_CLASSES = {
    "dicom": "qure_provider.delivery.dimse.DicomDestination",
    "dicomweb": "qure_provider.delivery.dicomweb.DicomWebDestination",
    "mllp": "qure_provider.delivery.messages.MllpDestination",
    "fhir": "qure_provider.delivery.records.FhirDestination",
}


def open_destination(name: str) -> Destination:
    """Return the destination for a connection's id, or for a folder's URL (anything with ``://``).

    Raises:
        ReceiverSettingsError: If there is no such connection, or its type is none that receives results.
    """
    if "://" in name:
        return _load("qure_provider.delivery.folder.FolderDestination", name)
    try:
        connection = BaseHook.get_connection(name)
    except Exception as error:
        hint = " A folder is written as a URL, such as file:///mnt/results." if "/" in name else ""
        raise ReceiverSettingsError(f"There is no connection {name!r}: create it in Airflow.{hint}") from error
    path = _CLASSES.get(connection.conn_type or "")
    if path is None:
        known = ", ".join(sorted(_CLASSES))
        raise ReceiverSettingsError(
            f"Connection {name!r} is of type {connection.conn_type!r}; one of {known} is needed."
        )
    return _load(path, name)


def _load(path: str, name: str) -> Destination:
    module, _, cls = path.rpartition(".")
    try:
        destination: Destination = getattr(import_module(module), cls)(name)
    except ModuleNotFoundError as error:
        raise ReceiverSettingsError(
            f"{error.name} is not installed here: install airflow-provider-qure[dicom,hl7,fhir] on every worker."
        ) from None
    return destination
