"""The DICOM objects of a result: of the same study as the image they are made from, with UIDs of their own."""

from __future__ import annotations

import hashlib
import io
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
)

from qure_provider.emulator.findings import SIMULATED
from qure_provider.emulator.header import XRAY_MODALITIES
from qure_provider.emulator.pictures import grey, ring

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from PIL import Image

    from qure_provider.emulator.findings import Findings

IMPLEMENTATION_UID = UID("2.25.258246331413921731049023497261297340416")
_MAKER = {
    "Manufacturer": "SIMULATED",
    "ManufacturerModelName": f"Qure emulator: {SIMULATED}",
    "DeviceSerialNumber": "SIMULATED",
    "SoftwareVersions": "1",
}
_EMPTY_IF_ABSENT = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
_COPIED = ("IssuerOfPatientID", "OtherPatientIDs", "PatientAge", "PatientSize", "PatientWeight", "StudyDescription")


def made_uid(*of: object) -> UID:
    """Make a UID that is the same for the same things."""
    digest = bytearray(hashlib.sha256("\0".join(map(str, of)).encode()).digest()[:16])
    # A UID under 2.25 is a UUID: version 8, the one whose content is one's own.
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return UID(f"2.25.{int.from_bytes(digest, 'big')}")


class Maker:
    """Makes the objects of one result.

    Args:
        source: Header of the image that they are made from.
        uid: The resource's UID.
        revision: Of the result.
        made_at: When the result was made, seconds since the epoch.
    """

    def __init__(self, source: Dataset, uid: str, revision: int, made_at: float) -> None:
        self._source = source
        self._uid = uid
        self._revision = revision
        self._made_at = datetime.fromtimestamp(made_at, UTC)

    def _uids(self, kind: str, index: int) -> tuple[UID, UID]:
        of = (self._uid, self._revision, kind)
        return made_uid(*of, "series"), made_uid(*of, "instance", index)

    def _inherit(self, made: Dataset, kind: str) -> None:
        """Take over whose study it is, exactly as the source says."""
        charset = self._source.get("SpecificCharacterSet")
        if charset:
            made.SpecificCharacterSet = charset
        elif "SpecificCharacterSet" in made:
            del made.SpecificCharacterSet
        for keyword in _EMPTY_IF_ABSENT:
            setattr(made, keyword, self._source.get(keyword, ""))
        for keyword in _COPIED:
            if keyword in self._source:
                setattr(made, keyword, self._source.get(keyword))
        made.StudyInstanceUID = self._source.StudyInstanceUID
        made.SeriesDescription = f"{SIMULATED}: {kind}"[:64]
        for keyword, value in _MAKER.items():
            setattr(made, keyword, value)

    def _begin(self, sop_class: UID, modality: str, kind: str, index: int) -> FileDataset:
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.ImplementationClassUID = IMPLEMENTATION_UID
        made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        self._inherit(made, kind)
        made.SOPClassUID = sop_class
        made.SeriesInstanceUID, made.SOPInstanceUID = self._uids(kind, index)
        made.Modality = modality
        made.SeriesNumber = 9001
        made.InstanceNumber = index + 1
        made.SeriesDate = made.ContentDate = self._made_at.strftime("%Y%m%d")
        made.SeriesTime = made.ContentTime = self._made_at.strftime("%H%M%S")
        made.TimezoneOffsetFromUTC = "+0000"
        return made

    def _reference(self) -> Dataset:
        reference = Dataset()
        reference.ReferencedSOPClassUID = self._source.SOPClassUID
        reference.ReferencedSOPInstanceUID = self._source.SOPInstanceUID
        return reference

    def _evidence(self) -> Dataset:
        series = Dataset()
        series.SeriesInstanceUID = self._source.SeriesInstanceUID
        series.ReferencedSOPSequence = [self._reference()]
        study = Dataset()
        study.StudyInstanceUID = self._source.StudyInstanceUID
        study.ReferencedSeriesSequence = [series]
        return study

    def capture(self, picture: Image.Image, kind: str, index: int) -> bytes:
        """Make a secondary capture.

        Args:
            picture: A colour picture.
            kind: Kind of file.
            index: Which of that kind, from 0.

        Returns:
            A DICOM file.
        """
        made = self._begin(SecondaryCaptureImageStorage, "OT", kind, index)
        made.ImageType = ["DERIVED", "SECONDARY"]
        made.ConversionType = "WSD"
        made.BurnedInAnnotation = "YES"
        made.DerivationDescription = SIMULATED
        made.PatientOrientation = made.Laterality = ""
        made.SourceImageSequence = [self._reference()]
        made.SamplesPerPixel = 3
        made.PhotometricInterpretation = "RGB"
        made.PlanarConfiguration = 0
        made.Columns, made.Rows = picture.size
        made.BitsAllocated = made.BitsStored = 8
        made.HighBit = 7
        made.PixelRepresentation = 0
        made.add_new("PixelData", "OB", _even(picture.tobytes()))
        return _file(made)

    def encapsulated_pdf(self, pdf: bytes, kind: str, index: int) -> bytes:
        """Make a PDF into a DICOM object.

        Args:
            pdf: The PDF.
            kind: Kind of file.
            index: Which of that kind, from 0.

        Returns:
            A DICOM file.
        """
        made = self._begin(EncapsulatedPDFStorage, "DOC", kind, index)
        made.ConversionType = "WSD"
        made.BurnedInAnnotation = "YES"
        made.AcquisitionDateTime = ""
        made.DocumentTitle = SIMULATED
        made.ConceptNameCodeSequence = [_code("18748-4", "LN", "Diagnostic Imaging Report")]
        made.SourceInstanceSequence = [self._reference()]
        made.MIMETypeOfEncapsulatedDocument = "application/pdf"
        made.EncapsulatedDocumentLength = len(pdf)
        made.add_new("EncapsulatedDocument", "OB", _even(pdf))
        return _file(made)

    def text_report(self, lines: Sequence[str], impression: str, kind: str, index: int) -> bytes:
        """Make a Basic Text SR.

        Args:
            lines: The report.
            impression: The conclusion.
            kind: Kind of file.
            index: Which of that kind, from 0.

        Returns:
            A DICOM file.
        """
        made = self._begin(BasicTextSRStorage, "SR", kind, index)
        made.ReferencedPerformedProcedureStepSequence = DicomSequence()
        made.PerformedProcedureCodeSequence = DicomSequence()
        made.CurrentRequestedProcedureEvidenceSequence = [self._evidence()]
        made.CompletionFlag = "COMPLETE"
        made.VerificationFlag = "UNVERIFIED"
        made.PreliminaryFlag = "PRELIMINARY"
        made.ValueType = "CONTAINER"
        made.ContinuityOfContent = "SEPARATE"
        made.ConceptNameCodeSequence = [_code("18748-4", "LN", "Diagnostic Imaging Report")]

        observer_type = _item("HAS OBS CONTEXT", "CODE", ("121005", "DCM", "Observer Type"))
        observer_type.ConceptCodeSequence = [_code("121007", "DCM", "Device")]
        observer_uid = _item("HAS OBS CONTEXT", "UIDREF", ("121012", "DCM", "Device Observer UID"))
        observer_uid.UID = IMPLEMENTATION_UID
        observer_name = _item("HAS OBS CONTEXT", "TEXT", ("121013", "DCM", "Device Observer Name"))
        observer_name.TextValue = f"Qure emulator. {SIMULATED}"
        content = [observer_type, observer_uid, observer_name]
        for line in lines:
            finding = _item("CONTAINS", "TEXT", ("121071", "DCM", "Finding"))
            finding.TextValue = line
            content.append(finding)
        conclusion = _item("CONTAINS", "TEXT", ("121073", "DCM", "Impression"))
        conclusion.TextValue = impression
        image = _item("CONTAINS", "IMAGE", ("121112", "DCM", "Source of Measurement"))
        image.ReferencedSOPSequence = [self._reference()]
        made.ContentSequence = [*content, conclusion, image]
        return _file(made)

    def original(self, image: Dataset, kind: str, index: int) -> bytes:
        """Make the service's copy of the original, under the UID of the original, its derivation overwritten.

        An X-ray's is lossy JPEG, as was seen of the on-premises service; others, whose standard demands more than the
        eight bits of that, keep their pixels.

        Args:
            image: The image, pixels included.
            kind: Kind of file.
            index: Which of that kind, from 0.

        Returns:
            A DICOM file.
        """
        made = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
        made.file_meta.ImplementationClassUID = IMPLEMENTATION_UID
        made.file_meta.TransferSyntaxUID = image.file_meta.TransferSyntaxUID
        made.update({element.tag: element for element in image})
        for keyword, value in _MAKER.items():
            setattr(made, keyword, value)
        made.SeriesDescription = f"{SIMULATED}: {kind}"
        made.ImageType = ["DERIVED", *list(made.get("ImageType") or ["", "PRIMARY"])[1:]]
        made.DerivationDescription = f"{SIMULATED}: copy {index + 1}"
        picture = grey(image, None) if image.Modality in XRAY_MODALITIES else None
        if picture is not None:
            _make_lossy(made, picture)
        return _file(made)

    def presentation_state(self, findings: Findings, kind: str, index: int) -> bytes:
        """Make a presentation state that shows the findings and the mark over the source image.

        Args:
            findings: What is found.
            kind: Kind of file.
            index: Which of that kind, from 0.

        Returns:
            A DICOM file.
        """
        import numpy as np
        from highdicom.pr import (
            GraphicAnnotation,
            GraphicLayer,
            GraphicObject,
            GrayscaleSoftcopyPresentationState,
            TextObject,
        )

        source = self._stripped(self._source)
        layer = GraphicLayer("SIMULATED", order=1, description=SIMULATED)
        size = (int(source.Columns), int(source.Rows))
        circles = []
        for key, _ in findings.sentences:
            column, row, radius = ring(size, key)
            outline = np.array([[column, row], [column + radius, row]])
            circles.append(GraphicObject("CIRCLE", outline, units="PIXEL"))
        mark = TextObject(SIMULATED, units="DISPLAY", bounding_box=(0.05, 0.02, 0.95, 0.08))
        series, instance = self._uids(kind, index)
        made = GrayscaleSoftcopyPresentationState(
            [source],
            series_instance_uid=series,
            series_number=9001,
            sop_instance_uid=instance,
            instance_number=index + 1,
            manufacturer="SIMULATED",
            manufacturer_model_name="SIMULATED",
            software_versions="1",
            device_serial_number="SIMULATED",
            content_label="SIMULATED",
            content_description=SIMULATED,
            graphic_layers=[layer],
            graphic_annotations=[
                GraphicAnnotation([source], layer, graphic_objects=circles or None, text_objects=[mark])
            ],
        )
        made.Laterality = ""
        return self._finished(made, kind)

    def segmentation(self, slices: Sequence[Dataset], findings: Findings, kind: str) -> bytes:
        """Make a segmentation of slices of the source series.

        Args:
            slices: Headers of the slices; those that do not lie parallel to the source image are left out.
            findings: What is found.
            kind: Kind of file.

        Returns:
            A DICOM file.
        """
        import numpy as np
        from highdicom import AlgorithmIdentificationSequence
        from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
        from pydicom.sr.codedict import codes

        geometry = ("FrameOfReferenceUID", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
        by_place = {
            tuple(header.ImagePositionPatient): self._stripped(header)
            for header in slices
            if all(header.get(keyword) == self._source.get(keyword) for keyword in geometry)
        }
        sources = list(by_place.values())
        rows, columns = int(self._source.Rows), int(self._source.Columns)
        keys = findings.present or ("simulated",)
        masks = np.zeros((len(sources), rows, columns, len(keys)), np.uint8)
        grid_row, grid_column = np.ogrid[:rows, :columns]
        for number, key in enumerate(keys):
            column, row, radius = ring((columns, rows), key)
            masks[..., number] = (grid_column - column) ** 2 + (grid_row - row) ** 2 <= radius**2
        series, instance = self._uids(kind, 0)
        made = Segmentation(
            sources,
            masks,
            SegmentationTypeValues.BINARY,
            [
                SegmentDescription(
                    number,
                    f"SIMULATED: {key}"[:64],
                    codes.SCT.MorphologicallyAbnormalStructure,
                    codes.SCT.Nodule,
                    SegmentAlgorithmTypeValues.AUTOMATIC,
                    AlgorithmIdentificationSequence(SIMULATED, family=codes.DCM.ArtificialIntelligence, version="1"),
                )
                for number, key in enumerate(keys, 1)
            ],
            series_instance_uid=series,
            series_number=9001,
            sop_instance_uid=instance,
            instance_number=1,
            manufacturer="SIMULATED",
            manufacturer_model_name="SIMULATED",
            software_versions="1",
            device_serial_number="SIMULATED",
            content_label="SIMULATED",
            content_description=SIMULATED,
        )
        return self._finished(made, kind)

    @staticmethod
    def _stripped(source: Dataset) -> Dataset:
        """A header without what the library is strict about; ``_inherit`` puts the source's own back."""
        stripped = Dataset()
        stripped.update(
            {
                element.tag: element
                for element in source
                if element.tag.group not in {0x0010, 0x0012} and element.keyword not in _EMPTY_IF_ABSENT
            }
        )
        for keyword in _EMPTY_IF_ABSENT:
            setattr(stripped, keyword, "")
        return stripped

    def _finished(self, made: Dataset, kind: str) -> bytes:
        self._inherit(made, kind)
        made.file_meta.ImplementationClassUID = IMPLEMENTATION_UID
        return _file(made)


_PIXEL_VALUES = (
    "NumberOfFrames",
    "PlanarConfiguration",
    "SmallestImagePixelValue",
    "LargestImagePixelValue",
    "PixelPaddingValue",
    "WindowCenter",
    "WindowWidth",
    "RescaleIntercept",
    "RescaleSlope",
    "VOILUTSequence",
    "ModalityLUTSequence",
)


def altered(content: bytes, attributes: Mapping[str, str | None]) -> bytes:
    """Put other values into a DICOM file.

    Args:
        content: The file; anything else is given back as it is.
        attributes: Keyword to value; None removes the attribute.

    Returns:
        The file with these values.
    """
    if not attributes or content[128:132] != b"DICM":
        return content
    dataset = pydicom.dcmread(io.BytesIO(content))
    for keyword, value in attributes.items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            del dataset[keyword]
    return _file(dataset)


def _make_lossy(made: Dataset, picture: Image.Image) -> None:
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=90)
    before = picture.width * picture.height * int(made.BitsAllocated) // 8
    for keyword in _PIXEL_VALUES:
        if keyword in made:
            del made[keyword]
    made.LossyImageCompression = "01"
    made.LossyImageCompressionMethod = "ISO_10918_1"
    made.LossyImageCompressionRatio = f"{before / encoded.tell():.2f}"
    made.SamplesPerPixel = 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.Columns, made.Rows = picture.size
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit = 7
    made.PixelRepresentation = 0
    made.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    made.add_new("PixelData", "OB", encapsulate([encoded.getvalue()]))
    made["PixelData"].is_undefined_length = True


def _item(relationship: str, value_type: str, name: tuple[str, str, str]) -> Dataset:
    item = Dataset()
    item.RelationshipType = relationship
    item.ValueType = value_type
    item.ConceptNameCodeSequence = [_code(*name)]
    return item


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue = value
    code.CodingSchemeDesignator = scheme
    code.CodeMeaning = meaning
    return code


def _even(content: bytes) -> bytes:
    return content + b"\0" * (len(content) % 2)


def _file(dataset: Dataset) -> bytes:
    if "SOPInstanceUID" in dataset:
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
