"""A real archive: what it has after we stored there, and what it answers."""

from dataclasses import replace
from datetime import UTC, datetime

import pydicom
import pytest
from support.emulated_results import emulated

from qure_provider.dicom.complete import complete_objects
from qure_provider.dicom.rejection import Rejected, rejection_note
from qure_provider.dicom.verify import Contradiction, compare
from qure_provider.hooks.receiver import ReceiverSettingsError
from qure_provider.hooks.storing import StoreKind

pytestmark = [pytest.mark.system, pytest.mark.filterwarnings("ignore::UserWarning:pydicom")]


@pytest.fixture(params=["DIMSE", "DICOMweb"])
def store(request, orthanc, dicom_hook, dicomweb_hook):
    """The two ways to the same archive: how it is stored, and the hook that asks."""
    if request.param == "DIMSE":
        hook = dicom_hook(orthanc.dicom_port, response_timeout=5)
        hook.take = hook.store
    else:
        hook = dicomweb_hook(orthanc.dicomweb_url)
        hook.take = hook.stow
    return hook


def paths_of(done):
    return list(done.paths.values())


def test_every_object_arrives_and_the_same_again_leaves_the_same_number(store, orthanc, result, completed):
    done = completed(result)

    for _ in range(2):
        statuses = store.take(paths_of(done))
        assert all(each.is_stored for each in statuses), statuses
        assert orthanc.uids == done.sop_instance_uids
    assert len(orthanc.get("studies")) == 1


def test_the_archive_has_what_was_sent_and_says_whose_it_is(store, orthanc, result, completed):
    done = completed(result)
    store.take(paths_of(done))

    for each in done.objects.values():
        tags = orthanc.tags(each.sop_instance_uid)
        assert tags["PatientID"] == result.identity.patient_id
        assert tags["PatientName"] == result.identity.patient_name
        assert tags["AccessionNumber"] == result.identity.accession_number
        assert tags["StudyInstanceUID"] == result.identity.study_instance_uid
        assert "unverified" in tags["SeriesDescription"]
        (kept := each.path.with_suffix(".kept")).write_bytes(orthanc.file(each.sop_instance_uid))
        assert pydicom.dcmread(kept) == pydicom.dcmread(each.path)


def test_what_arrived_is_proved_by_asking(store, orthanc, qct, completed):
    done = completed(qct)
    study = qct.identity.study_instance_uid
    assert store.find_instances(study) == frozenset()

    store.take(paths_of(done))

    assert store.find_instances(study) == done.sop_instance_uids
    for each in done.objects.values():
        assert each.sop_instance_uid in store.find_instances(study, [each.series_instance_uid])
    assert store.find_instances(study, ["1.2.3"]) == frozenset()
    assert store.find_instances("1.2.3") == frozenset()


def test_whose_a_study_is_there_is_asked_first(store, dicom_hook, orthanc, qct):
    study = qct.identity.study_instance_uid
    assert store.find_study(study) is None

    dicom_hook(orthanc.dicom_port).store(qct.sources)

    found = store.find_study(study)
    assert compare(found, qct.identity) is None
    assert found.patient_name == "Müller^Simulated"
    assert compare(found, replace(qct.identity, patient_id="SIM-2")) is Contradiction.PATIENT_ID


def test_results_join_the_study_of_their_images(store, dicom_hook, orthanc, qct, completed):
    dicom_hook(orthanc.dicom_port).store(qct.sources)
    store.take(paths_of(completed(qct)))

    assert len(orthanc.get("patients")) == len(orthanc.get("studies")) == 1


def test_a_source_with_leading_zeros_is_no_hindrance(store, orthanc, tmp_path):
    uids = {"StudyInstanceUID": "1.2.840.01.5", "SeriesInstanceUID": "1.2.840.01.6", "SOPInstanceUID": "1.2.840.01.7"}
    result = emulated(tmp_path, "qct", images=1, **uids)
    folder = tmp_path / "completed"
    folder.mkdir()
    done = complete_objects(result.objects, folder, result.identity, result.facts, result.sent)

    statuses = store.take(paths_of(done))

    assert all(each.is_stored for each in statuses)
    assert store.find_instances("1.2.840.01.5") == done.sop_instance_uids


def test_a_rejection_arrives_with_its_objects(store, orthanc, qct, completed, tmp_path):
    done = completed(qct)
    store.take(paths_of(done))
    rejected = [
        Rejected(each.sop_class_uid, each.sop_instance_uid, each.series_instance_uid) for each in done.objects.values()
    ]

    note = rejection_note(
        tmp_path / "note",
        rejected,
        qct.identity,
        qct.facts,
        reason="SIMULATED: sent by mistake",
        rejected_at=datetime.now(UTC),
    )

    (status,) = store.take([tmp_path / "note"])
    assert status.is_stored
    assert orthanc.uids == done.sop_instance_uids | {note.sop_instance_uid}
    assert orthanc.tags(note.sop_instance_uid)["ConceptNameCodeSequence"][0]["CodeValue"] == "113037"


def test_a_file_that_only_looks_like_an_object_harms_no_other(store, orthanc, qct, tmp_path, completed):
    good = paths_of(completed(qct))[:2]
    bad = tmp_path / "bad"
    content = good[0].read_bytes()
    meta_ends = content.index(b"\x08\x00\x05\x00CS")
    bad.write_bytes(content[:meta_ends] + b"\xff" * 1000)

    statuses = store.take([good[0], bad, good[1]])

    assert statuses[0].is_stored
    assert not statuses[1].is_stored
    assert statuses[2].is_stored


def test_the_test_button(store):
    assert store.test_connection()[0]


def test_the_wrong_ae_title_is_a_matter_of_settings(orthanc, dicom_hook, qct):
    with pytest.raises(ReceiverSettingsError, match="called_ae_title"):
        dicom_hook(orthanc.dicom_port, called="OTHER").store(qct.objects)
    assert orthanc.uids == set()


def test_the_wrong_path_is_a_matter_of_settings(orthanc, dicomweb_hook, qct):
    with pytest.raises(ReceiverSettingsError, match="base URL"):
        dicomweb_hook(f"{orthanc.url}/nowhere").stow(qct.objects)
    with pytest.raises(ReceiverSettingsError, match="base URL"):
        dicomweb_hook(f"{orthanc.url}/nowhere").find_instances("1.2.3")


def test_an_object_with_a_preposterous_class_is_refused_and_the_others_arrive(orthanc, dicom_hook, qct, tmp_path):
    dataset = pydicom.dcmread(qct.one("sr"))
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.826.0.1.3680043.9.9999.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.9.9999.2"
    dataset.save_as(tmp_path / "odd")

    statuses = dicom_hook(orthanc.dicom_port).store([tmp_path / "odd", qct.one("sr")])

    assert [each.kind for each in statuses][1] is StoreKind.STORED
    assert orthanc.uids - {"1.2.826.0.1.3680043.9.9999.2"} == {pydicom.dcmread(qct.one("sr")).SOPInstanceUID}
