"""Whether a result's objects are of the patient and the images that they are said to be of.

A result goes onward only if every object in it agrees with what was sent. What contradicts it is never released, only
corrected and checked again.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from pathlib import Path

import pydicom
from pydicom.dataset import FileDataset

from qure_provider.dicom.model import Identity
from qure_provider.dicom.objects import UnreadableError, elements, read_object, readable, text, values
from qure_provider.dicom.quiet import quiet_pydicom

_SIMULATED = {
    "Manufacturer": "SIMULATED",
    "ManufacturerModelName": "SIMULATED",
    "SeriesDescription": "SIMULATED, NOT FOR CLINICAL USE",
}
"""What the emulator writes into its objects."""

_STUDY, _ACCESSION, _PATIENT_ID = 0x0020000D, 0x00080050, 0x00100020
_REFERENCED_INSTANCE = 0x00081155
_OF_OTHERS = frozenset({0x00101002, 0x04000561})
"""Other Patient IDs, and what a header said before it was corrected: they name other values by intent."""
_NO_STORED_INSTANCE = "1.2.840.10008.3.1.2."
"""Beginning of the SOP classes of patients, visits, studies and procedure steps, to which headers refer as well."""
_NAME_PARTS = re.compile(r"[\s^]+")
_PIECE = 1024 * 1024


class Contradiction(StrEnum):
    """Why a result is held, in fixed words without any value."""

    UNREADABLE = "an object of the result cannot be read whole"
    NO_UID = "an object of the result lacks its SOP Instance, SOP Class or Series Instance UID"
    STUDY = "an object of the result is of another study"
    PATIENT_ID = "an object of the result has another patient ID"
    ISSUER = "an object of the result has another issuer of the patient ID"
    NAME = "an object of the result has another patient name"
    BIRTH_DATE = "an object of the result has another birth date"
    SEX = "an object of the result has another patient sex"
    ACCESSION_NUMBER = "an object of the result has another accession number"
    SOURCE_UID = "an object of the result bears the UID of an image that was sent, which it could overwrite"
    SOURCE_SERIES = "an object of the result is put into a series of images that were sent"
    SAME_UID = "two different objects of the result bear the same UID"
    REFERENCE = "an object of the result refers to an image that was not sent"
    OTHER_STUDY = "an object of the result refers to another study, patient ID or accession number"
    VERIFIED = "an object of the result says that a person verified it"


@dataclass(frozen=True, slots=True)
class Verified:
    """An object that agrees with what was sent.

    Attributes:
        path: Where it lies.
        sop_class_uid: SOPClassUID.
        sop_instance_uid: SOPInstanceUID.
        series_instance_uid: SeriesInstanceUID.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str


def verify_object(
    path: Path, identity: Identity, sent: Collection[str], own: Collection[str] = ()
) -> Verified | Contradiction:
    """Checks one DICOM object of a result against what was sent.

    - Its Study Instance UID is the study's, byte for byte. Whether the service keeps it is not stated anywhere.
    - Patient ID, issuer, name, birth date, sex and accession number each are absent or the same. A name may be written
      in other case, or with the same words in another order: the source's is put in its place later.
    - Its own SOP Instance UID is none of the images that were sent, and it is in none of their series, where it would
      stand among them as if it were one.
    - Every instance that it refers to, at any depth, was sent or is an object of the same result.
    - It does not say that a person verified it.

    Args:
        path: The file.
        identity: Whose it must be, as it was sent.
        sent: SOP Instance and Series Instance UIDs of the images that were sent of this study.
        own: SOPInstanceUIDs of the same result's objects.

    Returns:
        The object, or the first thing that is wrong with it.
    """
    with quiet_pydicom():
        try:
            dataset = read_object(path)
        except UnreadableError:
            return Contradiction.UNREADABLE
        found = _verified(path, dataset)
        if not (found.sop_instance_uid and found.sop_class_uid and found.series_instance_uid):
            return Contradiction.NO_UID
        file_uid = text(dataset.file_meta, "MediaStorageSOPInstanceUID")
        if found.sop_instance_uid in sent or file_uid in sent:
            return Contradiction.SOURCE_UID
        if found.series_instance_uid in sent:
            return Contradiction.SOURCE_SERIES
        return (
            compare(identity_of(dataset), identity)
            or _contradiction_within(dataset, identity, {*sent, *own, found.sop_instance_uid})
            or (Contradiction.VERIFIED if _says_verified(dataset) else None)
            or found
        )


def verify_objects(
    paths: Sequence[Path], identity: Identity, sent: Collection[str], *, copies: Sequence[Path] = ()
) -> Contradiction | None:
    """Checks all DICOM objects of one result: one that contradicts holds them all, text and PDF included.

    Args:
        paths: The objects that would go onward.
        identity: Whose they must be, as it was sent.
        sent: SOP Instance and Series Instance UIDs of the images that were sent of this study.
        copies: The service's own copies of the images (``original``), where they are DICOM. They never go onward, and
            are the same patient's all the same.

    Returns:
        What is wrong; None where nothing is.
    """
    own: dict[str, Path] = {}
    with quiet_pydicom():
        for path in paths:
            try:
                uid = text(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]), "SOPInstanceUID")
            except Exception:  # what pydicom raises on a broken file is not limited to its own errors
                return Contradiction.UNREADABLE
            if uid in own and _digest(own[uid]) != _digest(path):
                return Contradiction.SAME_UID
            own[uid] = path
        for path in copies:
            try:
                contradiction = compare(identity_of(read_object(path)), identity)
            except UnreadableError:
                contradiction = Contradiction.UNREADABLE
            if contradiction:
                return contradiction
    for path in paths:
        verdict = verify_object(path, identity, sent, own.keys())
        if isinstance(verdict, Contradiction):
            return verdict
    return None


def identity_of(dataset: pydicom.Dataset) -> Identity:
    """Tells whose an object says it is; empty strings where it does not."""
    return Identity(
        study_instance_uid=text(dataset, "StudyInstanceUID"),
        patient_id=text(dataset, "PatientID"),
        issuer_of_patient_id=text(dataset, "IssuerOfPatientID"),
        accession_number=text(dataset, "AccessionNumber"),
        birth_date=text(dataset, "PatientBirthDate"),
        sex=text(dataset, "PatientSex"),
        patient_name=text(dataset, "PatientName"),
    )


def compare(found: Identity, expected: Identity) -> Contradiction | None:
    """Compares whose something is with whose it must be: an object of a result, or a study at a receiver.

    Args:
        found: What is found; what is empty in it contradicts nothing, but for the Study Instance UID.
        expected: What was sent.

    Returns:
        The first difference; None where there is none.
    """
    if not expected.study_instance_uid or found.study_instance_uid != expected.study_instance_uid:
        return Contradiction.STUDY
    if _differ(found.patient_id, expected.patient_id):
        return Contradiction.PATIENT_ID
    if _differ(found.issuer_of_patient_id, expected.issuer_of_patient_id):
        return Contradiction.ISSUER
    if _differ(found.accession_number, expected.accession_number):
        return Contradiction.ACCESSION_NUMBER
    if _differ(found.birth_date, expected.birth_date):
        return Contradiction.BIRTH_DATE
    if _differ(found.sex.upper(), expected.sex.upper()):
        return Contradiction.SEX
    if not _may_be_named(found.patient_name, expected.patient_name):
        return Contradiction.NAME
    return None


def is_simulated(path: Path) -> bool:
    """Tells whether a DICOM object is of the emulator, which only a destination on this machine may be given.

    Args:
        path: The file, as it came or completed.

    Returns:
        Whether it says so of itself.

    Raises:
        InvalidDicomError: If it is no DICOM file.
    """
    with quiet_pydicom():
        dataset = pydicom.dcmread(path, specific_tags=list(_SIMULATED))
        return any(mark in text(dataset, keyword) for keyword, mark in _SIMULATED.items())


def _verified(path: Path, dataset: FileDataset) -> Verified:
    return Verified(
        path,
        sop_class_uid=text(dataset, "SOPClassUID"),
        sop_instance_uid=text(dataset, "SOPInstanceUID"),
        series_instance_uid=text(dataset, "SeriesInstanceUID"),
    )


def _contradiction_within(dataset: FileDataset, identity: Identity, known: set[str]) -> Contradiction | None:
    """What a sequence at any depth says that contradicts."""
    same = {
        _STUDY: identity.study_instance_uid,
        _ACCESSION: identity.accession_number,
        _PATIENT_ID: identity.patient_id,
    }
    for place in elements(dataset):
        tag = place.element.tag
        if tag != _REFERENCED_INSTANCE and tag not in same:
            continue
        named = list(map(str, values(place.element)))
        if tag == _REFERENCED_INSTANCE:
            is_stored = not text(place.owner, "ReferencedSOPClassUID").startswith(_NO_STORED_INSTANCE)
            if is_stored and not known.issuperset(named):
                return Contradiction.REFERENCE
        elif place.within and tag in same and not _OF_OTHERS & set(place.within) and _differ("".join(named), same[tag]):
            return Contradiction.OTHER_STUDY
    return None


def _says_verified(dataset: FileDataset) -> bool:
    return text(dataset, "VerificationFlag").upper() == "VERIFIED" or bool(dataset.get("VerifyingObserverSequence"))


def _differ(found: str, expected: str) -> bool:
    found = found.strip(" \0")
    return bool(found) and readable(found) != readable(expected.strip(" \0"))


def _may_be_named(found: str, expected: str) -> bool:
    """Whether a name is absent, or made of the same words as another in each group that it has."""
    groups = zip_longest(found.split("="), expected.split("="), fillvalue="")
    return all(not _words(one) or _words(one) == _words(other) for one, other in groups)


def _words(group: str) -> list[str]:
    """The words of a name, whatever their order and case (PS3.4, C.2.2.2.1: names match without regard to case)."""
    normal = unicodedata.normalize("NFC", readable(group)).casefold()
    return sorted(filter(None, _NAME_PARTS.split(normal.strip(" \0"))))


def _digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.digest()
