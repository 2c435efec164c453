"""DICOM files in any number, made fast: one real header, patched with UIDs of the same length. All SIMULATED."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from random import Random

import pydicom
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian

_ROOT = "1.2.826.0.1.3680043.8.498"
_DIGITS = 20


def uid(kind: int, number: int) -> str:
    """Return a UID of a fixed length.

    Args:
        kind: Tells studies, series and instances apart.
        number: Which of them.
    """
    return f"{_ROOT}.{kind}.1{number:0{_DIGITS - 1}}"


def _patient(number: int) -> str:
    return f"SIM{number:010}"


@dataclass(frozen=True, slots=True)
class Image:
    """One kind of image, to be written many times.

    Attributes:
        modality: Its modality.
        side: Rows, and columns, of two bytes each.
    """

    modality: str
    side: int

    @cache  # noqa: B019 - there are only a few kinds
    def template(self) -> bytes:
        """Return a whole file, whose UIDs are those of number 0, and whose pixels are noise.

        The header is a scanner's, with its private elements: about 260 elements, which a reader has to deal with.
        """
        dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
        dataset.Rows = dataset.Columns = self.side
        dataset.PixelData = Random(0).randbytes(2 * self.side * self.side)
        dataset.Modality = self.modality
        dataset.BodyPartExamined = "CHEST"
        dataset.PatientName, dataset.PatientID, dataset.AccessionNumber = "SIMULATED", _patient(0), _patient(0)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = uid(1, 0), uid(2, 0), uid(3, 0)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        written = BytesIO()
        dataset.save_as(written, enforce_file_format=True)
        return written.getvalue()


def write_series(
    folder: Path, image: Image, *, series: int, count: int, per_folder: int = 1000, first: int = 0
) -> Iterator[Path]:
    """Write images of one series.

    Args:
        folder: Where they go; below it, so many to a folder.
        image: What they are.
        series: Which series, study and patient.
        count: How many.
        per_folder: How many to a folder.
        first: The number of the first instance.

    Yields:
        Each file, in order; its name is its SOPInstanceUID.
    """
    template = image.template()
    head, pixels = template[: -2 * image.side * image.side], template[-2 * image.side * image.side :]
    for make in (partial(uid, 1), partial(uid, 2), _patient):
        head = head.replace(make(0).encode(), make(series).encode())
    for number in range(first, first + count):
        target = folder / f"{number // per_folder:05}" / f"{uid(3, number)}.dcm"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(head.replace(uid(3, 0).encode(), uid(3, number).encode()) + pixels)
        yield target
