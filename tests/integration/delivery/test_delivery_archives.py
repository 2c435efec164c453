"""Objects in a PACS: an archive that takes C-STORE."""

import json

import pytest
from delivery_kit import onto
from support.dicom_archive import DicomArchive, abort, match
from support.dicomweb_archive import DicomWebArchive

from qure_provider.delivery.assemble import NO_FILES
from qure_provider.delivery.destination import ReceiverSettingsError, open_destination
from qure_provider.delivery.dicomweb import DicomWebDestination
from qure_provider.ledger.deliveries import DeliveryState, ParcelKind

OBJECTS = 4 + 4 + 5
REFUSED, FULL = 0x0122, 0xA700
KEY_OBJECTS = "1.2.840.10008.5.1.4.1.1.88.59"


@pytest.fixture(scope="module")
def listening():
    with DicomArchive() as archive:
        yield archive


@pytest.fixture
def connect_pacs(monkeypatch, listening):
    def make(port=listening.port, **extra):
        waits = dict.fromkeys(("connect_timeout", "association_timeout", "response_timeout"), 5)
        extra = {"called_ae_title": "ARCHIVE", **waits, **extra}
        fields = {"conn_type": "dicom", "host": "127.0.0.1", "port": port, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_PACS", json.dumps(fields))

    return make


@pytest.fixture
def pacs(connect_pacs, listening):
    listening.forget()
    connect_pacs()
    return listening


def send_head(night):
    """Owe the archive the head's objects alone, and send them."""
    night.enqueue(rules=[{"when": {"product": ["qer"]}, "send": ["sc", "report_dcm"], "to": ["pacs"]}])
    return night.deliver("pacs")


def states(night):
    """Of what the archive is owed."""
    return [row.state.value for row in night.deliveries("pacs") if row.state is not DeliveryState.NOT_WANTED]


def held_there(pacs):
    """The archive answers questions by what it has."""
    pacs.answers = lambda identifier: match(*pacs.received)(identifier)


class TestStoring:
    def test_every_object_once_and_nothing_else(self, night, pacs):
        for _ in range(2):
            night.onward("pacs")
        assert night.states("pacs") == {"delivered": 3}
        assert len(pacs.uids) == len(set(pacs.uids)) == OBJECTS
        assert {each.StudyInstanceUID for each in pacs.received} == {night.chest, night.head}
        assert all("unverified" in each.SeriesDescription for each in pacs.received)

        named = {uid for row in night.deliveries("pacs") for _, uid, _ in row.receipt["objects"]}
        assert named == set(pacs.uids)
        assert {row.receipt["proof"] for row in night.deliveries("pacs")} == {"each object's status"}

    def test_a_warning_of_the_archive_is_kept(self, night, pacs):
        pacs.answer = lambda event: 0xB000
        send_head(night)
        warnings = {text for row in night.deliveries("pacs") for text in row.receipt.get("warnings", ())}
        assert warnings == {"the archive changed attributes of the object (B000)"}

    def test_a_late_picture_that_is_no_dicom_sends_nothing(self, night, pacs):
        rules = [{"when": {"product": ["qer"]}, "send": ["sc", "gsps"], "to": ["pacs"]}]
        for _ in range(2):
            night.enqueue(rules=rules)
            night.deliver("pacs")
            night.add_file(night.rows()[night.head_series].store_path, "gsps", b"\x89PNG SIMULATED", "image/png")
        assert len(pacs.uids) == 3
        assert states(night) == ["delivered", "delivered"]

    def test_a_result_without_dicom_is_not_wanted_rather_than_delivered(self, night, pacs):
        night.onward(rules=[{"send": ["report_pdf", "sc_full_png"], "to": ["pacs"]}])
        assert {(row.state, row.reason) for row in night.deliveries()} == {(DeliveryState.NOT_WANTED, NO_FILES)}

    def test_a_result_that_the_archive_takes_in_part_is_dead_and_named(self, night, pacs):
        pacs.answer = lambda event: REFUSED if event.request.AffectedSOPClassUID.endswith("104.1") else 0
        (trouble,) = send_head(night)
        assert states(night) == ["dead"]
        assert trouble.reason == "1 of 4 objects: refused (the archive does not take this kind of object (0122))"

    def test_one_that_has_no_room_gets_it_later(self, night, pacs):
        pacs.answer = lambda event: FULL
        send_head(night)
        assert states(night) == ["waiting"]
        pacs.answer = lambda event: 0
        night.redeliver(even_if_not_due=True)
        assert states(night) == ["delivered"]

    def test_one_that_took_a_part_may_have_it(self, night, pacs):
        pacs.answer = lambda event: FULL if event.request.AffectedSOPClassUID.endswith("104.1") else 0
        send_head(night)
        assert states(night) == ["in doubt"]

    def test_one_that_breaks_off_leaves_it_in_doubt_and_it_is_sent_again_as_the_same(self, night, pacs):
        pacs.answer = abort
        send_head(night)
        assert states(night) == ["in doubt"]
        pacs.answer = lambda event: 0
        night.redeliver(even_if_not_due=True)
        assert states(night) == ["delivered"]
        first = set(pacs.uids)
        night.sql("UPDATE deliveries SET state = 'waiting', due_at = 0 WHERE state = 'delivered'")
        night.deliver("pacs")
        assert set(pacs.uids) == first


class TestAsking:
    def test_what_is_in_doubt_and_there_is_not_sent_again(self, night, pacs):
        held_there(pacs)
        send_head(night)
        night.sql("UPDATE deliveries SET state = 'in doubt' WHERE state = 'delivered'")
        night.redeliver(even_if_not_due=True)
        assert states(night) == ["delivered"]
        assert len(pacs.uids) == 4

    def test_an_archive_that_answers_no_questions_gets_it_again(self, night, pacs):
        send_head(night)
        night.sql("UPDATE deliveries SET state = 'in doubt' WHERE state = 'delivered'")
        night.redeliver(even_if_not_due=True)
        assert states(night) == ["delivered"]
        assert sorted([*set(pacs.uids)] * 2) == sorted(pacs.uids)

    def test_by_setting_it_must_prove_that_it_has_what_it_took(self, night, connect_pacs, pacs):
        connect_pacs(prove=True)
        send_head(night)
        assert states(night) == ["in doubt"]
        held_there(pacs)
        night.redeliver(even_if_not_due=True)
        assert states(night) == ["delivered"]

    def test_by_setting_it_must_have_the_study_for_the_same_patient(self, night, connect_pacs, pacs, collected):
        connect_pacs(ask_first=True)
        there = onto(night.chest, "SIM-1"), onto(night.head, "SIM-OTHER")
        pacs.answers = match(*there)
        night.onward("pacs")
        became = {row.study_instance_uid: (row.state.value, row.reason) for row in night.deliveries("pacs")}
        assert became == {
            night.chest: ("delivered", ""),
            night.head: ("held", "the archive has the study under another patient, name or number"),
        }
        assert {each.StudyInstanceUID for each in pacs.received} == {night.chest}

    def test_or_it_is_held(self, night, connect_pacs, pacs):
        connect_pacs(ask_first=True)
        pacs.answers = match()
        (trouble,) = send_head(night)
        assert trouble.reason == "the archive does not have the study"
        assert pacs.received == []


class TestTakingBack:
    def withdraw(self, night, study):
        with night.ledger() as ledger:
            found = ledger.deliveries.not_withdrawn(study_instance_uid=study)
            ledger.deliveries.withdraw(found, by="Dr Simulated", why="SIMULATED reason")
        return night.deliver("pacs")

    def rejected(self, note):
        sequence = note.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        return {item.ReferencedSOPInstanceUID for series in sequence for item in series.ReferencedSOPSequence}

    def test_a_note_rejects_every_object_for_patient_safety(self, night, pacs):
        send_head(night)
        sent = set(pacs.uids)
        assert self.withdraw(night, night.head) == []
        note = pacs.received[-1]
        assert (note.SOPClassUID, note.StudyInstanceUID, note.PatientID) == (KEY_OBJECTS, night.head, "SIM-2")
        assert note.ConceptNameCodeSequence[0].CodeValue == "113037"
        assert self.rejected(note) == sent
        # and it is the same note when it is sent again
        night.sql("UPDATE deliveries SET state = 'in doubt' WHERE id = (SELECT max(id) FROM deliveries)")
        night.redeliver(even_if_not_due=True)
        assert pacs.uids.count(note.SOPInstanceUID) == 2

    def test_also_of_what_was_stored_in_part(self, night, pacs):
        pacs.answer = lambda event: REFUSED if event.request.AffectedSOPClassUID.endswith("104.1") else 0
        send_head(night)
        stored = set(pacs.uids)
        self.withdraw(night, night.head)
        assert self.rejected(pacs.received[-1]) > stored

    def test_what_would_be_stored_is_shown(self, night, pacs):
        night.summarize(deliver_to=["pacs"], show_only="deliver")
        shown = list(night.root.glob("runs/*/*/dry_run/pacs/*/*.dcm"))
        assert len(shown) == OBJECTS
        assert pacs.received == []

    def test_and_so_is_a_note(self, night, pacs, tmp_path):
        send_head(night)
        with night.ledger() as ledger:
            found = ledger.deliveries.not_withdrawn(study_instance_uid=night.head)
            ledger.deliveries.withdraw(found, by="Dr Simulated", why="SIMULATED reason")
        (row,) = night.deliveries(kind=ParcelKind.WITHDRAWAL)
        parcel = night.assembled(row, tmp_path)
        folder = tmp_path / "shown"
        folder.mkdir()
        open_destination("pacs").render(parcel, folder)
        assert [path.name for path in folder.iterdir()] == ["rejection.dcm"]


class TestOverDicomWeb:
    """The same over STOW-RS and QIDO-RS."""

    @pytest.fixture
    def web(self, monkeypatch):
        with DicomWebArchive() as archive:
            extra = {"ask_first": True, "prove": True, "connect_timeout": 5, "read_timeout": 5}
            fields = {"conn_type": "dicomweb", "host": archive.url, "extra": extra}
            monkeypatch.setenv("AIRFLOW_CONN_PACS", json.dumps(fields))
            yield archive

    def test_only_studies_that_it_has_of_the_same_patient_and_with_proof(self, night, web):
        web.received += [onto(night.chest, "SIM-1"), onto(night.head, "SIM-OTHER")]
        night.onward("pacs")
        became = {row.study_instance_uid: (row.state.value, row.reason) for row in night.deliveries("pacs")}
        assert became == {
            night.chest: ("delivered", ""),
            night.head: ("held", "the archive has the study under another patient, name or number"),
        }
        assert {row.receipt.get("proof") for row in night.deliveries("pacs")} == {"the archive was asked", None}
        assert {each.StudyInstanceUID for each in web.received[2:]} == {night.chest}

    def test_one_that_takes_a_part_may_have_it(self, night, web):
        web.received.append(onto(night.head, "SIM-2"))
        web.refuses = lambda dataset: FULL if dataset.SOPClassUID.endswith("104.1") else 0
        send_head(night)
        assert states(night) == ["in doubt"]
        web.refuses = lambda dataset: 0
        night.redeliver(even_if_not_due=True)
        assert states(night) == ["delivered"]

    def test_what_an_emulator_made_leaves_this_machine_for_no_archive(self, night, web, monkeypatch):
        monkeypatch.setattr(DicomWebDestination, "is_loopback", False)
        web.received.append(onto(night.head, "SIM-2"))
        send_head(night)
        assert states(night) == ["held"]
        assert len(web.received) == 1


def test_a_setting_that_is_no_word_is_refused(connect_pacs):
    connect_pacs(prove="perhaps")
    with pytest.raises(ReceiverSettingsError, match="prove"):
        open_destination("pacs")
