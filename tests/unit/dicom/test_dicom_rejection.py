from dataclasses import replace
from datetime import UTC, datetime

import pydicom
import pytest
from support.emulated_results import emulated

from qure_provider.dicom.rejection import Rejected, rejection_note

AT = datetime(2026, 1, 3, 8, 30, 15, tzinfo=UTC)


@pytest.fixture(scope="module")
def qct(tmp_path_factory):
    return emulated(tmp_path_factory.mktemp("qct"), "qct")


def rejected(result):
    datasets = [pydicom.dcmread(path) for path in result.objects]
    return [Rejected(each.SOPClassUID, each.SOPInstanceUID, each.SeriesInstanceUID) for each in datasets]


def noted(result, path, **more):
    options = {"reason": "Wrong patient", "rejected_at": AT} | more
    uids = rejection_note(path, rejected(result), result.identity, result.facts, **options)
    return uids, pydicom.dcmread(path)


def test_it_names_every_object_as_rejected_for_patient_safety(qct, tmp_path):
    _, note = noted(qct, tmp_path / "note")

    title = note.ConceptNameCodeSequence[0]
    assert (title.CodeValue, title.CodingSchemeDesignator) == ("113037", "DCM")
    of_objects = {(each.sop_class_uid, each.sop_instance_uid) for each in rejected(qct)}
    content = {
        (reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID)
        for item in note.ContentSequence
        for reference in item.get("ReferencedSOPSequence", ())
    }
    evidence = {
        (reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID)
        for study in note.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for reference in series.ReferencedSOPSequence
    }
    assert content == evidence == of_objects


def test_it_is_of_the_same_patient_and_study_and_says_why(qct, tmp_path):
    _, note = noted(qct, tmp_path / "note", reason="Größe falsch")

    for keyword in ("PatientID", "PatientName", "AccessionNumber", "StudyInstanceUID", "StudyDate", "StudyDescription"):
        assert note[keyword].value == qct.source[keyword].value
    assert note.Modality == "KO"
    assert (note.ContentDate, note.ContentTime, note.TimezoneOffsetFromUTC) == ("20260103", "083015", "+0000")
    assert note.ContentSequence[-1].TextValue == "Größe falsch"


def test_a_repeat_is_recognisably_the_same_and_another_rejection_is_not(qct, tmp_path):
    first, _ = noted(qct, tmp_path / "first")
    again, _ = noted(qct, tmp_path / "again")
    fewer = rejection_note(
        tmp_path / "fewer", rejected(qct)[1:], qct.identity, qct.facts, reason="Wrong", rejected_at=AT
    )

    assert first == again
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()
    assert fewer.sop_instance_uid != first.sop_instance_uid


def test_it_needs_objects_and_a_time_with_its_zone(qct, tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        rejection_note(tmp_path / "note", [], qct.identity, qct.facts, reason="", rejected_at=AT)
    with pytest.raises(ValueError, match="zone"):
        noted(qct, tmp_path / "note", rejected_at=AT.replace(tzinfo=None))


def test_an_ascii_one_declares_no_character_set(qct, tmp_path):
    plain = replace(qct, identity=replace(qct.identity, patient_name="Mueller^Simulated"))

    assert "SpecificCharacterSet" not in noted(plain, tmp_path / "note")[1]
