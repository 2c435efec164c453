"""An export as data: instances, series, what is passed over and why, and the batches that travel."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from qure_provider.api.model import ResourceRef, Route


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose study it is, exactly as the source's header says; empty strings where absent.

    It is what a result must agree with before it goes anywhere.

    Attributes:
        study_instance_uid: StudyInstanceUID.
        patient_id: PatientID.
        issuer_of_patient_id: IssuerOfPatientID.
        accession_number: AccessionNumber.
        birth_date: PatientBirthDate, as DICOM DA.
        sex: PatientSex.
        patient_name: PatientName, the original string with its ``^`` and ``=``.
    """

    study_instance_uid: str
    patient_id: str = ""
    issuer_of_patient_id: str = ""
    accession_number: str = ""
    birth_date: str = ""
    sex: str = ""
    patient_name: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """What the source's header says of the study beyond whose it is; empty strings where absent.

    Attributes:
        study_date: StudyDate, as DICOM DA.
        study_time: StudyTime, as DICOM TM.
        study_description: StudyDescription.
        study_id: StudyID.
        referring_physician: ReferringPhysicianName, as DICOM PN.
        placer_order_number: PlacerOrderNumberImagingServiceRequest.
        filler_order_number: FillerOrderNumberImagingServiceRequest.
        modality: Modality of the images that the results are about.
        body_part: BodyPartExamined.
        station_name: StationName.
        acquired: When they were acquired, as DICOM DT without zone, in the hospital's clock.
    """

    study_date: str = ""
    study_time: str = ""
    study_description: str = ""
    study_id: str = ""
    referring_physician: str = ""
    placer_order_number: str = ""
    filler_order_number: str = ""
    modality: str = ""
    body_part: str = ""
    station_name: str = ""
    acquired: str = ""


@dataclass(frozen=True, slots=True)
class Instance:
    """One DICOM object of the export.

    Attributes:
        path: Where it lies, relative to the export's root, with ``/`` between parts.
        size: Its length in bytes.
        modified: Modification time, seconds since the epoch.
        sop_instance_uid: SOPInstanceUID.
        sop_class_uid: SOPClassUID.
        transfer_syntax_uid: TransferSyntaxUID.
        instance_number: InstanceNumber, or None.
        frames: NumberOfFrames; 1 where absent.
    """

    path: str
    size: int
    modified: float
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    instance_number: int | None = None
    frames: int = 1


@dataclass(frozen=True, slots=True)
class Series:
    """All instances of one SeriesInstanceUID, with the header values that selection and routing look at.

    Attributes:
        identity: Whose it is.
        series_instance_uid: SeriesInstanceUID.
        modality: Modality.
        instances: In order of InstanceNumber, then SOPInstanceUID; no SOPInstanceUID twice.
        study_date: StudyDate, as DICOM DA.
        study_time: StudyTime, as DICOM TM.
        study_id: StudyID.
        referring_physician: ReferringPhysicianName.
        placer_order_number: PlacerOrderNumberImagingServiceRequest.
        filler_order_number: FillerOrderNumberImagingServiceRequest.
        acquired: AcquisitionDateTime, or Acquisition/Content/Series/Study date and time put together, as DICOM DT
            without zone; empty where absent.
        station_name: StationName.
        body_part: BodyPartExamined, upper case.
        study_description: StudyDescription.
        series_description: SeriesDescription.
        image_type: ImageType's values.
        protocol_name: ProtocolName.
        patient_age: In years, from PatientAge or else birth and study date; None where neither tells.
        slice_thickness: In mm; None where absent.
        convolution_kernel: ConvolutionKernel.
        contrast_agent: ContrastBolusAgent.
        is_axial: Whether ImageOrientationPatient is within 45 degrees of the transverse plane; None where absent.
        frame_of_reference_uid: FrameOfReferenceUID.
        extent: Lowest and highest z of its images in the patient's frame of reference, in mm; None where unknown (kept
            for CT only).
        warnings: Oddities that do not stop it, in fixed words (a UID component with a leading zero, say).
    """

    identity: Identity
    series_instance_uid: str
    modality: str
    instances: tuple[Instance, ...]
    study_date: str = ""
    acquired: str = ""
    station_name: str = ""
    body_part: str = ""
    study_description: str = ""
    series_description: str = ""
    image_type: tuple[str, ...] = ()
    protocol_name: str = ""
    patient_age: float | None = None
    slice_thickness: float | None = None
    convolution_kernel: str = ""
    contrast_agent: str = ""
    is_axial: bool | None = None
    frame_of_reference_uid: str = ""
    extent: tuple[float, float] | None = None
    study_time: str = ""
    study_id: str = ""
    referring_physician: str = field(default="", repr=False)
    placer_order_number: str = ""
    filler_order_number: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all its instances."""
        return sum(instance.size for instance in self.instances)

    @property
    def images(self) -> int:
        """How many images it holds, each frame of a multi-frame object counted."""
        return sum(instance.frames for instance in self.instances)

    @property
    def modified(self) -> float:
        """When its newest file was written, seconds since the epoch."""
        return max((instance.modified for instance in self.instances), default=0.0)


class Fate(StrEnum):
    """What became of one file of the export: every file has exactly one."""

    SELECTED = "selected"
    NOT_SELECTED = "not selected"
    DUPLICATE = "duplicate"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class PassedOver:
    """One file that is not sent, and why.

    Attributes:
        path: Relative to the export's root.
        fate: Which of the three.
        reason: In fixed words, without any value of the header.
        size: In bytes.
        series_instance_uid: Where known, else empty.
    """

    path: str
    fate: Fate
    reason: str
    size: int = 0
    series_instance_uid: str = ""


@dataclass(frozen=True, slots=True)
class Scan:
    """What an export holds.

    ``found == sum(len(series.instances)) + len(passed_over)``.

    Attributes:
        found: Number of files.
        series: Every readable series.
        passed_over: Every other file, with the reason: quarantined, duplicates, and what is DICOM but no image series
            (a DICOMDIR).
    """

    found: int
    series: tuple[Series, ...]
    passed_over: tuple[PassedOver, ...]


@dataclass(frozen=True, slots=True)
class SelectedSeries:
    """A series that will be sent.

    Attributes:
        series: The series.
        route: Which half of the contract it follows.
        reason: Why it was chosen, where there was a choice (the best of several reconstructions); empty otherwise.
    """

    series: Series
    route: Route
    reason: str = ""

    @property
    def resources(self) -> tuple[ResourceRef, ...]:
        """What results exist for: each image of an X-ray series, or the CT series as one."""
        if self.route is Route.XRAY:
            return tuple(ResourceRef(instance.sop_instance_uid, self.route) for instance in self.series.instances)
        return (ResourceRef(self.series.series_instance_uid, self.route),)


@dataclass(frozen=True, slots=True)
class Selection:
    """What is sent, and what is not and why.

    Attributes:
        selected: In the order of the scan.
        passed_over: One row for each file of every series that is not sent.
    """

    selected: tuple[SelectedSeries, ...]
    passed_over: tuple[PassedOver, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """The series that travel through one mapped task; all of one route.

    Attributes:
        route: The route they share.
        series: What it carries.
    """

    route: Route
    series: tuple[SelectedSeries, ...]

    @property
    def size(self) -> int:
        """Bytes of all its instances."""
        return sum(selected.series.size for selected in self.series)
