"""Taking objects back at an archive: a key object selection that names them as rejected."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, KeyObjectSelectionDocumentStorage, SegmentationStorage

from qure_provider.dicom.complete import identify
from qure_provider.dicom.model import Identity, StudyFacts
from qure_provider.dicom.quiet import quiet_pydicom

REJECTED = ("113037", "DCM", "Rejected for Patient Safety Reasons")
"""The document title that archives act on (PS3.16, CID 7011; IHE Imaging Object Change Management)."""

_Code = tuple[str, str, str]
_OBSERVER_TYPE: _Code = ("121005", "DCM", "Observer Type")
_DEVICE: _Code = ("121007", "DCM", "Device")
_DEVICE_UID: _Code = ("121012", "DCM", "Device Observer UID")
_DEVICE_NAME: _Code = ("121013", "DCM", "Device Observer Name")
_DESCRIPTION: _Code = ("113012", "DCM", "Key Object Description")
_MAKER = "airflow-provider-qure"
_SERIES_NUMBER = 9999
_MINTED = uuid.UUID("6a1e6f5d-3f0c-5a39-9d0e-9e6c1f4f7a54")


@dataclass(frozen=True, slots=True)
class Rejected:
    """An object that is taken back, as it was sent.

    Attributes:
        sop_class_uid: SOPClassUID.
        sop_instance_uid: SOPInstanceUID.
        series_instance_uid: SeriesInstanceUID.
    """

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str


def rejection_note(
    target: Path,
    rejected: Sequence[Rejected],
    identity: Identity,
    facts: StudyFacts,
    *,
    reason: str,
    rejected_at: datetime,
) -> Rejected:
    """Writes a key object selection that rejects objects of one study for patient safety reasons (PS3.16, TID 2010).

    Its UIDs come from those of the rejected objects, so that a repeat is recognisably the same.

    Args:
        target: Where it goes.
        rejected: The objects, as they were sent; at least one.
        identity: Whose they are.
        facts: What else is known of their study.
        reason: Why they are taken back, for whoever opens the document; it travels to the archive.
        rejected_at: When, with a zone.

    Returns:
        The document's own UIDs, by which it is sent and could be taken back in its turn.

    Raises:
        ValueError: If nothing is rejected, or the time has no zone.
        OSError: If it cannot be written.
    """
    if not rejected:
        raise ValueError("a rejection must name at least one object")
    if rejected_at.tzinfo is None:
        raise ValueError("a rejection needs the zone of its time")
    instances = "|".join(sorted(each.sop_instance_uid for each in rejected))
    with quiet_pydicom():
        note = _begin(rejected_at)
        note.SOPInstanceUID = _minted(identity, instances)
        note.SeriesInstanceUID = _minted(identity, f"series|{instances}")
        note.CurrentRequestedProcedureEvidenceSequence = [_evidence(rejected, identity)]
        note.ContentSequence = [*_observer(), *map(_member, rejected), _text(_DESCRIPTION, reason)]
        identify(note, identity, facts)
        note.file_meta.MediaStorageSOPInstanceUID = note.SOPInstanceUID
        pydicom.dcmwrite(target, note, enforce_file_format=True)
    return Rejected(str(note.SOPClassUID), str(note.SOPInstanceUID), str(note.SeriesInstanceUID))


def _begin(rejected_at: datetime) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = KeyObjectSelectionDocumentStorage
    note = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    note.SOPClassUID = KeyObjectSelectionDocumentStorage
    note.Modality = "KO"
    note.SeriesNumber = _SERIES_NUMBER
    note.SeriesDescription = REJECTED[2]
    note.InstanceNumber = 1
    note.ContentDate = note.SeriesDate = rejected_at.strftime("%Y%m%d")
    note.ContentTime = note.SeriesTime = rejected_at.strftime("%H%M%S")
    note.TimezoneOffsetFromUTC = rejected_at.strftime("%z")[:5]
    note.Manufacturer = _MAKER
    note.ReferencedPerformedProcedureStepSequence = []
    note.ValueType = "CONTAINER"
    note.ConceptNameCodeSequence = [_code(REJECTED)]
    note.ContinuityOfContent = "SEPARATE"
    template = Dataset()
    template.MappingResource = "DCMR"
    template.TemplateIdentifier = "2010"
    note.ContentTemplateSequence = [template]
    return note


def _observer() -> list[Dataset]:
    kind = _item("HAS OBS CONTEXT", "CODE", _OBSERVER_TYPE)
    kind.ConceptCodeSequence = [_code(_DEVICE)]
    device = _item("HAS OBS CONTEXT", "UIDREF", _DEVICE_UID)
    device.UID = f"2.25.{uuid.uuid5(_MINTED, _MAKER).int}"
    name = _item("HAS OBS CONTEXT", "TEXT", _DEVICE_NAME)
    name.TextValue = _MAKER
    return [kind, device, name]


def _text(name: _Code, value: str) -> Dataset:
    item = _item("CONTAINS", "TEXT", name)
    item.TextValue = value
    return item


def _member(rejected: Rejected) -> Dataset:
    item = Dataset()
    item.RelationshipType = "CONTAINS"
    sop_class = UID(rejected.sop_class_uid)
    is_image = sop_class == SegmentationStorage or "Image Storage" in sop_class.name
    item.ValueType = "IMAGE" if is_image else "COMPOSITE"
    item.ReferencedSOPSequence = [_reference(rejected)]
    return item


def _evidence(rejected: Sequence[Rejected], identity: Identity) -> Dataset:
    by_series: defaultdict[str, list[Dataset]] = defaultdict(list)
    for each in rejected:
        by_series[each.series_instance_uid].append(_reference(each))
    study = Dataset()
    study.StudyInstanceUID = identity.study_instance_uid
    study.ReferencedSeriesSequence = []
    for uid, references in by_series.items():
        series = Dataset()
        series.SeriesInstanceUID = uid
        series.ReferencedSOPSequence = references
        study.ReferencedSeriesSequence.append(series)
    return study


def _reference(rejected: Rejected) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = rejected.sop_class_uid
    reference.ReferencedSOPInstanceUID = rejected.sop_instance_uid
    return reference


def _item(relationship: str, value_type: str, name: _Code) -> Dataset:
    item = Dataset()
    item.RelationshipType = relationship
    item.ValueType = value_type
    item.ConceptNameCodeSequence = [_code(name)]
    return item


def _code(code: _Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code
    return item


def _minted(identity: Identity, of: str) -> str:
    return f"2.25.{uuid.uuid5(_MINTED, f'{identity.study_instance_uid}|{of}').int}"
