"""Reading a DICOM object whole: every element at any depth, its text decoded as it was meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.multival import MultiValue
from pydicom.valuerep import VR

from qure_provider.dicom.export import LocalFile, quarantine_for
from qure_provider.dicom.reader import PIXEL_DATA, UnfitError, read_header
from qure_provider.dicom.reasons import Quarantine
from qure_provider.dicom.record import WANTED

UTF_8 = "ISO_IR 192"

TEXT_VRS = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
"""Those whose values are written in the Specific Character Set."""

_VRS = frozenset(VR)
_OF_INTEREST = TEXT_VRS | {"UI", "SQ", "UN", None}
"""Those that can hold text, UIDs or sequences; None is an element of an implicit VR."""
_READ_AS_LATIN = frozenset({"", "ISO_IR 6", "ISO_IR 100"})
_BULK = PIXEL_DATA | {0x00420011, 0x54001010}
"""Pixel data, encapsulated document, waveform data: large, and no text."""
_HEADER_LIMIT = 256 * 1024 * 1024
_DEFERRED = 1024 * 1024


class UnreadableError(Exception):
    """A file is no whole DICOM object.

    Args:
        reason: Why.
    """

    def __init__(self, reason: Quarantine) -> None:
        super().__init__(str(reason))
        self.reason = reason


def read_object(path: Path) -> FileDataset:
    """Reads a DICOM file, all of it; what is large stays in the file until it is asked for.

    Text that is UTF-8 without saying so is taken for UTF-8, and the object then says so: results of the service were
    seen that leave it out, and read as Latin-1 a name in them would be another one.

    Args:
        path: The file.

    Returns:
        The object. Its texts are decoded, at any depth.

    Raises:
        UnreadableError: If it is none, is not whole, or cannot be parsed.
        OSError: If nothing can be read here (no more file handles, say).
    """
    try:
        with LocalFile(str(path.absolute())) as file:
            header = read_header(file, WANTED, limit=_HEADER_LIMIT)
    except UnfitError as error:
        raise UnreadableError(error.reason) from None
    except OSError as error:
        raise UnreadableError(quarantine_for(error)) from None
    if not header.whole:
        raise UnreadableError(Quarantine.TRUNCATED)
    try:
        dataset = pydicom.dcmread(path, defer_size=_DEFERRED)
        decoded = [place.element for place in elements(dataset)]
        _take_for_utf_8(dataset, decoded)
    except Exception:  # what pydicom raises on a broken file is not limited to its own errors
        raise UnreadableError(Quarantine.MALFORMED) from None
    return dataset


@dataclass(frozen=True, slots=True)
class Place:
    """An element of an object, and where in it.

    Attributes:
        element: The element.
        owner: The object or item that it belongs to.
        within: Tags of the sequences around that, the outermost first; none for the object itself.
    """

    element: DataElement
    owner: Dataset
    within: tuple[int, ...]


def elements(dataset: Dataset, within: tuple[int, ...] = ()) -> Iterator[Place]:
    """Goes through an object's texts, UIDs and sequences, at any depth.

    Whatever else there is stays as it was read, and is written again byte for byte.

    Args:
        dataset: The object or item.
        within: Tags of the sequences that it is in.

    Yields:
        Each element with its place.

    Raises:
        UnreadableError: If an element is of a VR that does not exist: nothing can read what it says.
    """
    for tag in sorted(dataset.keys()):
        vr = dataset.get_item(tag, keep_deferred=True).VR
        if vr is not None and vr not in _VRS:
            raise UnreadableError(Quarantine.MALFORMED)
        if tag in _BULK or vr not in _OF_INTEREST:
            continue
        element = dataset[tag]
        yield Place(element, dataset, within)
        if element.VR == "SQ":
            for item in element.value:
                yield from elements(item, (*within, int(tag)))


def values(element: DataElement) -> Sequence[Any]:
    """Gives an element's values: none, one or several."""
    if element.is_empty:
        return ()
    return element.value if isinstance(element.value, MultiValue | list) else (element.value,)


def text(dataset: Dataset, keyword: str) -> str:
    """Gives an element's value as text, its padding stripped.

    Args:
        dataset: The object or item.
        keyword: Of the element.

    Returns:
        The text, several values joined by a backslash; empty where absent.
    """
    if keyword not in dataset:
        return ""
    return "\\".join(map(str, values(dataset[keyword]))).strip(" \0")


def readable(value: str) -> str:
    """Gives UTF-8 that was read as Latin-1 as what it was meant to be; any other text as it is.

    A source's header, too, may hold UTF-8 without saying so.
    """
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value


def _take_for_utf_8(dataset: Dataset, decoded: Sequence[DataElement]) -> None:
    if text(dataset, "SpecificCharacterSet") not in _READ_AS_LATIN:
        return
    texts = [element for element in decoded if element.VR in TEXT_VRS and not element.is_empty]
    before = ["\\".join(map(str, values(element))) for element in texts]
    if all(value.isascii() for value in before):
        return
    try:
        after = [value.encode("latin-1").decode("utf-8") for value in before]
    except UnicodeError:
        return
    for element, value in zip(texts, after, strict=True):
        element.value = value
    dataset.SpecificCharacterSet = UTF_8
