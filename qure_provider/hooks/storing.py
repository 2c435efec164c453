"""What is sent to an archive and what it says of it, over DIMSE and over DICOMweb alike."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pydicom.filereader import read_file_meta_info

from qure_provider.dicom.model import Identity
from qure_provider.dicom.quiet import quiet_pydicom
from qure_provider.hooks.receiver import ReceiverRefusedError, ReceiverUnavailableError


@dataclass(frozen=True, slots=True)
class OutgoingObject:
    """One object on its way out, as its file header names it.

    Attributes:
        path: Where it lies.
        sop_class_uid: MediaStorageSOPClassUID.
        sop_instance_uid: MediaStorageSOPInstanceUID.
        transfer_syntax_uid: TransferSyntaxUID.
    """

    path: Path = field(repr=False)
    sop_class_uid: str
    sop_instance_uid: str = field(repr=False)
    transfer_syntax_uid: str

    @classmethod
    def read(cls, path: Path) -> OutgoingObject:
        """Read a file's header.

        Args:
            path: A DICOM file.

        Returns:
            The object.

        Raises:
            ReceiverUnavailableError: It cannot be read now.
            ReceiverRefusedError: It is no DICOM object.
        """
        try:
            with quiet_pydicom():
                meta = read_file_meta_info(path)
                return cls(
                    path,
                    str(meta.MediaStorageSOPClassUID),
                    str(meta.MediaStorageSOPInstanceUID),
                    str(meta.TransferSyntaxUID),
                )
        except OSError as error:
            problem = f"A file could not be read ({error_name(error)}), so nothing was sent."
            raise ReceiverUnavailableError(problem) from None
        except Exception:  # what pydicom raises on a broken file is not limited to its own errors
            raise ReceiverRefusedError("A file is no DICOM object, so nothing was sent.") from None


class StoreKind(StrEnum):
    """What became of one object."""

    STORED = "stored"
    WARNING = "stored with a warning"
    """It arrived, though the archive changed it or has something to say of it."""
    REFUSED = "refused"
    """The archive looked at it and said no; the same object will always be refused."""
    UNAVAILABLE = "try later"
    """The archive did not take it, or it was never sent."""
    IN_DOUBT = "in doubt"
    """It was sent, and nothing tells whether it arrived."""


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """What became of one object.

    Attributes:
        sop_instance_uid: Which.
        kind: What became of it.
        status: What the archive answered (PS3.4, B.2.3; PS3.7, annex C); None where it did not.
        reason: What that means, in fixed words; empty where it is stored.
    """

    sop_instance_uid: str = field(repr=False)
    kind: StoreKind
    status: int | None = None
    reason: str = ""

    @property
    def is_stored(self) -> bool:
        """Whether the archive has it."""
        return self.kind in (StoreKind.STORED, StoreKind.WARNING)


_MEANINGS: tuple[tuple[int, int, StoreKind, str], ...] = (
    (0x0000, 0x0000, StoreKind.STORED, ""),
    (0x0001, 0x0001, StoreKind.WARNING, "a warning without particulars"),
    (0x0107, 0x0107, StoreKind.WARNING, "some attributes are not known to the archive"),
    (0x0116, 0x0116, StoreKind.WARNING, "some values were out of range"),
    (0x0111, 0x0111, StoreKind.WARNING, "the archive has an object of this UID already"),
    (0x0110, 0x0110, StoreKind.UNAVAILABLE, "the archive failed while it processed the object"),
    (0x0122, 0x0122, StoreKind.REFUSED, "the archive does not take this kind of object"),
    (0x0124, 0x0124, StoreKind.REFUSED, "we are not authorized to store this there"),
    (0x0100, 0x02FF, StoreKind.REFUSED, "the archive does not take the request as it is"),
    (0xA700, 0xA7FF, StoreKind.UNAVAILABLE, "the archive is out of resources"),
    (0xA900, 0xA9FF, StoreKind.REFUSED, "the object does not match its SOP class"),
    (0xA000, 0xAFFF, StoreKind.REFUSED, "the archive refuses the object"),
    (0xB000, 0xB000, StoreKind.WARNING, "the archive changed attributes of the object"),
    (0xB006, 0xB006, StoreKind.WARNING, "the archive left attributes of the object out"),
    (0xB007, 0xB007, StoreKind.WARNING, "the object does not match its SOP class"),
    (0xB000, 0xBFFF, StoreKind.WARNING, "a warning of the archive's own"),
    (0xC000, 0xCFFF, StoreKind.REFUSED, "the archive cannot understand the object"),
)
"""First and last status, and what they mean; the first row that fits counts. A processing failure (0110) says nothing
of the object, so it is tried again."""


def meaning(status: int) -> tuple[StoreKind, str]:
    """Tell what a status means.

    Args:
        status: As the archive answered.

    Returns:
        What became of the object, and what the status says in fixed words; a status that nobody knows leaves it in
        doubt.
    """
    for first, last, kind, words in _MEANINGS:
        if first <= status <= last:
            return kind, f"{words} ({status:04X})" if words else ""
    return StoreKind.IN_DOUBT, f"a status that the standard does not know ({status:04X})"


def one_patient(found: Iterable[Identity], study_instance_uid: str) -> Identity | None:
    """Choose the study among an archive's answers.

    Args:
        found: What the archive answered.
        study_instance_uid: What it was asked for.

    Returns:
        The study; None where it is not among them.

    Raises:
        ReceiverRefusedError: It is there under more than one patient ID.
    """
    studies = [identity for identity in found if identity.study_instance_uid == study_instance_uid]
    if len({(identity.patient_id, identity.issuer_of_patient_id) for identity in studies}) > 1:
        raise ReceiverRefusedError("The archive has this study under more than one patient ID.")
    return studies[0] if studies else None


def error_name(error: OSError) -> str:
    """Name what the system said, without the file's name."""
    return errno.errorcode.get(error.errno or 0, type(error).__name__)
