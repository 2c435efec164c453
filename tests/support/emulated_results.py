"""Results as the emulator makes them, on disk, beside what was sent: real images with made-up identities."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pydicom
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from qure_provider.dicom.model import Identity, StudyFacts
from qure_provider.emulator.assets import Assets, Job, offered
from qure_provider.emulator.findings import Findings
from qure_provider.emulator.header import read_header


@dataclass(frozen=True)
class Emulated:
    """One study that was sent, and the files of its result by kind."""

    identity: Identity
    facts: StudyFacts
    sent: frozenset
    source: pydicom.Dataset
    sources: tuple = ()
    files: dict = field(default_factory=dict)

    @property
    def objects(self):
        """What may go onward of it and is DICOM."""
        return [path for kind, paths in self.files.items() if kind != "original" for path in paths if is_dicom(path)]

    def one(self, kind):
        return self.files[kind][0]


def is_dicom(path):
    return path.read_bytes()[128:132] == b"DICM"


@cache
def _read(name):
    return pydicom.dcmread(get_testdata_file(name, download=False))


def _source(product, number, values):
    """A real radiograph or slice, made small."""
    template = _read("RG1_UNCR.dcm" if product == "qxr" else "693_UNCR.dcm")
    dataset = pydicom.dcmread(template.filename)
    pixels = dataset.pixel_array[::8, ::8].copy()
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelSpacing = [1.6, 1.6]
    dataset.PixelData = pixels.tobytes()
    dataset.InstanceNumber = number
    if product != "qxr":
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [0, 0, 5 * number]
        dataset.SliceThickness = 5
    for keyword in ("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"):
        if keyword in dataset:
            delattr(dataset, keyword)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    if "SOPInstanceUID" not in values:
        dataset.SOPInstanceUID = generate_uid()
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def emulated(folder: Path, product="qxr", *, images=None, present=("pneumothorax",), **values):
    """Sends a made-up study in thought, and makes the emulator's result of it.

    ``values`` are keywords of the source's header.
    """
    identity = {
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
        "ReferringPhysicianName": "Nobody^Simulated",
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
    } | values
    paths, sources = [], []
    for number in range(1, (images or (1 if product == "qxr" else 3)) + 1):
        dataset = _source(product, number, identity)
        paths.append(folder / f"source-{number}.dcm")
        dataset.save_as(paths[-1])
        sources.append(dataset)
    source = sources[0]
    uid = source.SOPInstanceUID if product == "qxr" else source.SeriesInstanceUID
    job = Job(
        uid=uid,
        usecase=product,
        revision=1,
        made_at=1_770_000_000.0,
        findings=Findings(product, tuple(present), tuple((key, 0.9) for key in present)),
        impression="SIMULATED, NOT FOR CLINICAL USE. Abnormal study",
        lines=("SIMULATED, NOT FOR CLINICAL USE. Something suspected.",),
        sources=tuple(paths),
    )
    assets, files = Assets(folder / "kept"), {}
    for kind, count in offered(product, read_header(paths[0]), len(paths), older=False).items():
        for index in range(count):
            path = folder / f"{kind}-{index}"
            path.write_bytes(assets.content(job, kind, index, {}))
            files.setdefault(kind, []).append(path)
    return Emulated(
        identity=Identity(
            study_instance_uid=str(source.StudyInstanceUID),
            patient_id=str(source.PatientID),
            issuer_of_patient_id=str(source.IssuerOfPatientID),
            accession_number=str(source.AccessionNumber),
            birth_date=str(source.PatientBirthDate),
            sex=str(source.PatientSex),
            patient_name=str(source.PatientName),
        ),
        facts=StudyFacts(
            study_date=str(source.StudyDate),
            study_time=str(source.StudyTime),
            study_description=str(source.StudyDescription),
            study_id=str(source.StudyID),
            referring_physician=str(source.ReferringPhysicianName),
            modality=str(source.Modality),
        ),
        sent=frozenset({*(str(each.SOPInstanceUID) for each in sources), str(source.SeriesInstanceUID)}),
        source=source,
        sources=tuple(paths),
        files=files,
    )
