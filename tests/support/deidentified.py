"""De-identifying files in tests, and searching what would be sent for what it must not tell."""

import re
import warnings
from io import BytesIO
from pathlib import Path

import data_store
import pydicom
from pydicom.data import data_manager
from pydicom.uid import UID_dictionary

from qure_provider.dicom.deidentify import Deidentifier
from qure_provider.dicom.pseudonym import Pseudonymizer
from qure_provider.emulator.assets import Assets, Job, offered
from qure_provider.emulator.findings import Findings
from qure_provider.emulator.header import read_header

KEY = b"a key for tests that nobody else uses"
SHIPPED = Path(data_manager.DATA_ROOT)
FOLDERS = (SHIPPED / "test_files", SHIPPED / "charset_files", Path(data_store.__file__).parent / "data")
REAL_FILES = sorted(path for folder in FOLDERS for path in folder.rglob("*") if path.is_file())

WHOLE = {
    *("PatientID", "OtherPatientIDs", "IssuerOfPatientID", "PatientAddress", "PatientTelephoneNumbers"),
    *("AccessionNumber", "AdmissionID", "MedicalRecordLocator", "PatientBirthDate", "StudyDate", "SeriesDate"),
    *("AcquisitionDate", "ContentDate", "InstitutionName", "InstitutionAddress"),
    *("ReferringPhysicianAddress", "ReferringPhysicianTelephoneNumbers", "RequestedProcedureID"),
    *("PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest"),
}


class Memory:
    """Bytes as a source."""

    def __init__(self, content, page=16 * 1024):
        self.content, self.size, self.page = content, len(content), page

    def read(self, offset, length):
        return self.content[offset : offset + length]


def a_deidentifier(profile=None, key=KEY):
    return Deidentifier(Pseudonymizer(key), profile)


def as_sent(content, deidentifier=None):
    """What is sent of a file's bytes, and what came with it."""
    done = (deidentifier or a_deidentifier()).deidentify(Memory(content))
    sent = done.header + content[done.offset : done.end]
    assert len(sent) == done.size
    return sent, done


def saved(dataset, **options):
    stream = BytesIO()
    dataset.save_as(stream, **options)
    return stream.getvalue()


def read(content):
    with warnings.catch_warnings(action="ignore"):
        dataset = pydicom.dcmread(BytesIO(content))
        dataset.decode()
    return dataset


def every(dataset):
    """Every element at any depth, the pixel data left out."""
    for tag in sorted(dataset.keys()):
        if tag in (0x7FE00008, 0x7FE00009, 0x7FE00010):
            continue
        element = dataset[tag]
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from every(item)


def uids_of(dataset):
    """Every UID of an object that is not the standard's own, at any depth."""
    found = set()
    for element in every(dataset):
        if element.VR == "UI" and not element.is_empty:
            value = element.value if isinstance(element.value, list | pydicom.multival.MultiValue) else [element.value]
            found |= {str(uid) for uid in value if str(uid) not in UID_dictionary}
    return found


def identifying_values(dataset):
    """What an object says of whose it is, at any depth: words of names, and whole values."""
    found = set()
    for element in every(dataset):
        if element.is_empty or element.tag.is_private:
            continue
        if element.VR == "PN":
            found |= {
                word for word in re.findall(r"[^\W_]+", str(element.value)) if len(word) >= 3 or not word.isascii()
            }
        elif element.keyword in WHOLE:
            found |= {part for part in str(element.value).split("\\") if len(part) >= 4}
    return found | uids_of(dataset)


def told(content, identifying, charsets=()):
    """Which values some bytes tell, in any encoding that a text may be written in; short ones as words only."""
    found = set()
    for value in identifying:
        for text in {value, value.upper(), value.lower(), value.title()}:
            for encoding in {"utf-8", "latin-1", "utf-16-le", "utf-16-be", "shift_jis", "euc_kr", "gb18030", *charsets}:
                try:
                    encoded = text.encode(encoding)
                except (UnicodeError, LookupError):
                    continue
                for match in re.finditer(re.escape(encoded), content):
                    around = content[match.start() - 1 : match.start()] + content[match.end() : match.end() + 1]
                    if len(value) > 8 or not re.search(rb"[0-9A-Za-z.]", around):
                        found.add(value)
    return found


def result_of(folder, sources, product="qxr"):
    """The emulator's result about files that were sent: paths by kind."""
    header = read_header(sources[0])
    first = pydicom.dcmread(sources[0], stop_before_pixels=True)
    job = Job(
        uid=str(first.SOPInstanceUID if product == "qxr" else first.SeriesInstanceUID),
        usecase=product,
        revision=1,
        made_at=1_770_000_000.0,
        findings=Findings(product, ("pneumothorax",), (("pneumothorax", 0.9),)),
        impression="SIMULATED, NOT FOR CLINICAL USE. Abnormal study",
        lines=("SIMULATED, NOT FOR CLINICAL USE. Something suspected.",),
        sources=tuple(sources),
    )
    assets, files = Assets(folder / "kept"), {}
    for kind, count in offered(product, header, len(sources), older=False).items():
        for index in range(count):
            path = folder / f"{kind}-{index}"
            path.write_bytes(assets.content(job, kind, index, {}))
            files.setdefault(kind, []).append(path)
    return files
