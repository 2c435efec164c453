"""Why a file of an export is not read, in fixed words."""

from __future__ import annotations

from enum import StrEnum
from pathlib import PurePosixPath


class Quarantine(StrEnum):
    """Why a file is quarantined: a person has to look at it."""

    UNREADABLE = "cannot be read"
    PERMISSION = "permission denied"
    VANISHED = "not there when it was read"
    FOLDER = "folder that cannot be listed"
    NOT_A_FILE = "not a regular file"
    LINK_OUT = "link that leads out of the export"
    LINK_BROKEN = "link that leads nowhere"
    OUTSIDE = "outside the export"
    UNFINISHED = "temporary or hidden name: may still be being written"
    EMPTY = "empty file"
    NOT_DICOM = "not DICOM"
    NO_FILE_HEADER = "DICOM without the file header (preamble, DICM, transfer syntax) that sending needs"
    MALFORMED = "DICOM that cannot be parsed"
    HEADER_TOO_LARGE = "header larger than the limit"
    TOO_LARGE = "larger than one request may be"
    MISSING_UID = "Study, Series, SOP Instance or SOP Class UID missing"
    INVALID_UID = "a UID that is none (characters, length or empty components)"
    NO_MODALITY = "image without a modality"
    TRUNCATED = "truncated: shorter than its elements say"
    NO_PIXELS = "image without pixel data"
    DIFFERENT_COPIES = "SOP Instance UID of another file with different content"
    TWO_SERIES = "SOP Instance UID that occurs in two series"
    TWO_STUDIES = "Series Instance UID that occurs in two studies"
    TWO_MODALITIES = "series of two modalities"
    TWO_PATIENTS = "objects of the study disagree about the patient or the accession number"


class Duplicate(StrEnum):
    """Why a file is not sent though nothing is wrong with it: another one is."""

    COPY = "identical copy of another file"
    LINK = "link to another part of the export"


class Ignored(StrEnum):
    """What lies in an export and is no image series."""

    DIRECTORY = "directory record index (DICOMDIR)"
    MARKER = "marker or system file"
    NO_STUDY = "DICOM that belongs to no study"


class Oddity(StrEnum):
    """What is unusual about a series that is sent all the same."""

    LEADING_ZERO = "a UID component has a leading zero"
    OTHER_FILE_UID = "a file header names another SOP Instance UID than its object"
    NO_PATIENT_ID = "no patient ID"
    UNDECODABLE = "text that its character set cannot decode"
    MIXED_IMAGES = "images of different ImageType"


_SUFFIXES = frozenset({"", ".dcm", ".dicom", ".dic", ".ima"})


def may_be_dicom(path: str, reason: str) -> bool:
    """Tells whether a file that cannot be read may have been meant to be DICOM.

    Args:
        path: Its path in the export.
        reason: Why it is quarantined.

    Returns:
        False only where it is no DICOM, or empty, and its name is that of something else (``.txt``); names that end in
        a number are usual for DICOM.
    """
    if reason not in (Quarantine.NOT_DICOM, Quarantine.EMPTY):
        return True
    suffix = PurePosixPath(path).suffix.lower()
    return suffix in _SUFFIXES or suffix[1:].isdigit()
