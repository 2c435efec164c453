"""The values of a header that identify, and whether one of them is found where it must not be.

A name is looked for word by word, since a description may hold the family name alone; everything else as a whole. Case
and accents make no difference, and only whole words count: a patient called Long is not found in "longitudinal".

Free text is searched for everybody's values, and replaced where one is found. What cannot be replaced, and what
describes the device, is searched for the patient's own alone: a ward that refers as "Chest^OPD" must not keep every
chest film here. A patient whose own name is a body part, though, does not leave with an image of it.

Not looked for, since each would be found everywhere: words of a name under three letters (two in scripts without case,
such as Chinese), words that stand for having no name, and other values under four characters. Nor are numbers and UIDs
that are kept searched: any short patient ID is part of some coordinate.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from pydicom.charset import convert_encodings, decode_bytes, python_encoding
from pydicom.datadict import tag_for_keyword
from pydicom.valuerep import TEXT_VR_DELIMS

from qure_provider.dicom.objects import readable
from qure_provider.dicom.quiet import quiet_pydicom
from qure_provider.dicom.reader import plain

_LOOKED_FOR_WHOLE = (
    *("PatientID", "OtherPatientIDs", "PatientBirthDate", "PatientAddress", "PatientTelephoneNumbers"),
    *("MedicalRecordLocator", "InsurancePlanIdentification", "PersonAddress", "PersonTelephoneNumbers"),
    *("AccessionNumber", "StudyID", "AdmissionID", "ServiceEpisodeID", "RequestedProcedureID"),
    *("PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest"),
    *("ScheduledProcedureStepID", "PerformedProcedureStepID"),
    *("InstitutionName", "InstitutionAddress", "ReferringPhysicianAddress", "ReferringPhysicianTelephoneNumbers"),
    *("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "AcquisitionDateTime"),
)
LOOKED_FOR = frozenset(tag for keyword in _LOOKED_FOR_WHOLE if (tag := tag_for_keyword(keyword)))
"""Attributes whose values are looked for as a whole."""

_OF_PATIENT = 0x0010
_ACCESSION = 0x00080050
_NOBODY = frozenset(
    {
        *("anonymized", "anonymous", "doctor", "emergency", "female", "male", "nobody", "none", "null"),
        *("patient", "physician", "test", "trauma", "unknown"),
    }
)
"""Words that are written where there is no name."""

_WORD = re.compile(r"\w+")
_SHORTEST_WORD, _SHORTEST_WORD_WITHOUT_CASE, _SHORTEST_WHOLE = 3, 2, 4
_SHORTEST_IN_BINARY = 5
_DATE_LENGTH = 8
_BINARY_ENCODINGS = ("utf-8", "latin-1", "utf-16-le", "utf-16-be")


class UndecodableError(Exception):
    """A text that its character set does not decode."""


Decode = Callable[[bytes], str]


@lru_cache(maxsize=64)
def decoder(charset: bytes) -> Decode:
    """Gives what decodes the texts of an object or item.

    Args:
        charset: Its Specific Character Set, as in the file.

    Returns:
        A function; it raises UndecodableError.

    Raises:
        UndecodableError: If there is no such character set.
    """
    terms = [part.strip() for part in plain(charset).split("\\")]
    if not all(term in python_encoding for term in terms):
        raise UndecodableError
    encodings = convert_encodings(terms)

    def decode(value: bytes) -> str:
        if value.isascii() and b"\x1b" not in value:
            return value.decode("ascii")
        try:
            if len(encodings) == 1:
                text = value.decode(encodings[0])
            else:
                with quiet_pydicom():
                    text = decode_bytes(value, encodings, TEXT_VR_DELIMS)
        except (LookupError, ValueError):
            raise UndecodableError from None
        if "\ufffd" in text:
            raise UndecodableError
        return text

    return decode


def normal(text: str) -> str:
    """Gives a text without differences of case, accents and width."""
    if text.isascii():
        return text.lower()
    parts = unicodedata.normalize("NFKD", text.casefold())
    return unicodedata.normalize("NFC", "".join(part for part in parts if not unicodedata.combining(part))).casefold()


@dataclass(frozen=True, slots=True)
class Identifying:
    """A value that identifies, without differences of case.

    Attributes:
        value: A word of a name, or another value.
        is_patients: Whether it is the patient's own, not another person's or the institution's.
    """

    value: str
    is_patients: bool


def identifying(tag: int, vr: str, text: str) -> frozenset[Identifying]:
    """Gives what is to be looked for of one element.

    Args:
        tag: Of the element.
        vr: Its VR.
        text: Its value, decoded; several are separated by a backslash. UTF-8 that was read as Latin-1 counts as both.

    Returns:
        Words of a name, or whole values; with their accents and without.
    """
    texts = {form for each in (text, readable(text)) for form in (normal(each), each.casefold())}
    if vr == "PN":
        found = [word for each in texts for word in _WORD.findall(each.replace("_", " ")) if _tells(word)]
    elif tag in LOOKED_FOR:
        found = [part.strip(" \0") for each in texts for part in each.split("\\")]
        if vr in ("DA", "DT"):
            found = [part.replace(".", "")[:_DATE_LENGTH] for part in found]
        found = [part for part in found if len(part) >= _SHORTEST_WHOLE]
    else:
        found = []
    return frozenset(Identifying(value, tag >> 16 == _OF_PATIENT or tag == _ACCESSION) for value in found)


class Finder:
    """Finds values that identify.

    Args:
        values: What is looked for.
    """

    def __init__(self, values: Iterable[Identifying]) -> None:
        self._everybodys = sorted({each.value for each in values})
        self._patients = sorted({each.value for each in values if each.is_patients})

    def is_in_text(self, text: str, *, only_patients: bool) -> bool:
        """Tells whether a text holds one of them.

        Args:
            text: The text.
            only_patients: Whether only the patient's own values count.

        Returns:
            Whether one is there, as a word of its own.
        """
        texts = {normal(text), normal(readable(text))}
        values = self._patients if only_patients else self._everybodys
        return any(_occurs(value, within) for within in texts for value in values)

    def is_in_bytes(self, content: bytes) -> bool:
        """Tells whether bytes of unknown meaning hold one of the patient's of five characters or more.

        Args:
            content: The bytes.

        Returns:
            Whether one is there in Latin-1, UTF-8 or UTF-16, as a word of its own or not.
        """
        lowered = content.lower()
        return any(needle in lowered for needle in self._needles)

    @cached_property
    def _needles(self) -> frozenset[bytes]:
        return frozenset(
            form.encode(encoding, "replace").lower()
            for value in self._patients
            if len(value) >= _SHORTEST_IN_BINARY
            for form in {value, value.upper(), value.title()}
            for encoding in _BINARY_ENCODINGS
        )


def _tells(word: str) -> bool:
    return word not in _NOBODY and len(word) >= (_SHORTEST_WORD if _has_case(word) else _SHORTEST_WORD_WITHOUT_CASE)


def _has_case(word: str) -> bool:
    return word.isascii() or word.upper() != word.lower()


def _occurs(value: str, text: str) -> bool:
    start = text.find(value)
    while start >= 0:
        end = start + len(value)
        if not _has_case(value) or not (text[start - 1 : start].isalnum() or text[end : end + 1].isalnum()):
            return True
        start = text.find(value, start + 1)
    return False
