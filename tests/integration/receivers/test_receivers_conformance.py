"""Referees that know the standard: what we alter or make has no fault that it did not have before."""

import subprocess
from dataclasses import replace
from datetime import UTC, datetime

import pydicom
import pytest
from support.emulated_results import emulated
from support.programs import needed

from qure_provider.dicom.complete import complete_objects
from qure_provider.dicom.rejection import Rejected, rejection_note

pytestmark = [pytest.mark.system, pytest.mark.filterwarnings("ignore::UserWarning:pydicom")]

AT = datetime(2026, 1, 3, 8, 30, 15, tzinfo=UTC)
MISSING = ("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyDescription", "StudyID")


def faults(path, referee="dciodvfy"):
    done = subprocess.run([needed(referee), str(path)], capture_output=True, timeout=60, check=False)
    lines = done.stderr.decode("utf-8", "replace").splitlines()
    return {line for line in lines if line.startswith(("Error", "Warning"))}


def study_faults(paths):
    done = subprocess.run([needed("dcentvfy"), *map(str, paths)], capture_output=True, timeout=60, check=False)
    lines = (done.stdout + done.stderr).decode("utf-8", "replace").splitlines()
    return [line for line in lines if line.startswith("Error")]


def rejected(done):
    return [
        Rejected(each.sop_class_uid, each.sop_instance_uid, each.series_instance_uid) for each in done.objects.values()
    ]


def test_completing_adds_no_fault(result, completed):
    for path, done in completed(result).objects.items():
        assert faults(done.path) <= faults(path)


def test_completing_what_is_missing_mends_faults_and_adds_none(result, tmp_path):
    folder = tmp_path / "completed"
    folder.mkdir()
    paths = []
    for number, path in enumerate(result.objects):
        dataset = pydicom.dcmread(path)
        for keyword in MISSING:
            if keyword in dataset:
                delattr(dataset, keyword)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.00{number}"
        paths.append(tmp_path / f"poor-{number}")
        dataset.save_as(paths[-1])

    done = complete_objects(paths, folder, result.identity, result.facts, result.sent)

    for original, poor in zip(result.objects, paths, strict=True):
        assert faults(poor) > faults(original)
        assert faults(done.paths[poor]) <= faults(original)


def test_a_name_that_needs_utf_8_adds_no_fault(qct, tmp_path):
    identity = replace(qct.identity, patient_name="Иванов^Иван")
    folder = tmp_path / "completed"
    folder.mkdir()
    paths = []
    for number, path in enumerate(qct.objects):
        dataset = pydicom.dcmread(path)
        dataset.PatientName = ""
        paths.append(tmp_path / f"nameless-{number}")
        dataset.save_as(paths[-1])

    done = complete_objects(paths, folder, identity, qct.facts, qct.sent)

    for path, each in done.objects.items():
        assert pydicom.dcmread(each.path).PatientName == "Иванов^Иван"
        assert faults(each.path) <= faults(path)


def test_a_delivered_study_is_one_study(tmp_path):
    result = emulated(tmp_path, "qct", PatientName="Mueller^Simulated")
    folder = tmp_path / "completed"
    folder.mkdir()
    paths = []
    for number, path in enumerate(result.objects):
        dataset = pydicom.dcmread(path)
        dataset.PatientName, dataset.StudyDate, dataset.StudyDescription = "Simulated^Mueller", "20260103", "AI"
        paths.append(tmp_path / f"other-{number}")
        dataset.save_as(paths[-1])
    assert study_faults([*result.sources, *paths])

    done = complete_objects(paths, folder, result.identity, result.facts, result.sent)
    rejection_note(folder / "note", rejected(done), result.identity, result.facts, reason="SIMULATED", rejected_at=AT)

    assert study_faults([*result.sources, *done.paths.values(), folder / "note"]) == []


def test_a_rejection_has_no_fault(result, completed, tmp_path):
    rejection_note(
        tmp_path / "note",
        rejected(completed(result)),
        result.identity,
        result.facts,
        reason="SIMULATED: Größe falsch",
        rejected_at=AT,
    )

    assert faults(tmp_path / "note") == set()
