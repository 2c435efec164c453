"""One file's header as the values that the scan works with."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TypeVar

from pydicom.charset import convert_encodings, decode_bytes, python_encoding
from pydicom.valuerep import TEXT_VR_DELIMS

from qure_provider.dicom.model import Identity, Instance
from qure_provider.dicom.reader import Header, frames, plain
from qure_provider.dicom.reasons import Oddity, Quarantine

K = TypeVar("K")
V = TypeVar("V")

CHARACTER_SET = 0x00080005
SOP_CLASS = 0x00080016
SOP_INSTANCE = 0x00080018
STUDY_INSTANCE = 0x0020000D
SERIES_INSTANCE = 0x0020000E
MODALITY = 0x00080060
INSTANCE_NUMBER = 0x00200013
POSITION = 0x00200032
ACQUISITION_DATE_TIME = 0x0008002A

_IDENTITY = (CHARACTER_SET, STUDY_INSTANCE, 0x00100020, 0x00100021, 0x00080050, 0x00100030, 0x00100040, 0x00100010)
_DATES = (0x00080022, 0x00080023, 0x00080021, 0x00080020)
_TIMES = (0x00080032, 0x00080033, 0x00080031, 0x00080030)
_IMAGE_TYPE, _BODY_PART, _STATION, _STUDY_DESCRIPTION, _SERIES_DESCRIPTION, _PROTOCOL = (
    *(0x00080008, 0x00180015, 0x00081010, 0x00081030, 0x0008103E, 0x00181030),
)
_AGE, _BIRTH_DATE, _STUDY_DATE, _THICKNESS, _KERNEL, _CONTRAST, _ORIENTATION, _FRAME_OF_REFERENCE = (
    *(0x00101010, 0x00100030, 0x00080020, 0x00180050, 0x00181210, 0x00180010, 0x00200037, 0x00200052),
)
_STUDY_TIME, _STUDY_ID, _REFERRING, _PLACER, _FILLER = 0x00080030, 0x00200010, 0x00080090, 0x00402016, 0x00402017
_ROWS, _COLUMNS, _SPACING = 0x00280010, 0x00280011, 0x00280030
_ATTRIBUTES = (
    *(CHARACTER_SET, _IMAGE_TYPE, _BODY_PART, _STATION, _STUDY_DESCRIPTION, _SERIES_DESCRIPTION, _PROTOCOL, _AGE),
    *(_BIRTH_DATE, _STUDY_DATE, _THICKNESS, _KERNEL, _CONTRAST, _ORIENTATION, _FRAME_OF_REFERENCE),
    *(_STUDY_TIME, _STUDY_ID, _REFERRING, _PLACER, _FILLER),
)
_PIXEL_DESCRIPTION = (_ROWS, _COLUMNS, _SPACING, 0x00280100, 0x00280002, 0x00280008, 0x00280004)

WANTED = frozenset(
    {
        *(SOP_CLASS, SOP_INSTANCE, SERIES_INSTANCE, MODALITY, INSTANCE_NUMBER, POSITION, ACQUISITION_DATE_TIME),
        *(*_IDENTITY, *_ATTRIBUTES, *_DATES, *_TIMES, *_PIXEL_DESCRIPTION),
    }
)
"""The elements that a record is made of."""

_UID = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))*")
_LOOSE_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_UID_LENGTH = 64
_DATE = re.compile(r"[0-9]{8}")
_TIME = re.compile(r"[0-9]{2}(?:[0-9]{2}){0,2}(?:\.[0-9]{1,6})?")
_DATE_TIME = re.compile(r"([0-9]{4}(?:[0-9]{2}){0,5}(?:\.[0-9]{1,6})?)(?:[+-][0-9]{4})?")
_AGE_FORM = re.compile(r"([0-9]{1,3})([DWMY])")
_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}
_SQRT_HALF = math.sqrt(0.5)


@dataclass(frozen=True, slots=True)
class Attributes:
    """What describes a series, as one of its files says it; see :class:`~qure_provider.dicom.model.Series`."""

    study_date: str
    station_name: str
    body_part: str
    study_description: str
    series_description: str
    image_type: tuple[str, ...]
    protocol_name: str
    patient_age: float | None
    slice_thickness: float | None
    convolution_kernel: str
    contrast_agent: str
    is_axial: bool | None
    frame_of_reference_uid: str
    study_time: str
    study_id: str
    referring_physician: str
    placer_order_number: str
    filler_order_number: str


@dataclass(slots=True)
class Record:
    """One DICOM file of the export.

    Attributes:
        instance: What is kept of it.
        identity: Whose it is.
        attributes: What it says of its series.
        series_instance_uid: SeriesInstanceUID.
        modality: Modality.
        acquired: See :class:`~qure_provider.dicom.model.Series`.
        extent: Lowest and highest z of the image, in mm; None where it does not say.
        has_pixels: Whether it has pixel data.
        oddities: What is unusual about it.
        problem: Why it is quarantined; None where nothing is wrong with it.
    """

    instance: Instance
    identity: Identity
    attributes: Attributes
    series_instance_uid: str
    modality: str
    acquired: str
    extent: tuple[float, float] | None
    has_pixels: bool
    oddities: frozenset[Oddity]
    problem: Quarantine | None = None


class RecordMaker:
    """Makes records; values that many files have in common are decoded once and shared."""

    def __init__(self) -> None:
        self._identities: dict[tuple[bytes | None, ...], tuple[Identity, bool]] = {}
        self._attributes: dict[tuple[bytes | None, ...], tuple[Attributes, bool]] = {}
        self._texts: dict[bytes, str] = {}

    def make(self, path: str, size: int, modified: float, header: Header) -> Record:
        """Makes the record of one file.

        Args:
            path: Relative to the export's root.
            size: In bytes.
            modified: Modification time, seconds since the epoch.
            header: What was read, with the elements of :data:`WANTED`.

        Returns:
            The record, with a problem where a UID is missing or none, or the file is not whole. Values that are broken
            otherwise are taken as absent.
        """
        get = header.values.get
        identity, readable = _remember(self._identities, tuple(map(get, _IDENTITY)), _identity)
        attributes, also_readable = _remember(self._attributes, tuple(map(get, _ATTRIBUTES)), _attributes)
        sop_instance = header.plain(SOP_INSTANCE)
        sop_class, series, modality = (self._shared(get(tag, b"")) for tag in (SOP_CLASS, SERIES_INSTANCE, MODALITY))
        oddities = set()
        if not (readable and also_readable):
            oddities.add(Oddity.UNDECODABLE)
        if not identity.patient_id:
            oddities.add(Oddity.NO_PATIENT_ID)
        if header.media_storage_instance_uid not in ("", sop_instance):
            oddities.add(Oddity.OTHER_FILE_UID)
        uids = (sop_instance, series, identity.study_instance_uid, sop_class)
        problem = None if header.whole else Quarantine.TRUNCATED
        for each in uids:
            if not _UID.fullmatch(each) or len(each) > _UID_LENGTH:
                if _LOOSE_UID.fullmatch(each) and len(each) <= _UID_LENGTH:
                    oddities.add(Oddity.LEADING_ZERO)
                else:
                    problem = problem or (Quarantine.INVALID_UID if each else Quarantine.MISSING_UID)
        instance = Instance(
            path,
            size,
            modified,
            sop_instance,
            sop_class,
            self._shared(header.transfer_syntax_uid.encode()),
            _whole_number(header.plain(INSTANCE_NUMBER)),
            frames(header),
        )
        return Record(
            instance,
            identity,
            attributes,
            series if _LOOSE_UID.fullmatch(series) and len(series) <= _UID_LENGTH else "",
            modality.upper(),
            _acquired(header),
            _extent(header) if modality == "CT" else None,
            header.has_pixels,
            frozenset(oddities),
            problem,
        )

    def _shared(self, value: bytes) -> str:
        return _remember(self._texts, value, plain)


def _remember(memory: dict[K, V], key: K, make: Callable[[K], V]) -> V:
    value = memory.get(key)
    if value is None:
        value = memory[key] = make(key)
    return value


def _identity(values: tuple[bytes | None, ...]) -> tuple[Identity, bool]:
    """Decodes the values of ``_IDENTITY``, and says whether all could be."""
    charset, study, patient_id, issuer, accession, birth_date, sex, name = (value or b"" for value in values)
    decode, known = _decoder(charset)
    texts = [decode(value) for value in (patient_id, issuer, accession, name)]
    identity = Identity(plain(study), texts[0], texts[1], texts[2], plain(birth_date), plain(sex), texts[3].rstrip("="))
    return identity, known and not any("\ufffd" in text for text in texts)


def _attributes(values: tuple[bytes | None, ...]) -> tuple[Attributes, bool]:
    """Decodes the values of ``_ATTRIBUTES``, and says whether all could be."""
    value = {tag: content or b"" for tag, content in zip(_ATTRIBUTES, values, strict=True)}
    decode, known = _decoder(value[CHARACTER_SET])
    texts = [
        decode(value[tag]).strip()
        for tag in (_STATION, _STUDY_DESCRIPTION, _SERIES_DESCRIPTION, _PROTOCOL, _KERNEL, _CONTRAST)
    ]
    station, study_description, series_description, protocol, kernel, contrast = texts
    orders = [decode(value[tag]).strip() for tag in (_STUDY_ID, _REFERRING, _PLACER, _FILLER)]
    study_id, referring_physician, placer, filler = orders
    study_date = plain(value[_STUDY_DATE])
    attributes = Attributes(
        study_date=study_date,
        station_name=station,
        body_part=plain(value[_BODY_PART]).upper(),
        study_description=study_description,
        series_description=series_description,
        image_type=tuple(part.strip() for part in plain(value[_IMAGE_TYPE]).split("\\")) if value[_IMAGE_TYPE] else (),
        protocol_name=protocol,
        patient_age=_age(plain(value[_AGE]), plain(value[_BIRTH_DATE]), study_date),
        slice_thickness=_positive(_decimals(value[_THICKNESS])),
        convolution_kernel=kernel,
        contrast_agent=contrast,
        is_axial=_is_axial(_decimals(value[_ORIENTATION])),
        frame_of_reference_uid=plain(value[_FRAME_OF_REFERENCE]),
        study_time=plain(value[_STUDY_TIME]),
        study_id=study_id,
        referring_physician=referring_physician.rstrip("="),
        placer_order_number=placer,
        filler_order_number=filler,
    )
    return attributes, known and not any("\ufffd" in text for text in (*texts, *orders))


def _decoder(charset: bytes) -> tuple[Callable[[bytes], str], bool]:
    """Gives what decodes text of a Specific Character Set, and whether that set is known.

    A byte that cannot be decoded becomes U+FFFD.
    """
    terms = [part.strip() for part in plain(charset).split("\\")]
    try:
        encodings = convert_encodings(terms)
    except (LookupError, ValueError):
        encodings = ["ascii"]

    def decode(value: bytes) -> str:
        value = value.rstrip(b" \0")
        try:
            return decode_bytes(value, encodings, TEXT_VR_DELIMS).rstrip(" \0")
        except (LookupError, ValueError):
            return value.decode("ascii", "replace")

    return decode, all(term in python_encoding for term in terms)


def _acquired(header: Header) -> str:
    """The first complete date and time of those that the header offers, else the first date."""
    if match := _DATE_TIME.fullmatch(header.plain(ACQUISITION_DATE_TIME)):
        return match[1]
    only_date = ""
    for date_tag, time_tag in zip(_DATES, _TIMES, strict=True):
        day, time = header.plain(date_tag), header.plain(time_tag)
        if _DATE.fullmatch(day):
            if _TIME.fullmatch(time):
                return day + time
            only_date = only_date or day
    return only_date


def _age(age: str, birth_date: str, study_date: str) -> float | None:
    if match := _AGE_FORM.fullmatch(age):
        return int(match[1]) * _YEARS[match[2]]
    born, studied = _day(birth_date), _day(study_date)
    if born is None or studied is None or studied < born:
        return None
    return (studied - born).days / 365.25


def _day(value: str) -> date | None:
    try:
        return date(int(value[:4]), int(value[4:6]), int(value[6:])) if _DATE.fullmatch(value) else None
    except ValueError:
        return None


def _extent(header: Header) -> tuple[float, float] | None:
    """Lowest and highest z of the four corners of an image's plane."""
    position = _decimals(header.values.get(POSITION, b""))
    orientation = _decimals(header.values.get(_ORIENTATION, b""))
    spacing = _decimals(header.values.get(_SPACING, b""))
    rows, columns = header.number(_ROWS), header.number(_COLUMNS)
    if len(position) != 3 or len(orientation) != 6 or len(spacing) != 2 or not rows or not columns:
        return None
    along_row = orientation[2] * spacing[1] * (columns - 1)
    along_column = orientation[5] * spacing[0] * (rows - 1)
    corners = [position[2] + a + b for a in (0.0, along_row) for b in (0.0, along_column)]
    return min(corners), max(corners)


def _is_axial(orientation: Sequence[float]) -> bool | None:
    if len(orientation) != 6:
        return None
    row_x, row_y, _, column_x, column_y, _ = orientation
    return abs(row_x * column_y - row_y * column_x) >= _SQRT_HALF


def _decimals(value: bytes) -> Sequence[float]:
    """The numbers of a DS; none where one of them is no finite number."""
    try:
        numbers = [float(part) for part in value.rstrip(b" \0").split(b"\\")]
    except ValueError:
        return ()
    return numbers if all(map(math.isfinite, numbers)) else ()


def _positive(numbers: Sequence[float]) -> float | None:
    return numbers[0] if numbers and numbers[0] > 0 else None


def _whole_number(value: str) -> int | None:
    try:
        return int(value)
    except ValueError:
        return None
