import pydicom
import pytest
from airflow.sdk.exceptions import TaskDeferred
from delivery_kit import mllp_connection
from support.hl7_receiver import Hl7Receiver

from qure_provider.delivery.assemble import NO_FILES
from qure_provider.delivery.courier import UNWANTED
from qure_provider.delivery.rules import RulesError
from qure_provider.ledger.deliveries import DeliveryState

FILES = 8 + 8 + 9
"""Of the two films and of the head, without the service's copies of the images."""


def objects(hospital):
    return [pydicom.dcmread(hospital.out / name) for name in hospital.received() if name.endswith(".dcm")]


class TestOneStateForEach:
    def test_a_night_into_a_folder_and_a_ris(self, night, ris):
        assert night.onward(night.to_folder, "ris") == []

        assert night.states(night.to_folder) == {"delivered": 3}  # one for each result
        assert night.states("ris") == {"delivered": 2}  # one for each study and product
        assert len(night.received()) == FILES
        assert len(ris.messages) == 2

    def test_the_sums_hold_whatever_the_rules(self, night, ris):
        rules = [
            {"when": {"product": ["qer"]}, "send": ["sc"], "to": [night.to_folder]},
            {"when": {"meaning": ["no finding of this product"]}, "send": [], "to": [night.to_folder]},
            {"when": {"meaning": ["urgent"]}, "to": ["ris"]},
        ]
        night.onward(night.to_folder, "ris", rules=rules)
        with night.ledger() as ledger:
            counts = ledger.deliveries.counts(night.run_row(ledger).id)
        assert {name: sum(states.values()) for name, states in counts.items()} == {night.to_folder: 3, "ris": 2}

    def test_what_no_rule_wants_is_recorded_as_such(self, night, ris):
        night.onward(rules=[{"when": {"meaning": ["urgent"]}, "to": ["ris"]}])
        wanted = {row.study_instance_uid: (row.state.value, row.reason) for row in night.deliveries("ris")}
        assert wanted == {night.chest: ("not wanted", UNWANTED), night.head: ("waiting", "")}

    def test_nothing_is_sent_by_an_empty_list(self, night):
        night.onward(night.to_folder, rules=[{"send": [], "to": [night.to_folder]}])
        assert night.states() == {"not wanted": 3}
        assert night.received() == []

    def test_only_the_kinds_that_the_rule_sends(self, night):
        night.onward(night.to_folder, rules=[{"send": ["report_sr", "sc"], "to": [night.to_folder]}])
        names = {name.rpartition("/")[2] for name in night.received()}
        assert names == {"report_sr.dcm", "sc.dcm", "sc-2.dcm", "sc-3.dcm"}

    def test_a_result_without_any_file_of_these_kinds_is_not_said_to_be_delivered(self, night):
        night.onward(night.to_folder, rules=[{"send": ["pr"], "to": [night.to_folder]}])
        assert {(row.state, row.reason) for row in night.deliveries()} == {(DeliveryState.NOT_WANTED, NO_FILES)}

    def test_a_rule_added_later_takes_what_was_not_wanted_before(self, night, ris):
        night.onward(rules=[{"when": {"meaning": ["urgent"]}, "to": ["ris"]}])
        night.onward("ris")
        assert night.states("ris") == {"delivered": 2}

    def test_a_destination_added_later_gets_the_night_by_repeating_it(self, night, ris):
        night.onward(night.to_folder)
        night.onward(night.to_folder, "ris")
        assert night.states() == {"delivered": 5}

    def test_products_of_one_study_are_separate_reports(self, night, ris):
        night.sql("UPDATE resources SET usecase = 'qmsk' WHERE uid = :uid", uid=night.lateral)
        path = night.rows()[night.lateral].store_path
        night.edit_result(path, usecase="qmsk")
        night.onward("ris")
        reports = [message for message in ris.messages if night.chest in message.raw.decode()]
        assert sorted(message["OBR"].values(4)[0] for message in reports) == ["AI-qmsk", "AI-qxr"]
        assert len({message["OBR"][3] for message in reports}) == 2

    def test_a_result_of_no_named_product_is_held_and_not_lost(self, night, ris):
        night.sql("UPDATE resources SET usecase = NULL WHERE uid = :uid", uid=night.head_series)
        night.edit_result(night.rows()[night.head_series].store_path, usecase=None)
        night.onward("ris")
        (row,) = [row for row in night.deliveries("ris") if row.study_instance_uid == night.head]
        assert (row.state.value, row.reason) == ("held", "the service did not say which product it is of")


class TestTheSameNightAgain:
    def test_nothing_new_at_any_receiver(self, night, ris):
        night.onward(night.to_folder, "ris")
        before = {name: (night.out / name).stat().st_mtime_ns for name in night.received()}
        for _ in range(2):
            night.onward(night.to_folder, "ris")
        assert {name: (night.out / name).stat().st_mtime_ns for name in night.received()} == before
        assert len(ris.messages) == 2
        assert night.states() == {"delivered": 5}

    def test_a_message_sent_again_is_the_same_to_the_byte(self, night, ris):
        night.enqueue(["ris"])
        night.deliver("ris")
        night.sql("UPDATE deliveries SET state = 'in doubt', due_at = 0")
        night.deliver("ris")
        first, again = ris.messages[:2], ris.messages[2:]
        assert sorted(message.raw for message in again) == sorted(message.raw for message in first)

    def test_a_late_file_is_sent_alone_as_a_newer_revision(self, night):
        night.onward(night.to_folder)
        before = night.received()
        night.add_file(night.rows()[night.frontal].store_path, "late_pdf", b"%PDF-1.4 SIMULATED", "application/pdf")
        night.onward(night.to_folder)
        assert [name.rpartition("/")[2] for name in night.received() if name not in before] == ["late_pdf.pdf"]
        newest = max(night.deliveries(subject=night.frontal), key=lambda row: row.revision)
        assert (newest.revision, newest.state.value) == (2, "delivered")
        assert len(newest.receipt["sha256"]) == 1

    def test_a_late_file_of_a_kind_that_is_not_sent_sends_nothing(self, night):
        rules = [{"send": ["sc"], "to": [night.to_folder]}]
        night.onward(night.to_folder, rules=rules)
        before = night.received()
        night.add_file(night.rows()[night.frontal].store_path, "late_pdf", b"%PDF-1.4 SIMULATED", "application/pdf")
        night.onward(night.to_folder, rules=rules)
        assert night.received() == before
        newest = max(night.deliveries(subject=night.frontal), key=lambda row: row.revision)
        assert newest.receipt == {"proof": "all of it had arrived with an earlier revision"}

    def test_an_unsent_older_revision_is_superseded_by_the_newer(self, night):
        night.enqueue([night.to_folder])
        night.add_file(night.rows()[night.frontal].store_path, "late_pdf", b"%PDF-1.4 SIMULATED", "application/pdf")
        night.onward(night.to_folder)
        states = [(row.revision, row.state.value) for row in night.deliveries(subject=night.frontal)]
        assert states == [(1, "superseded"), (2, "delivered")]
        assert len(night.received()) == FILES + 1

    def test_a_changed_report_replaces_the_older_one_at_the_receiver(self, night, ris):
        night.onward("ris")
        path = night.rows()[night.lateral].store_path
        report = night.result(night.rows()[night.lateral])["report"] | {"impression": "SIMULATED. Another impression"}
        night.edit_result(path, report=report)
        night.onward("ris")
        older, newer = [message for message in ris.messages if night.chest in message.raw.decode()]
        assert older["OBR"][3] == newer["OBR"][3]
        assert older.control_id != newer.control_id
        assert "Another impression" in ris.reports[newer["OBR"][3]].raw.decode()


class TestWhatIsSent:
    def test_the_copy_of_the_image_never_goes_onward(self, night):
        night.onward(night.to_folder)
        assert not [name for name in night.received() if "original" in name]
        stored = [path.name for path in night.root.rglob("original*")]
        assert stored  # there was one to leave out

    def test_not_even_where_a_rule_names_it(self, night):
        with pytest.raises(RulesError, match="'send' does not take 'original', 'original_thumbnail'"):
            night.onward(rules=[{"send": ["original", "original_thumbnail"], "to": [night.to_folder]}])

    def test_whose_it_is_is_exactly_as_in_the_source(self, hospital):
        identity = {
            "PatientID": "SIM 01/é",
            "PatientName": "Müller^Simulated",
            "AccessionNumber": "SIM-ACCESSION-LONGER-THAN-16",
            "StudyID": "S1",
            "SpecificCharacterSet": "ISO_IR 192",
        }
        (film,) = hospital.xray(**identity)
        removed = {"PatientID": None, "PatientName": None, "AccessionNumber": None, "PatientSex": None}
        hospital.control.plan(film.SOPInstanceUID, attributes={"report_sr": removed, "sc": {"StudyDate": None}})
        hospital.process(hospital.plan(), deliver_to=[hospital.to_folder])

        received = objects(hospital)
        assert len(received) == 4
        for each in received:
            assert each.StudyInstanceUID == film.StudyInstanceUID
            assert str(each.PatientID) == identity["PatientID"]
            assert str(each.PatientName) == identity["PatientName"]
            assert str(each.AccessionNumber) == identity["AccessionNumber"]
            assert (each.PatientSex, each.PatientBirthDate, each.StudyDate) == ("F", "19700101", "20261120")
            assert "unverified" in each.SeriesDescription

    def test_the_message_names_patient_accession_and_study_as_the_source_does(self, night, ris):
        night.onward("ris")
        by_study = {message.all("OBX")[2][5]: message for message in ris.messages}
        head = by_study[night.head]
        assert (head["PID"].value(3), head["OBR"].value(18)) == ("SIM-2", "SIM-A2")
        chest = by_study[night.chest]
        assert (chest["PID"].value(3), chest["OBR"].value(18)) == ("SIM-1", "SIM-A1")

    def test_the_worst_of_a_study_leads_its_report_and_a_routine_view_never_overwrites_it(self, night, ris):
        night.onward("ris")
        (report,) = [message for message in ris.messages if night.chest in message.raw.decode()]
        study = next(line for line in report.all("OBX") if line[3].startswith("AI-STUDY-MEANING"))
        assert (study[5], study[8]) == ("abnormal", "A")
        meanings = [line[5] for line in report.all("OBX") if line[3].startswith("AI-MEANING")]
        assert sorted(meanings) == ["abnormal", "no finding of this product"]

    def test_urgent_ones_go_first(self, night, ris):
        night.onward("ris")
        assert [night.head in message.raw.decode() for message in ris.messages] == [True, False]

    def test_so_do_those_that_people_are_told_of_by_the_sites_own_list(self, night, ris):
        night.onward_paging("ris", findings=("pneumothorax",))
        assert {row.urgent for row in night.deliveries("ris")} == {True}


class TestReportsWait:
    @pytest.fixture
    def begun(self, hospital, monkeypatch):
        """A study of two films of which one is computed for ever, and a CT pair of series likewise."""
        with Hl7Receiver() as receiver:
            monkeypatch.setenv("AIRFLOW_CONN_RIS", mllp_connection(receiver))
            hospital.ris = receiver
            yield hospital

    def test_until_all_of_the_study_has_its_answer(self, begun):
        ready, late = begun.xray(images=2)
        begun.control.plan(late.SOPInstanceUID, outcome="stuck")
        (batch,) = begun.plan()
        begun.upload(batch)
        collect = begun.collector(batch, deliver_to=["ris"])
        with pytest.raises(TaskDeferred):
            collect.execute(begun.context())
        assert begun.ris.messages == []
        deadline = {"wake": "deadline", "urgent": [], "done": []}
        collect.resume_execution("resume", {"event": deadline}, begun.context())
        (report,) = begun.ris.messages  # the other one has timed out, and this one goes
        assert ready.SOPInstanceUID in report.raw.decode()
        assert late.SOPInstanceUID not in report.raw.decode()

    def test_but_not_an_urgent_one_after_which_a_newer_revision_follows(self, begun):
        study = {"StudyInstanceUID": "1.2.826.0.1.3680043.8.498.77"}
        head = begun.ct("head", **study)
        (film,) = begun.xray(**study)
        begun.control.plan(head[0].SeriesInstanceUID, findings=("intracranial_hemorrhage",))
        begun.control.plan(film.SOPInstanceUID, usecase="qer")
        by_route = {batch["route"]: batch for batch in begun.plan()}
        for batch in by_route.values():
            begun.upload(batch)
        begun.compute(by_route["ct"])
        begun.collect(by_route["ct"], deliver_to=["ris"])
        (first,) = begun.ris.messages
        begun.collect(by_route["xray"], deliver_to=["ris"])
        _, second = begun.ris.messages
        assert first["OBR"][3] == second["OBR"][3]
        assert film.SOPInstanceUID not in first.raw.decode()
        assert film.SOPInstanceUID in second.raw.decode()
        study = next(line for line in second.all("OBX") if line[3].startswith("AI-STUDY-MEANING"))
        assert study[5] == "urgent"
