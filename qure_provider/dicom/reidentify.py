"""The way back: a result about a pseudonym becomes one about the patient.

Nothing is guessed on the way: a UID, a name, a number or a date is put back only where it is exactly one that was sent,
and what cannot be put back whole is held.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import UID

from qure_provider.dicom.documents import PDF, find_in_document, reidentify_document
from qure_provider.dicom.objects import UTF_8, UnreadableError, read_object, text, values
from qure_provider.dicom.profile import CAPPED_AGE, DUMMY_DATE, DUMMY_TEXT, vr_of
from qure_provider.dicom.pseudonym import IdentityMap
from qure_provider.dicom.quiet import quiet_pydicom
from qure_provider.dicom.reader import PIXEL_DATA
from qure_provider.dicom.traces import Held, HeldError, Trace, Tracker
from qure_provider.dicom.verify import compare, identity_of

DICOM = "application/dicom"

_TEXT_VRS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
_DATE_VRS = frozenset({"DA", "DT"})
_BINARY_VRS = frozenset({"OB", "OW", "UN"})
_SEARCHED = _TEXT_VRS | _DATE_VRS | _BINARY_VRS | {"SQ", "UI"}
_DOCUMENT, _REFERENCED_INSTANCE = 0x00420011, 0x00081155
_NO_STORED_INSTANCE = "1.2.840.10008.3.1.2."
"""Beginning of the SOP classes of patients, visits, studies and procedure steps, to which headers refer as well."""
_OF_DEIDENTIFICATION = (
    *("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"),
    "LongitudinalTemporalInformationModified",
)
_DATE_LENGTH = 8
_PIECE, _OVERLAP = 4 * 1024 * 1024, 256
_EMPTY_NAME = "^= "


@dataclass(frozen=True, slots=True)
class Reidentified:
    """A file of a result that is about the patient again.

    Attributes:
        path: Where it lies.
        found: What was in it of what had been sent, and is put back.
    """

    path: Path
    found: frozenset[Trace]


def find_pseudonyms(path: Path, media: str, identity_map: IdentityMap) -> frozenset[Trace]:
    """Tells what a file of a result has of what was sent.

    Args:
        path: The file.
        media: Its media type, as recognized from its content.
        identity_map: What was sent.

    Returns:
        What was found.

    Raises:
        HeldError: If it cannot be searched.
        OSError: If it cannot be read.
    """
    tracker = Tracker(identity_map)
    if media != DICOM:
        return find_in_document(path.read_bytes(), media, tracker)
    with quiet_pydicom():
        dataset = _read(path)
        return frozenset[Trace]().union(*(_found_in(place, tracker) for place in _places(dataset)))


def reidentify_file(path: Path, target: Path, media: str, identity_map: IdentityMap) -> Reidentified:
    """Makes a file of a result one about the patient.

    Args:
        path: The file. It is not changed.
        target: Where the copy goes.
        media: Its media type, as recognized from its content.
        identity_map: What was sent, and what it stands for.

    Returns:
        The copy.

    Raises:
        HeldError: If it cannot go on.
        OSError: If it cannot be read, or the copy not written.
    """
    if media == DICOM:
        return reidentify_object(path, target, identity_map)
    tracker = Tracker(identity_map)
    content = path.read_bytes()
    found = find_in_document(content, media, tracker)
    target.write_bytes(reidentify_document(content, media, tracker))
    return Reidentified(target, found)


def reidentify_object(path: Path, target: Path, identity_map: IdentityMap) -> Reidentified:
    """Makes a DICOM object of a result one about the patient.

    Every UID, text and date of it, at any depth, that was sent becomes the source's again. What the de-identification
    had put where nothing could stay, and the service copied, is emptied; so are its marks. Pixels are not touched; a
    document inside is searched, and not edited.

    Args:
        path: The object. It is not changed.
        target: Where the copy goes.
        identity_map: What was sent, and what it stands for.

    Returns:
        The copy.

    Raises:
        HeldError: If it cannot be put back whole.
        OSError: If it cannot be read, or the copy not written.
    """
    with quiet_pydicom():
        dataset = _read(path)
        return_trip = _ReturnTrip(dataset, identity_map)
        return_trip.put_back()
        return_trip.drop_marks()
        return_trip.settle_character_set()
        if return_trip.is_altered:
            pydicom.dcmwrite(target, dataset, enforce_file_format=True)
        else:
            shutil.copyfile(path, target)
        return Reidentified(target, frozenset(return_trip.found))


def check_reidentified(path: Path, media: str, identity_map: IdentityMap, own: Collection[str] = ()) -> Held | None:
    """Checks that nothing of what was sent is left in a file, and that it is about the source.

    Args:
        path: The file, as it would go on.
        media: Its media type.
        identity_map: What was sent, and what it stands for.
        own: SOPInstanceUIDs of the same result's objects, to which it may refer.

    Returns:
        What is wrong; None where nothing is: no pseudonym and no UID that was sent is left, every reference to an
        instance leads to the source's or the result's own, and whoever it says it is about is the source's.

    Raises:
        OSError: If it cannot be read.
    """
    tracker = Tracker(identity_map)
    try:
        if media != DICOM:
            return Held.LEFT if tracker.is_left(find_in_document(path.read_bytes(), media, tracker)) else None
        with quiet_pydicom():
            return _check_object(path, identity_map, tracker, own)
    except HeldError as error:
        return error.reason


def _check_object(path: Path, identity_map: IdentityMap, tracker: Tracker, own: Collection[str]) -> Held | None:
    dataset = _read(path)
    known = {*identity_map.uids.values(), *own, text(dataset, "SOPInstanceUID")}
    for place in _places(dataset):
        if tracker.is_left(_found_in(place, tracker)):
            return Held.LEFT
        if _refers_to_instance(place) and not known.issuperset(map(str, values(place.element))):
            return Held.DANGLING
    if any(tracker.find_in_bytes(piece) for piece in _pieces(path)):
        return Held.LEFT
    return Held.IDENTITY if compare(identity_of(dataset), identity_map.source) else None


def _pieces(path: Path) -> Iterator[bytes]:
    """A file in pieces that overlap by more than a pseudonym's length."""
    with path.open("rb") as file:
        before = b""
        while piece := file.read(_PIECE):
            yield before + piece
            before = piece[-_OVERLAP:]


def _refers_to_instance(place: _Place) -> bool:
    is_stored = not text(place.owner, "ReferencedSOPClassUID").startswith(_NO_STORED_INSTANCE)
    return place.element.tag == _REFERENCED_INSTANCE and is_stored


@dataclass(frozen=True, slots=True)
class _Place:
    """An element of an object, its VR, and the object or item that it belongs to."""

    element: DataElement
    vr: str
    owner: Dataset


def _read(path: Path) -> FileDataset:
    try:
        return read_object(path)
    except UnreadableError:
        raise HeldError(Held.UNREADABLE) from None


def _places(dataset: Dataset) -> Iterator[_Place]:
    """Every element that could hold something that was sent, at any depth; of the file header, too."""
    if isinstance(dataset, FileDataset):
        yield from _places(dataset.file_meta)
    for tag in sorted(dataset.keys()):
        if tag in PIXEL_DATA:
            continue
        vr = dataset.get_item(tag, keep_deferred=True).VR or vr_of(tag) or "UN"
        if vr not in _SEARCHED:
            continue
        element = dataset[tag]
        yield _Place(element, element.VR, dataset)
        if element.VR == "SQ":
            for item in element.value:
                yield from _places(item)


def _found_in(place: _Place, tracker: Tracker) -> frozenset[Trace]:
    element = place.element
    if place.vr == "SQ" or element.is_empty:
        return frozenset()
    if element.tag == _DOCUMENT:
        return find_in_document(_document(element), _media_of(element), tracker)
    if place.vr in _BINARY_VRS:
        return tracker.find_in_bytes(element.value)
    return tracker.find("\n".join(map(str, values(element))))


def _document(element: DataElement) -> bytes:
    return bytes(element.value).rstrip(b"\0")


def _media_of(element: DataElement) -> str:
    """The media type of an encapsulated document, by its content."""
    return PDF if _document(element).startswith(b"%PDF-") else "text/plain"


class _ReturnTrip:
    """One object on its way back.

    Attributes:
        found: What was in it of what had been sent.
        is_altered: Whether anything in it is different now.
    """

    def __init__(self, dataset: FileDataset, identity_map: IdentityMap) -> None:
        self.found: set[Trace] = set()
        self.is_altered = False
        self._dataset = dataset
        self._map = identity_map
        self._tracker = Tracker(identity_map)
        self._needs_utf_8 = False

    def put_back(self) -> None:
        for place in list(_places(self._dataset)):
            found = _found_in(place, self._tracker)
            if place.vr in _BINARY_VRS and found:
                raise HeldError(Held.IN_DOCUMENT if place.element.tag == _DOCUMENT else Held.IN_BINARY)
            if place.vr in _BINARY_VRS or place.vr == "SQ":
                continue
            old = list(map(str, values(place.element)))
            new = [self._put_back(place.vr, value) for value in old]
            if new != old:
                self.found |= found
                self._set(place.element, new)

    def drop_marks(self) -> None:
        """Takes away what says that it is de-identified, and what stands where something could not stay."""
        for keyword in _OF_DEIDENTIFICATION:
            if keyword in self._dataset:
                delattr(self._dataset, keyword)
                self.is_altered = True
        if text(self._dataset, "PatientAge") == CAPPED_AGE:
            del self._dataset.PatientAge
            self.is_altered = True
        for place in _places(self._dataset):
            value = "\\".join(map(str, values(place.element))) if place.vr in _TEXT_VRS | _DATE_VRS else ""
            if place.owner is self._dataset and (value == DUMMY_TEXT or value[:_DATE_LENGTH] == DUMMY_DATE):
                place.element.value = ""
                self.is_altered = True

    def settle_character_set(self) -> None:
        """Makes it a UTF-8 object if what was put back is not ASCII: its own character set may not have it."""
        if not self._needs_utf_8:
            return
        for place in list(_places(self._dataset)):
            if "SpecificCharacterSet" in place.owner and place.owner is not self._dataset:
                del place.owner.SpecificCharacterSet
        self._dataset.SpecificCharacterSet = UTF_8

    def _put_back(self, vr: str, value: str) -> str:
        if vr == "UI":
            return self._map.uids.get(value, value)
        if vr in _DATE_VRS:
            day = value[:_DATE_LENGTH]
            return self._map.dates.get(day, day) + value[_DATE_LENGTH:]
        return self._tracker.replace(value.rstrip(_EMPTY_NAME) if vr == "PN" else value)

    def _set(self, element: DataElement, new: list[str]) -> None:
        typed = [UID(value) for value in new] if element.VR == "UI" else new
        element.value = typed if len(typed) > 1 else typed[0]
        self.is_altered = True
        self._needs_utf_8 = self._needs_utf_8 or not all(value.isascii() for value in new)
