"""Real images, small and with identities of their own, to be sent to the emulator."""

import io
from dataclasses import dataclass
from functools import lru_cache

import pydicom
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

GEOMETRY = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [0.5, 0.5], "SliceThickness": 5}


@dataclass(frozen=True)
class Uploaded:
    """What was sent: images of one series."""

    datasets: list

    @property
    def study(self):
        return self.datasets[0].StudyInstanceUID

    @property
    def series(self):
        return self.datasets[0].SeriesInstanceUID

    @property
    def sops(self):
        return [dataset.SOPInstanceUID for dataset in self.datasets]

    @property
    def sop(self):
        return self.sops[0]

    @property
    def files(self):
        return {f"file_{number}": _encoded(dataset) for number, dataset in enumerate(self.datasets)}


def _encoded(dataset):
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def _identified(dataset, **attributes):
    """Give a real image an identity of its own, made up."""
    values = {
        "SpecificCharacterSet": "ISO_IR 100",
        "PatientName": "Müller^Simulated",
        "PatientID": "SIM-1",
        "IssuerOfPatientID": "SIMULATED",
        "PatientBirthDate": "19700101",
        "PatientSex": "O",
        "AccessionNumber": "SIM-A-1",
        "StudyDate": "20260102",
        "StudyTime": "030405",
        "StudyID": "1",
        "StudyDescription": "Simulated study",
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "SOPInstanceUID": generate_uid(),
        "InstanceNumber": 1,
        **attributes,
    }
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    # What the public copies say of their own de-identification is not about these identities.
    for keyword in ("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"):
        if keyword in dataset:
            delattr(dataset, keyword)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def read(name):
    return pydicom.dcmread(get_testdata_file(name, download=False))


@lru_cache
def _shrunk(name, step):
    dataset = read(name)
    pixels = dataset.pixel_array[::step, ::step].copy()
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelData = pixels.tobytes()
    return _encoded(dataset)


def _small(name, step):
    """Every so-manieth row and column of a real image: quicker."""
    return pydicom.dcmread(io.BytesIO(_shrunk(name, step)))


def an_xray(images=1, **attributes):
    """A real chest radiograph, made small."""
    series = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    made = []
    for number in range(1, images + 1):
        dataset = _identified(_small("RG1_UNCR.dcm", 8), **series, InstanceNumber=number, **attributes)
        dataset.PixelSpacing = [1.6, 1.6]
        made.append(dataset)
    return Uploaded(made)


def a_ct(body_part, slices=3, **attributes):
    """A real slice of a head, made small and repeated; what it is called is made up."""
    series = {
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
    } | attributes
    made = []
    for number in range(1, slices + 1):
        dataset = _identified(
            _small("693_UNCR.dcm", 4),
            **series,
            **GEOMETRY,
            BodyPartExamined=body_part,
            InstanceNumber=number,
            ImagePositionPatient=[0, 0, 5 * number],
        )
        made.append(dataset)
    return Uploaded(made)
