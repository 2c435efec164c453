"""What the emulator reads of an image's header, and which product it makes of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pydicom
from pydicom.errors import InvalidDicomError

if TYPE_CHECKING:
    from pathlib import Path

QXR, QMSK, QER, QCT, NOT_IMPLEMENTED = "qxr", "qmsk", "qer", "qct", "not_implemented"
XRAY_PRODUCTS = frozenset({QXR, QMSK})

XRAY_MODALITIES = frozenset({"CR", "DX"})
_CHEST = re.compile(r"CHEST|THORA|LUNG|RIB", re.IGNORECASE)
_HEAD = re.compile(r"HEAD|BRAIN|SKULL|CRANI|CEREBR", re.IGNORECASE)
_TAGS = [
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "SOPClassUID",
    "Modality",
    "BodyPartExamined",
    "StudyDescription",
    "SeriesDescription",
    "ProtocolName",
    "PatientID",
    "AccessionNumber",
    "InstanceNumber",
    "SamplesPerPixel",
    "NumberOfFrames",
    "FrameOfReferenceUID",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PixelSpacing",
    "Rows",
]
_GEOMETRY = ("FrameOfReferenceUID", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing")


@dataclass(frozen=True, slots=True)
class Header:
    """The attributes of one image that answers depend on; empty strings where absent.

    ``is_plain`` says whether it is one grey picture, ``has_geometry`` whether that lies in a known place.
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    modality: str
    body_part: str
    descriptions: str
    patient_id: str
    accession_number: str
    instance_number: int
    is_plain: bool
    has_geometry: bool

    @property
    def uids(self) -> tuple[str, str, str]:
        """Its UIDs, from the image's to the study's."""
        return self.sop_instance_uid, self.series_instance_uid, self.study_instance_uid

    @property
    def is_xray(self) -> bool:
        """Whether results are by image."""
        return self.modality in XRAY_MODALITIES

    @property
    def usecase(self) -> str:
        """The product, decided from modality and region.

        The service looks at the picture too, and its rules are not published. Here the body part decides, or else the
        descriptions; an X-ray that names no region is taken for a chest, a CT that names none for a head. qMSK's name
        is not stated anywhere; "qmsk" is a guess.
        """
        region = self.body_part or self.descriptions
        if self.is_xray:
            return QXR if not self.body_part or _CHEST.search(region) else QMSK
        if self.modality != "CT":
            return NOT_IMPLEMENTED
        if _CHEST.search(region):
            return QCT
        return QER if not self.body_part or _HEAD.search(region) else NOT_IMPLEMENTED


def read_header(path: Path, *, cut: bool = False) -> Header | None:
    """Read one received file.

    Args:
        path: The file.
        cut: Whether to throw away everything behind the header.

    Returns:
        Its header, or None where it is no DICOM file with the three UIDs.
    """
    with path.open("rb+" if cut else "rb") as file:
        try:
            dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=None if cut else list(_TAGS))
            found = {tag: str(dataset.get(tag) or "") for tag in _TAGS}
            instance_number = int(found["InstanceNumber"] or 0)
        except (InvalidDicomError, EOFError, ValueError, KeyError, AttributeError, NotImplementedError):
            return None
        if not (found["StudyInstanceUID"] and found["SeriesInstanceUID"] and found["SOPInstanceUID"]):
            return None
        if cut:
            file.truncate()
    return Header(
        study_instance_uid=found["StudyInstanceUID"],
        series_instance_uid=found["SeriesInstanceUID"],
        sop_instance_uid=found["SOPInstanceUID"],
        modality=found["Modality"],
        body_part=found["BodyPartExamined"],
        descriptions=" ".join((found["StudyDescription"], found["SeriesDescription"], found["ProtocolName"])),
        patient_id=found["PatientID"],
        accession_number=found["AccessionNumber"],
        instance_number=instance_number,
        is_plain=found["SamplesPerPixel"] == "1" and found["NumberOfFrames"] in {"", "1"} and bool(found["Rows"]),
        has_geometry=all(found[tag] for tag in _GEOMETRY),
    )
