"""Makes a night's export out of real DICOM images.

The pictures are real: public samples that the packages ``pydicom-data`` and ``pydicom`` carry. A frontal chest film
with several round masses (RG1), a lower leg with a lesion of the distal tibia (RG3), a slice through a head (693), and
a small crop of a slice through the thorax (CT_small). Everything that is said about them is SIMULATED: patients,
studies, dates and identifiers. A CT series here is one real slice repeated along a true geometry (positions, locations
and numbers agree), so its volume shows no anatomy; two images of one X-ray series are the same picture twice.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset
from pydicom.fileset import FileSet
from pydicom.uid import UID

from qure_provider.api.model import Route
from qure_provider.dicom.model import Fate

WHAT_IT_IS = (
    "SIMULATED export: real images (samples of pydicom-data and pydicom), re-labelled; "
    "each CT series is one real slice repeated with true geometry"
)

_PLANNED = 20
"""From this chest study on, the service finds what it draws: a plan for each of thousands would take too long."""

_NAMESPACE = uuid.UUID("6d1c9a2e-7f0b-5e53-9a2b-0d4b7a1f5c11")
_PREAMBLE = 132  # bytes, the letters DICM among them
_DROPPED = (
    "AdditionalPatientHistory",
    "DeidentificationMethod",
    "InstanceCreatorUID",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "NameOfPhysiciansReadingStudy",
    "OperatorsName",
    "OtherPatientIDs",
    "OtherPatientIDsSequence",
    "PatientIdentityRemoved",
    "PerformingPhysicianName",
    "PhysiciansOfRecord",
    "TimezoneOffsetFromUTC",
)
"""What would still speak of whom or where the samples came from, or contradict the new labels."""


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """One file of the export, and what should become of it.

    Attributes:
        path: Relative to the export, with ``/`` between parts.
        fate: What should become of it.
        what: What it is, in words.
    """

    path: str
    fate: Fate
    what: str


@dataclass(frozen=True, slots=True)
class ExpectedResource:
    """One result that there should be.

    Attributes:
        uid: SOPInstanceUID of an X-ray, SeriesInstanceUID of a CT.
        route: Which of the two.
        product: The product that this image is for, as ``usecase`` names it.
        study_instance_uid: Its study.
        series_instance_uid: Its series.
        files: How many files of it are sent.
        findings: What the service is to be told to find in it (keys of the emulator's catalogue); None for whatever it
            draws.
        what: What it is, in words.
    """

    uid: str
    route: Route
    product: str
    study_instance_uid: str
    series_instance_uid: str
    files: int
    findings: tuple[str, ...] | None
    what: str

    @property
    def triage(self) -> str | None:
        """The triage word that follows from the planned findings; None where nothing is planned."""
        if self.findings is None:
            return None
        return "Critical" if self.findings else "Routine"


@dataclass(frozen=True, slots=True)
class ExportFacts:
    """What was exported and what should come of it, known from the making and not from any reading.

    Attributes:
        night: The night's name, ``YYYY-MM-DD``.
        folder: Where it is.
        files: Every file.
        resources: Every result that there should be.
    """

    night: str
    folder: Path
    files: tuple[ExportedFile, ...]
    resources: tuple[ExpectedResource, ...]

    @property
    def found(self) -> int:
        """Number of files."""
        return len(self.files)

    @property
    def sums(self) -> dict[str, int]:
        """Fate to number of files; every fate is there."""
        counted = Counter(file.fate for file in self.files)
        return {fate.value: counted[fate] for fate in Fate}

    @property
    def patients(self) -> frozenset[str]:
        """The patient IDs in the files that are selected."""
        selected = [self.folder / file.path for file in self.files if file.fate is Fate.SELECTED]
        headers = (pydicom.dcmread(path, specific_tags=["PatientID"], stop_before_pixels=True) for path in selected)
        return frozenset(str(header.PatientID) for header in headers)

    @property
    def urgent(self) -> tuple[ExpectedResource, ...]:
        """The CT results that are to be critical."""
        return tuple(each for each in self.resources if each.route is Route.CT and each.triage == "Critical")


def make_export(folder: Path, *, night: str, studies: int = 3, small: bool = False) -> ExportFacts:
    """Make one night's export. The same night gives the same export, byte for byte; another night gives other UIDs.

    There are always: a chest study of two images in one series with a structured report, an extremity, a head CT whose
    result is to be critical, a head CT in two reconstructions on a medium with a DICOMDIR, a chest CT with a localizer,
    an MR, and what real exports contain besides: a text file, an empty file, a truncated image, an identical duplicate,
    an image without preamble, names with spaces and non-ASCII characters, nested and flat folders.

    Args:
        folder: The night's folder, new or empty.
        night: Its name, ``YYYY-MM-DD``; all studies are of that day.
        studies: How many single-image chest studies there are besides, the first of them to be abnormal; at least 1.
        small: Thin the pictures out, for big nights: about 100 KB for an X-ray and 30 KB for a slice.

    Returns:
        What is in it and what should come of it.

    Raises:
        FileExistsError: The folder is not empty.
        ValueError: ``night`` is no date, or ``studies`` is less than 1.
    """
    day = date.fromisoformat(night)
    if studies < 1:
        raise ValueError("studies: at least 1")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    maker = _Maker(folder, day, small=small)
    maker.chest_of_two()
    maker.extremity()
    for number in range(1, studies + 1):
        maker.single_chest(number)
    maker.critical_head()
    maker.head_in_two_reconstructions()
    maker.chest_ct()
    maker.mr()
    maker.oddities()
    return ExportFacts(night, folder, tuple(maker.files), tuple(maker.resources))


@dataclass(slots=True)
class _Study:
    """What all objects of one study share."""

    uid: UID
    labels: Mapping[str, Any]


@dataclass(slots=True)
class _Maker:
    folder: Path
    day: date
    small: bool
    files: list[ExportedFile] = field(default_factory=list)
    resources: list[ExpectedResource] = field(default_factory=list)
    _studies: int = 0

    def chest_of_two(self) -> None:
        study = self._study("SIMULATED Chest PA")
        series = self._uid(study, 1)
        for number in (1, 2):
            image = self._xray("RG1_UNCR", study, series, number, "CHEST")
            path = self._write(image, f"XR CHEST/{number}.dcm")
            self._expect_image(path, image, "qxr", (), f"chest X-ray, image {number} of 2")
        report = _sample("reportsi.dcm")
        self._label(report, study, self._uid(study, 2), self._uid(study, 2, 1), 1)
        self._add(self._write(report, "XR CHEST/report.dcm"), Fate.NOT_SELECTED, "structured report (SR)")

    def extremity(self) -> None:
        study = self._study("SIMULATED Lower leg AP")
        image = self._xray("RG3_UNCR", study, self._uid(study, 1), 1, "EXTREMITY")
        self._expect_image(self._write(image, "IM_0001"), image, "qmsk", (), "lower leg X-ray")

    def single_chest(self, number: int) -> None:
        """The first is to be abnormal, the second has a name that breaks careless programs, the rest are plain."""
        is_odd = number == 2
        study = self._study("SIMULATED Chest PA", "SIMULATED^ÄÖÜ" if is_odd else "")
        image = self._xray("RG1_J2KR", study, self._uid(study, 1), 1, "CHEST")
        path = self._write(image, "Röntgen Thorax, SIMULATED ÄÖÜ (1).dcm" if is_odd else f"CR{number:06}.dcm")
        if number == 1:
            self._expect_image(path, image, "qxr", ("nodule",), "chest X-ray, planned to be abnormal")
        else:
            findings = () if number < _PLANNED else None
            self._expect_image(path, image, "qxr", findings, "chest X-ray")

    def critical_head(self) -> None:
        study = self._study("SIMULATED CT head")
        slices = self._ct(self._head("693_UNCR"), study, 1, count=40, spacing=5.0, kernel="STANDARD", part="HEAD")
        paths = [self._write(image, f"CT/HEAD/{image.InstanceNumber:04}") for image in slices]
        findings = ("subdural_hemorrhage", "midline_shift")
        self._expect_series(paths, study, 1, "qer", findings, "head CT, planned to be critical")

    def head_in_two_reconstructions(self) -> None:
        """A thin soft-tissue series and a thick bone series of one acquisition, as a CD's DICOMDIR lists them."""
        study = self._study("SIMULATED CT head")
        medium = FileSet()
        medium.UID = self._uid(study, 0)
        for series, count, spacing, kernel in ((1, 96, 1.25, "STANDARD"), (2, 24, 5.0, "BONE")):
            source = self._head("693_J2KR")
            for image in self._ct(source, study, series, count=count, spacing=spacing, kernel=kernel, part="HEAD"):
                medium.add(image)
        medium.write(self.folder / "CD")
        self._add("CD/DICOMDIR", Fate.NOT_SELECTED, "DICOMDIR")
        chosen = []
        for listed in FileSet(self.folder / "CD" / "DICOMDIR"):
            path = Path(listed.path).relative_to(self.folder).as_posix()
            if listed.SeriesInstanceUID == self._uid(study, 1):
                chosen.append(path)
            else:
                self._add(path, Fate.NOT_SELECTED, "head CT, thick bone reconstruction of two")
        self._expect_series(chosen, study, 1, "qer", (), "head CT, thin soft-tissue reconstruction of two")

    def chest_ct(self) -> None:
        study = self._study("SIMULATED CT chest")
        slices = self._ct(_sample("CT_small.dcm"), study, 1, count=48, spacing=5.0, kernel="STANDARD", part="CHEST")
        paths = [self._write(image, f"CT/CHEST/1/{image.InstanceNumber:04}.dcm") for image in slices]
        self._expect_series(paths, study, 1, "qct", (), "chest CT")
        scout = _sample("dicomdirtests/98892001/CT2N/6293")
        scout.FrameOfReferenceUID = self._uid(study, "frame")
        scout.BodyPartExamined = "CHEST"
        self._label(scout, study, self._uid(study, 2), self._uid(study, 2, 1), 1)
        self._add(self._write(scout, "CT/CHEST/2/0001.dcm"), Fate.NOT_SELECTED, "localizer")

    def mr(self) -> None:
        study = self._study("SIMULATED MR")
        source = _sample("MR_small.dcm")
        for image in self._slices(source, study, 1, count=3, spacing=float(source.SliceThickness)):
            path = self._write(image, f"MR/{image.InstanceNumber:04}.dcm")
            self._add(path, Fate.NOT_SELECTED, "MR")

    def oddities(self) -> None:
        """What lies in real export folders and is no image to send."""
        self._bytes("Export log.txt", b"SIMULATED export\r\n", Fate.QUARANTINED, "text file")
        self._bytes("empty.dcm", b"", Fate.QUARANTINED, "empty file")
        truncated = self._lone_chest("truncated.dcm")
        self._bytes("truncated.dcm", truncated[: len(truncated) * 6 // 10], Fate.QUARANTINED, "truncated image")
        headless = self._lone_chest("headless.dcm")
        self._bytes("headless.dcm", headless[_PREAMBLE:], Fate.QUARANTINED, "image without preamble")
        original = (self.folder / "CR000001.dcm").read_bytes()
        self._bytes("copies/CR000001 (2).dcm", original, Fate.DUPLICATE, "identical duplicate")

    def _lone_chest(self, path: str) -> bytes:
        study = self._study("SIMULATED Chest PA")
        self._write(self._xray("RG1_UNCR", study, self._uid(study, 1), 1, "CHEST"), path)
        return (self.folder / path).read_bytes()

    def _study(self, description: str, patient_name: str = "") -> _Study:
        self._studies += 1
        number = self._studies
        labels = {
            "SpecificCharacterSet": "ISO_IR 100",
            "PatientName": patient_name or f"SIMULATED^{number:04}",
            "PatientID": f"SIM-{number:04}",
            "PatientBirthDate": f"{self.day.year - 60}0101",
            "PatientAge": "060Y",
            "PatientSex": "FM"[number % 2],
            "AccessionNumber": f"SIM{self.day:%y%m%d}-{number:04}",
            "StudyID": f"{number}",
            "StudyDescription": description,
            "StudyTime": f"{6 + number % 16:02}{number % 60:02}00",
            "ReferringPhysicianName": "",
            "InstitutionName": "SIMULATED",
        }
        return _Study(self._uid(number), labels)

    def _uid(self, *parts: object) -> UID:
        """A UID that the night and the parts decide."""
        name = "/".join(str(part.uid if isinstance(part, _Study) else part) for part in (self.day, *parts))
        return UID(f"2.25.{uuid.uuid5(_NAMESPACE, name).int}")

    def _label(self, dataset: FileDataset, study: _Study, series: UID, instance: UID, number: int) -> None:
        for keyword in _DROPPED:
            if keyword in dataset:
                del dataset[keyword]
        for keyword, value in study.labels.items():
            setattr(dataset, keyword, value)
        day = f"{self.day:%Y%m%d}"
        for kind in ("InstanceCreation", "Series", "Acquisition", "Content", "Study"):
            setattr(dataset, f"{kind}Date", day)
            setattr(dataset, f"{kind}Time", study.labels["StudyTime"])
        dataset.StudyInstanceUID = study.uid
        dataset.SeriesInstanceUID = series
        dataset.SOPInstanceUID = instance
        dataset.file_meta.MediaStorageSOPInstanceUID = instance
        dataset.InstanceNumber = number
        dataset.ImageComments = "SIMULATED labels on a real image"

    def _xray(self, name: str, study: _Study, series: UID, number: int, part: str) -> FileDataset:
        image = _sample(f"{name.replace('J2KR', 'UNCR')}.dcm", step=8) if self.small else _sample(f"{name}.dcm")
        image.BodyPartExamined = part
        image.SeriesNumber = 1
        self._label(image, study, series, self._uid(study, series, number), number)
        return image

    def _head(self, name: str) -> FileDataset:
        return _sample("693_UNCR.dcm", step=4) if self.small else _sample(f"{name}.dcm")

    def _ct(
        self, source: FileDataset, study: _Study, series: int, *, count: int, spacing: float, kernel: str, part: str
    ) -> Iterator[FileDataset]:
        source.BodyPartExamined = part
        source.ConvolutionKernel = kernel
        source.SeriesDescription = f"SIMULATED {spacing:g} mm {kernel}"
        source.SeriesNumber = series
        source.AcquisitionNumber = 1
        if "Laterality" in source:
            del source.Laterality  # neither head nor chest is one of a pair
        yield from self._slices(source, study, series, count=count, spacing=spacing)

    def _slices(
        self, source: FileDataset, study: _Study, series: int, *, count: int, spacing: float
    ) -> Iterator[FileDataset]:
        """The one object, over and over, moved along the patient's axis; write each before asking for the next."""
        x, y, lowest = source.ImagePositionPatient
        source.FrameOfReferenceUID = self._uid(study, "frame")
        source.SliceThickness = spacing
        source.SpacingBetweenSlices = spacing
        for number in range(1, count + 1):
            z = float(lowest) + (number - 1) * spacing
            source.ImagePositionPatient = [x, y, f"{z:.3f}"]
            source.SliceLocation = f"{z:.3f}"
            self._label(source, study, self._uid(study, series), self._uid(study, series, number), number)
            yield source

    def _write(self, dataset: FileDataset, path: str) -> str:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(target, enforce_file_format=True)
        return path

    def _bytes(self, path: str, content: bytes, fate: Fate, what: str) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        self._add(path, fate, what)

    def _add(self, path: str, fate: Fate, what: str) -> None:
        self.files.append(ExportedFile(path, fate, what))

    def _expect_image(
        self, path: str, image: FileDataset, product: str, findings: tuple[str, ...] | None, what: str
    ) -> None:
        self._add(path, Fate.SELECTED, what)
        study, series, uid = image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID
        self.resources.append(ExpectedResource(uid, Route.XRAY, product, study, series, 1, findings, what))

    def _expect_series(
        self, paths: list[str], study: _Study, series: int, product: str, findings: tuple[str, ...], what: str
    ) -> None:
        for path in paths:
            self._add(path, Fate.SELECTED, what)
        uid = self._uid(study, series)
        self.resources.append(ExpectedResource(uid, Route.CT, product, study.uid, uid, len(paths), findings, what))


def _sample(name: str, *, step: int = 1) -> FileDataset:
    return pydicom.dcmread(BytesIO(_content(name, step)))


@cache
def _content(name: str, step: int) -> bytes:
    """A sample without its makers' private data; of every ``step``-th row and column only."""
    path = get_testdata_file(name, download=False)
    if path is None:
        raise FileNotFoundError(f"The sample {name} is missing: install the packages pydicom and pydicom-data")
    dataset = pydicom.dcmread(str(path))
    dataset.remove_private_tags()
    if step > 1:
        pixels = dataset.pixel_array[::step, ::step]
        dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        dataset.Rows, dataset.Columns = pixels.shape
        if "PixelSpacing" in dataset:
            dataset.PixelSpacing = [f"{float(value) * step:.6f}" for value in dataset.PixelSpacing]
    if "PixelSpacing" in dataset and not all(dataset.PixelSpacing):
        del dataset.PixelSpacing  # RG1 says zero
    written = BytesIO()
    dataset.save_as(written, enforce_file_format=True)
    return written.getvalue()
