"""Making a result's objects fit for their receiver.

Real archives rejected or silently dropped results that lacked a patient name, sex, birth date, study date or character
set, or had invalid UIDs. What is absent is completed from the source's header. Pixels and documents are never touched.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import pydicom
from pydicom.charset import convert_encodings, decode_bytes, encode_string
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import FileDataset
from pydicom.uid import UID
from pydicom.valuerep import TEXT_VR_DELIMS

from qure_provider.dicom.model import Identity, StudyFacts
from qure_provider.dicom.objects import TEXT_VRS, UTF_8, UnreadableError, elements, read_object, readable, text, values
from qure_provider.dicom.quiet import quiet_pydicom
from qure_provider.dicom.reasons import Quarantine

UNVERIFIED_MARK = "AI unverified"
"""What every series of a result is called first, so that it is read in any viewer's list."""

_MINTED = uuid.UUID("d2a3f0f5-5c0e-5d0b-8f3c-0a6f4b0c7b61")
_LO_LENGTH = 64
_LIMITS = {
    "AccessionNumber": 16,
    "StudyID": 16,
    "PatientID": 64,
    "IssuerOfPatientID": 64,
    "StudyDescription": 64,
    "PatientName": 64,
    "ReferringPhysicianName": 64,
}
"""Characters that the VR allows, of a name in each of its groups (PS3.5, 6.2)."""
_OPTIONAL = frozenset({"IssuerOfPatientID", "StudyDescription"})
"""Of what is completed, the attributes that may be left out altogether; all others must at least be there empty."""
_RESULT_UIDS = frozenset({0x00080018, 0x0020000E, 0x00081155})
"""SOP Instance, Series Instance and Referenced SOP Instance UID."""
_STRUCTURED_REPORTS = "1.2.840.10008.5.1.4.1.1.88."
_KEY_OBJECT_SELECTION = "1.2.840.10008.5.1.4.1.1.88.59"
_ENCAPSULATED_DOCUMENTS = "1.2.840.10008.5.1.4.1.1.104."


class Why(StrEnum):
    """Why an attribute is not as the service sent it, or worth a look."""

    ABSENT = "was absent, and is completed from the source"
    EMPTY = "was absent and is unknown: added without a value, as the standard wants it"
    WRITTEN_OTHERWISE = "was written otherwise than in the source"
    INVALID_UID = "was no valid UID, and is made anew"
    UNVERIFIED = "did not say that nobody verified it"
    CHARACTER_SET = "did not say, or could not hold, how the text is written"
    FILE_HEADER = "did not agree with the object"
    TOO_LONG = "is kept as the source has it, though longer than the standard allows"


@dataclass(frozen=True, slots=True)
class Change:
    """One attribute that was changed, or is worth a look; never its value.

    Attributes:
        tag: Of the attribute.
        keyword: Of the attribute.
        why: Why.
    """

    tag: int
    keyword: str
    why: Why


@dataclass(frozen=True, slots=True)
class Completed:
    """An object that is fit to be sent.

    Attributes:
        path: Where it lies.
        sop_class_uid: SOPClassUID.
        sop_instance_uid: SOPInstanceUID.
        series_instance_uid: SeriesInstanceUID.
        changes: What is different from what the service sent.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class CompletedObjects:
    """The objects of a result that are fit to be sent.

    Attributes:
        objects: By the path of the object as it was fetched.
    """

    objects: Mapping[Path, Completed] = field(default_factory=dict)

    @property
    def paths(self) -> dict[Path, Path]:
        """From the path as fetched to that of the completed copy."""
        return {path: completed.path for path, completed in self.objects.items()}

    @property
    def sop_instance_uids(self) -> frozenset[str]:
        """Of all of them."""
        return frozenset(completed.sop_instance_uid for completed in self.objects.values())


def complete_objects(
    paths: Sequence[Path], folder: Path, identity: Identity, facts: StudyFacts, sent: Collection[str]
) -> CompletedObjects:
    """Makes objects of one result fit for their receiver; see ``complete_object``.

    Args:
        paths: Objects that were verified.
        folder: Where the completed copies go. It exists.
        identity: Whose they are, exactly as the source's header says.
        facts: What else that says of the study.
        sent: SOP Instance and Series Instance UIDs of the images that were sent of this study.

    Returns:
        The copies.

    Raises:
        UnreadableError: If one is no whole DICOM object.
        OSError: If one cannot be written.
    """
    return CompletedObjects(
        {
            path: complete_object(path, folder / f"{number:04}.dcm", identity, facts, sent)
            for number, path in enumerate(paths)
        }
    )


def complete_object(
    path: Path, target: Path, identity: Identity, facts: StudyFacts, sent: Collection[str]
) -> Completed:
    """Makes an object fit for its receiver.

    - Whose it is and of which study is written as the source has it, exactly: patient ID, accession number and Study
      UID above all, whatever their form. Where the source says nothing, what the standard demands is added empty.
    - A UID that the result itself made and that is none (leading zeros, more than 64 characters) is made anew, from the
      old one alone: each reference to it, in whichever object and at whichever time, becomes the same new one. UIDs of
      the source are kept, valid or not.
    - The series' description says that nobody verified it; so do a structured report and an encapsulated document, in
      the attributes for that. A report is never final.
    - Text that the object's character set cannot hold makes it a UTF-8 object (``ISO_IR 192``).

    Done twice, it changes nothing more; done to the same object again, it gives the same.

    Args:
        path: The object, which was verified.
        target: Where the copy goes.
        identity: Whose it is, exactly as the source's header says.
        facts: What else that says of the study.
        sent: SOP Instance and Series Instance UIDs of the images that were sent of this study.

    Returns:
        The copy, and what is different in it.

    Raises:
        UnreadableError: If it is no whole DICOM object, or one that cannot be written again.
        OSError: If it cannot be written here.
    """
    with quiet_pydicom():
        dataset = read_object(path)
        try:
            return _completed(dataset, path, target, identity, facts, sent)
        except OSError:
            raise
        except Exception:  # what can be read can be beyond use: an element of another VR than its own, say
            raise UnreadableError(Quarantine.MALFORMED) from None


def _completed(
    dataset: FileDataset, path: Path, target: Path, identity: Identity, facts: StudyFacts, sent: Collection[str]
) -> Completed:
    completion = _Completion(dataset, _declared_character_set(path))
    completion.take_from_source(identity, facts)
    completion.mint(identity.study_instance_uid, sent)
    completion.say_unverified()
    completion.settle_character_set()
    completion.settle_file_header()
    if completion.is_altered:
        pydicom.dcmwrite(target, completion.dataset, enforce_file_format=True)
    else:
        shutil.copyfile(path, target)
    return completion.completed(target)


def identify(dataset: FileDataset, identity: Identity, facts: StudyFacts) -> None:
    """Writes into a new object whose it is and of which study.

    Args:
        dataset: The object, without a character set: it gets the one that it needs.
        identity: Whose it is, exactly as the source's header says.
        facts: What else that says of the study.
    """
    texts = ("".join(map(str, values(place.element))) for place in elements(dataset) if place.element.VR in TEXT_VRS)
    completion = _Completion(dataset, "", texts)
    completion.take_from_source(identity, facts)
    completion.settle_character_set()


class _Completion:
    """One object on its way to its receiver."""

    def __init__(self, dataset: FileDataset, declared_character_set: str, texts: Iterable[str] = ()) -> None:
        self.dataset = dataset
        self._declared = declared_character_set
        self._texts = list(texts)
        self._changes: list[Change] = []

    @property
    def is_altered(self) -> bool:
        return any(change.why is not Why.TOO_LONG for change in self._changes)

    def completed(self, path: Path) -> Completed:
        return Completed(
            path,
            text(self.dataset, "SOPClassUID"),
            text(self.dataset, "SOPInstanceUID"),
            text(self.dataset, "SeriesInstanceUID"),
            tuple(self._changes),
        )

    def take_from_source(self, identity: Identity, facts: StudyFacts) -> None:
        of_source = {
            "StudyInstanceUID": identity.study_instance_uid,
            "PatientID": identity.patient_id,
            "IssuerOfPatientID": identity.issuer_of_patient_id,
            "PatientName": identity.patient_name,
            "PatientBirthDate": identity.birth_date,
            "PatientSex": identity.sex,
            "AccessionNumber": identity.accession_number,
            "StudyDate": facts.study_date,
            "StudyTime": facts.study_time,
            "StudyID": facts.study_id,
            "StudyDescription": facts.study_description,
            "ReferringPhysicianName": facts.referring_physician,
        }
        for keyword, value in of_source.items():
            known = readable(value)
            if "\ufffd" in known:  # the source's own text could not be read, so there is nothing to write
                known = ""
            self._take(keyword, known)

    def _take(self, keyword: str, value: str) -> None:
        found = text(self.dataset, keyword)
        if value and not found:
            self._set(keyword, value, Why.ABSENT)
        elif value and "\\".join(map(str, values(self.dataset[keyword]))) != value:
            self._set(keyword, value, Why.WRITTEN_OTHERWISE)
        elif keyword not in self.dataset and keyword not in _OPTIONAL:
            self._set(keyword, "", Why.EMPTY)
        groups = value.split("=") if keyword.endswith("Name") else [value]
        if keyword in _LIMITS and max(map(len, groups)) > _LIMITS[keyword]:
            self._note(keyword, Why.TOO_LONG)

    def mint(self, study_instance_uid: str, sent: Collection[str]) -> None:
        noted = set()
        for place in list(elements(self.dataset)):
            element = place.element
            if element.tag not in _RESULT_UIDS or element.is_empty:
                continue
            old = str(element.value)
            if old not in sent and not UID(old).is_valid:
                element.value = _minted(study_instance_uid, old)
                noted.add(element.keyword)
        for keyword in sorted(noted):
            self._note(keyword, Why.INVALID_UID)

    def say_unverified(self) -> None:
        sop_class = text(self.dataset, "SOPClassUID")
        is_report = sop_class.startswith(_STRUCTURED_REPORTS) and sop_class != _KEY_OBJECT_SELECTION
        if (is_report or sop_class.startswith(_ENCAPSULATED_DOCUMENTS)) and not text(self.dataset, "VerificationFlag"):
            self._set("VerificationFlag", "UNVERIFIED", Why.UNVERIFIED)
        if is_report and text(self.dataset, "PreliminaryFlag") != "PRELIMINARY":
            self._set("PreliminaryFlag", "PRELIMINARY", Why.UNVERIFIED)
        description = text(self.dataset, "SeriesDescription")
        if "unverified" not in description.casefold():
            marked = f"{UNVERIFIED_MARK}: {description}" if description else UNVERIFIED_MARK
            self._set("SeriesDescription", marked[:_LO_LENGTH].rstrip(), Why.UNVERIFIED)

    def settle_character_set(self) -> None:
        if not all(_fits(value, text(self.dataset, "SpecificCharacterSet")) for value in self._texts):
            for place in list(elements(self.dataset)):
                if place.within and "SpecificCharacterSet" in place.owner:
                    del place.owner.SpecificCharacterSet
            self.dataset.SpecificCharacterSet = UTF_8
        if text(self.dataset, "SpecificCharacterSet") != self._declared:
            self._note("SpecificCharacterSet", Why.CHARACTER_SET)

    def settle_file_header(self) -> None:
        meta = self.dataset.file_meta
        for keyword, value in (
            ("MediaStorageSOPClassUID", text(self.dataset, "SOPClassUID")),
            ("MediaStorageSOPInstanceUID", text(self.dataset, "SOPInstanceUID")),
        ):
            if text(meta, keyword) != value:
                setattr(meta, keyword, UID(value))
                self._note(keyword, Why.FILE_HEADER)

    def _set(self, keyword: str, value: str, why: Why) -> None:
        setattr(self.dataset, keyword, value)
        self._texts.append(value)
        self._note(keyword, why)

    def _note(self, keyword: str, why: Why) -> None:
        self._changes.append(Change(int(tag_for_keyword(keyword) or 0), keyword, why))


def _minted(study_instance_uid: str, old: str) -> str:
    return f"2.25.{uuid.uuid5(_MINTED, f'{study_instance_uid}|{old}').int}"


def _declared_character_set(path: Path) -> str:
    return text(pydicom.dcmread(path, specific_tags=["SpecificCharacterSet"]), "SpecificCharacterSet")


def _fits(value: str, character_set: str) -> bool:
    """Whether a text can be written in a Specific Character Set and read again."""
    if value.isascii():
        return True
    if character_set in {"", "ISO_IR 6"}:
        return False
    try:
        encodings = convert_encodings(character_set.split("\\"))
        return decode_bytes(encode_string(value, encodings), encodings, TEXT_VR_DELIMS) == value
    except (LookupError, ValueError):
        return False
