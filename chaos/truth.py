"""What was exported, read from the files themselves and by nobody else's code."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

XRAY = frozenset({"CR", "DX"})


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of an export.

    Attributes:
        night: The night's name.
        path: Relative to the night's folder.
        sha256: Of its bytes, in hex.
        instance: SOPInstanceUID; empty where it is no DICOM.
        series: SeriesInstanceUID.
        study: StudyInstanceUID.
        modality: Modality.
        patient_id: PatientID.
        patient_name: PatientName.
        accession: AccessionNumber.
    """

    night: str
    path: str
    sha256: str
    instance: str = ""
    series: str = ""
    study: str = ""
    modality: str = ""
    patient_id: str = ""
    patient_name: str = ""
    accession: str = ""

    @property
    def resource(self) -> str:
        """The UID by which a result is asked for."""
        return self.instance if self.modality in XRAY else self.series


def read_sources(exports: Path) -> list[SourceFile]:
    """Read every file of some nights.

    Args:
        exports: The folder that holds one folder a night.

    Returns:
        One for each file.
    """
    return [
        _read(night.name, path.relative_to(night).as_posix(), path.read_bytes(), path)
        for night in sorted(exports.iterdir())
        for path in sorted(night.rglob("*"))
        if path.is_file()
    ]


def _read(night: str, name: str, content: bytes, path: Path) -> SourceFile:
    digest = hashlib.sha256(content).hexdigest()
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
    except InvalidDicomError:
        return SourceFile(night, name, digest)
    return SourceFile(
        night=night,
        path=name,
        sha256=digest,
        instance=str(header.get("SOPInstanceUID", "")),
        series=str(header.get("SeriesInstanceUID", "")),
        study=str(header.get("StudyInstanceUID", "")),
        modality=str(header.get("Modality", "")),
        patient_id=str(header.get("PatientID", "")),
        patient_name=str(header.get("PatientName", "")),
        accession=str(header.get("AccessionNumber", "")),
    )
