from types import SimpleNamespace

import pydicom
import pytest
from delivery_kit import Onward
from pipeline_kit import connect

from qure_provider import settings
from qure_provider.delivery.assemble import LACKING
from qure_provider.delivery.folder import FolderDestination
from qure_provider.delivery.messages import MllpDestination
from qure_provider.emulator.model import OtherPatient
from qure_provider.operators.compute import STALE
from qure_provider.operators.summarize import NightUnresolvedError

PLANTED = {
    "patient": "an object of the result has another patient ID",
    "name": "an object of the result has another patient name",
    "accession": "an object of the result has another accession number",
    "study": "an object of the result is of another study",
    "source": "an object of the result bears the UID of an image that was sent, which it could overwrite",
    "reference": "an object of the result refers to an image that was not sent",
    "copy": "an object of the result has another patient ID",
    "once": "an object of the result has another patient ID",
}


def planted_in(film):
    """What is wrong with which kind of file of a film's result."""
    return {
        "patient": {"report_sr": {"PatientID": "SIM-OTHER"}},
        "name": {"sc": {"PatientName": "Simulated^Other"}},
        "accession": {"report_dcm": {"AccessionNumber": "SIM-OTHER"}},
        "study": {"report_dcm": {"StudyInstanceUID": "1.2.826.0.1.3680043.8.498.1"}},
        "source": {"report_dcm": {"SOPInstanceUID": film.SOPInstanceUID}},
        "reference": {"report_sr": {"ReferencedSOPInstanceUID": "1.2.826.0.1.3680043.8.498.2"}},
        "copy": {"original": {"PatientID": "SIM-OTHER"}},
        "once": {},
    }


@pytest.fixture(scope="module")
def planted(tmp_path_factory, running):
    """A night with one sound study, and others with one object each that contradicts what was sent."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        connect(monkeypatch, running)
        running.control.forget_everything()
        hospital = Onward(tmp_path_factory.mktemp("planted"), running)
        studies = {}
        for name in ["sound", *PLANTED]:
            (film,) = hospital.xray(name, PatientID=f"SIM-{name}", PatientName=f"SIMULATED^{name.upper()}")
            studies[name] = film.StudyInstanceUID
            running.control.plan(film.SOPInstanceUID, attributes=planted_in(film).get(name, {}))
            if name == "once":
                running.control.inject(OtherPatient(uid=film.SOPInstanceUID, times=None))
        hospital.process(hospital.plan())
        running.control.clear_faults()
        return SimpleNamespace(hospital=hospital, studies=studies)


@pytest.fixture
def contradicted(planted, tmp_path, emulator):
    hospital = Onward.like(planted.hospital, tmp_path, emulator)
    hospital.studies = planted.studies
    return hospital


class TestAPlantedContradiction:
    def test_holds_the_whole_resource_and_its_report_and_nothing_else(self, contradicted, ris):
        contradicted.onward(contradicted.to_folder, "ris")
        for name, study in contradicted.studies.items():
            reasons = {row.reason for row in contradicted.deliveries(study_instance_uid=study)}
            states = {row.state.value for row in contradicted.deliveries(study_instance_uid=study)}
            expected = ({"delivered"}, {""}) if name == "sound" else ({"held"}, {PLANTED[name]})
            assert (states, reasons) == expected, name
        assert {name.split("/")[0] for name in contradicted.received()} == {contradicted.studies["sound"]}
        assert len(ris.messages) == 1
        assert contradicted.studies["sound"] in ris.messages[0].raw.decode()

    def test_is_named_in_the_summary_and_the_run_is_red(self, contradicted):
        with pytest.raises(NightUnresolvedError) as error:
            contradicted.summarize(deliver_to=[contradicted.to_folder])
        for name, reason in PLANTED.items():
            ref = settings.short_ref(contradicted.studies[name])
            assert f"Study {ref}, qxr objects for {contradicted.to_folder}: held: {reason}." in str(error.value)
        assert not any(study in str(error.value) for study in contradicted.studies.values())

    def test_is_never_released_by_looking_again(self, contradicted, ris):
        contradicted.onward(contradicted.to_folder, "ris")
        before, messages = contradicted.received(), len(ris.messages)
        assert contradicted.redeliver(states="held", even_if_not_due=True) == {"reopened": 16, "troubles": 16}
        assert (contradicted.received(), len(ris.messages)) == (before, messages)
        assert contradicted.states() == {"held": 16, "delivered": 2}

    def test_goes_out_once_it_is_corrected(self, contradicted, ris):
        contradicted.onward(contradicted.to_folder, "ris")
        study = contradicted.studies["patient"]
        (wrong,) = (contradicted.root / "studies" / study).rglob("report_sr.dcm")
        dataset = pydicom.dcmread(wrong)
        dataset.PatientID = "SIM-patient"
        dataset.save_as(wrong)
        contradicted.redeliver(states="held")
        assert {row.state.value for row in contradicted.deliveries(study_instance_uid=study)} == {"delivered"}

    def test_a_resource_that_the_report_has_beside_others_holds_it_too(self, night, ris):
        (path,) = [p for p in (night.root / "studies").rglob("report_sr.dcm") if night.lateral in str(p)]
        dataset = pydicom.dcmread(path)
        dataset.PatientBirthDate = "19800101"
        dataset.save_as(path)
        night.onward(night.to_folder, "ris")
        held = {(row.kind.value, row.subject) for row in night.deliveries() if row.state.value == "held"}
        assert {kind for kind, _ in held} == {"objects", "report"}
        assert ("objects", night.lateral) in held
        assert len(held) == 2


class TestDoubt:
    def test_a_result_that_may_predate_late_images_is_held_everywhere(self, night, ris):
        night.sql("UPDATE resources SET doubt = :why WHERE uid = :uid", why=STALE, uid=night.lateral)
        night.onward(night.to_folder, "ris")
        held = {(row.kind.value, row.reason) for row in night.deliveries() if row.state.value == "held"}
        assert held == {("objects", STALE), ("report", STALE)}

    def test_a_doubt_that_arises_after_it_was_owed_holds_it_too(self, night):
        night.enqueue([night.to_folder])
        night.sql("UPDATE resources SET doubt = :why WHERE uid = :uid", why=STALE, uid=night.lateral)
        night.deliver(night.to_folder)
        assert night.states() == {"held": 1, "delivered": 2}

    def test_looking_again_does_not_release_it(self, night):
        night.sql("UPDATE resources SET doubt = :why WHERE uid = :uid", why=STALE, uid=night.lateral)
        night.onward(night.to_folder)
        night.redeliver(states="held")
        assert night.states() == {"held": 1, "delivered": 2}

    def test_what_was_sent_again_since_is_held_until_its_newer_result_takes_its_place(self, night):
        night.enqueue([night.to_folder])
        night.send_again(night.head_series)
        night.deliver(night.to_folder)
        (row,) = [row for row in night.deliveries() if row.state.value == "held"]
        assert row.reason == "the images were sent again since; their newer result takes its place"

    def test_a_report_is_not_replaced_by_one_that_lacks_an_image_whose_newer_result_is_missing(self, night, ris):
        night.onward("ris")
        assert len(ris.messages) == 2
        night.send_again(night.frontal)
        night.onward("ris")
        newest = max(night.deliveries("ris", study_instance_uid=night.chest), key=lambda row: row.revision)
        assert (newest.state.value, newest.reason) == ("held", LACKING)
        assert len(ris.messages) == 2

    def test_images_of_one_study_under_two_identities_are_held_and_never_put_into_one_report(self, night, ris):
        night.sql(
            "INSERT INTO studies (study_instance_uid, patient_id, issuer_of_patient_id, accession_number, birth_date, "
            "sex, patient_name, identity_key, study_date, first_seen_at) SELECT study_instance_uid, 'SIM-OTHER', "
            "issuer_of_patient_id, accession_number, birth_date, sex, patient_name, 'other', study_date, first_seen_at "
            "FROM studies WHERE study_instance_uid = :study",
            study=night.chest,
        )
        night.sql(
            "UPDATE resources SET study_id = (SELECT id FROM studies WHERE identity_key = 'other') WHERE uid = :uid",
            uid=night.lateral,
        )
        night.onward(night.to_folder, "ris")
        chest = night.deliveries(study_instance_uid=night.chest)
        assert {row.state.value for row in chest} == {"held"}
        assert all("with different patient data" in row.reason for row in chest)
        assert "SIM-OTHER" not in "".join(message.raw.decode() for message in ris.messages)


class TestWhatTheEmulatorMade:
    @pytest.mark.parametrize("kind", ["folder", "mllp"])
    def test_goes_to_nobody_but_this_machine(self, night, ris, monkeypatch, kind):
        cls, name = (FolderDestination, night.to_folder) if kind == "folder" else (MllpDestination, "ris")
        monkeypatch.setattr(cls, "is_loopback", False, raising=False)
        if kind == "folder":
            monkeypatch.setattr(cls, "__init__", remote_folder)
        night.onward(name)
        reason = "it was made by an emulator, and the destination is not on this machine"
        assert {(row.state.value, row.reason) for row in night.deliveries(name)} == {("held", reason)}
        assert (night.received(), ris.messages) == ([], [])

    def test_is_known_by_its_files_where_it_has_no_text(self, hospital, ris, monkeypatch):
        monkeypatch.setattr(MllpDestination, "is_loopback", False)
        head = hospital.ct()
        hospital.control.plan(head[0].SeriesInstanceUID, usecase="qct")
        hospital.process(hospital.plan())
        hospital.onward("ris")
        assert hospital.states() == {"held": 1}
        assert ris.messages == []


def remote_folder(self, name, make=FolderDestination.__init__):
    make(self, name)
    self.is_loopback = False
