"""Small real DICOM files, written with pydicom, laid out as an export."""

from pathlib import Path

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import generate_uid

CR = "1.2.840.10008.5.1.4.1.1.1"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
BASIC_TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.11"
HANGING_PROTOCOL = "1.2.840.10008.5.1.4.38.1"

CLASSES = {"CR": CR, "DX": DX, "CT": CT, "SR": BASIC_TEXT_SR, "OT": SECONDARY_CAPTURE}


def dataset(modality="CR", *, rows=16, columns=16, syntax=uid.ExplicitVRLittleEndian, **values):
    """An image (a report for SR) of SIMULATED^PATIENT with fresh UIDs; ``values`` are keywords, None removes one."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = CLASSES.get(modality, SECONDARY_CAPTURE)
    ds.SOPInstanceUID = generate_uid()
    ds.StudyInstanceUID = generate_uid()
    ds.SeriesInstanceUID = generate_uid()
    ds.Modality = modality
    ds.PatientID = "SIM-1"
    ds.PatientName = "SIMULATED^PATIENT"
    ds.PatientBirthDate = "19700101"
    ds.PatientSex = "F"
    ds.AccessionNumber = "A1"
    ds.StudyDate = "20240501"
    ds.StudyTime = "101500"
    if modality != "SR":
        ds.Rows, ds.Columns = rows, columns
        ds.BitsAllocated = ds.BitsStored = 8
        ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 7, 0, 1
        ds.PhotometricInterpretation = "MONOCHROME2"
        ds.PixelData = np.zeros((rows, columns), np.uint8).tobytes()
        ds["PixelData"].VR = "OB"
    for keyword, value in values.items():
        if value is None:
            if keyword in ds:
                delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    ds.preamble = bytes(128)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", "1.2.3")
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID") or "1.2.3"
    return ds


class Export:
    """A folder that files are added to."""

    dataset = staticmethod(dataset)

    def __init__(self, root: Path):
        self.root = root

    def save(self, name, ds):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        ds.save_as(path)
        return path

    def add(self, name, modality="CR", **values):
        """Writes one object and gives its dataset."""
        ds = dataset(modality, **values)
        self.save(name, ds)
        return ds

    def write(self, name, content):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def add_series(self, folder, modality="CT", count=12, **values):
        """Writes a series of axial slices, 5 mm apart from z=0 unless ``start`` says otherwise."""
        start, spacing = values.pop("start", 0.0), values.pop("spacing", 5.0)
        common = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid(), **values}
        if modality == "CT":
            common = {
                "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
                "PixelSpacing": [0.5, 0.5],
                "SliceThickness": 5,
                "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
                "FrameOfReferenceUID": generate_uid(entropy_srcs=[common["StudyInstanceUID"]]),
                **common,
            }
        for number in range(count):
            place = {"ImagePositionPatient": [0, 0, start + number * spacing]} if modality == "CT" else {}
            last = self.add(f"{folder}/im{number:04}", modality, InstanceNumber=number + 1, **{**place, **common})
        return last


@pytest.fixture
def export(tmp_path):
    root = tmp_path / "export"
    root.mkdir()
    return Export(root)
