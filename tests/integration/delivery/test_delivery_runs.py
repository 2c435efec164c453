import json
import logging
import re
import runpy
from pathlib import Path

import pytest
from airflow.sdk.exceptions import TaskDeferred
from delivery_kit import mllp_connection
from pipeline_kit import Pager
from support import hl7_receiver as receivers

from qure_provider import settings
from qure_provider.hooks.mllp import MllpHook
from qure_provider.operators.collect import BETWEEN_SECONDS, DELIVER_SECONDS, QureCollectBatchOperator
from qure_provider.operators.redeliver import QureRedeliverOperator
from qure_provider.operators.summarize import NightUnresolvedError, QureSummarizeOperator

ROOT = Path(__file__).parents[3]


def run_night(hospital, **arguments):
    """A whole night with everything that a DAG would pass on; its batches."""
    batches = hospital.plan()
    hospital.process(batches, **arguments)
    hospital.summarize(**arguments)
    return batches


class TestANight:
    def test_delivers_as_results_come_and_is_green(self, hospital, ris):
        hospital.xray(images=2)
        run_night(hospital, deliver_to=[hospital.to_folder, "ris"])
        assert hospital.states() == {"delivered": 3}
        summary = hospital.summary()
        assert summary["deliveries"] == {hospital.to_folder: {"delivered": 2}, "ris": {"delivered": 1}}
        assert summary["problems"] == []

    def test_the_same_night_again_sends_nothing_new(self, hospital, ris):
        hospital.xray(images=2)
        run_night(hospital, deliver_to=[hospital.to_folder, "ris"])
        received = hospital.received()
        hospital.new_run("scheduled__2")
        run_night(hospital, deliver_to=[hospital.to_folder, "ris"])
        assert hospital.received() == received
        assert len(ris.messages) == 1

    def test_a_late_image_makes_a_revision_that_replaces_the_report(self, hospital, ris):
        frontal, *_ = hospital.xray("chest")
        run_night(hospital, deliver_to=["ris"])
        hospital.xray("late", StudyInstanceUID=frontal.StudyInstanceUID, SeriesInstanceUID="1.2.826.0.1.3680043.8.1")
        hospital.new_run("scheduled__2")
        run_night(hospital, deliver_to=["ris"])
        first, second = ris.messages
        assert first["OBR"][3] == second["OBR"][3]
        assert len([line for line in second.all("OBX") if line[3].startswith("AI-IMAGE")]) == 2

    def test_what_a_worker_fetched_before_it_died_goes_with_the_next_try_and_not_only_at_the_end(self, hospital, ris):
        films = hospital.xray(images=2)
        hospital.control.plan(films[1].SOPInstanceUID, outcome="stuck")
        (batch,) = hospital.plan()
        hospital.upload(batch)
        hospital.sql("UPDATE runs SET deadline = 9e9")
        collect = hospital.collector(batch)  # without destinations, as if it had died before them
        with pytest.raises(TaskDeferred):
            collect.execute(hospital.context())
        hospital.sql("UPDATE resources SET settled_at = 1 WHERE uid = :uid", uid=films[0].SOPInstanceUID)
        with pytest.raises(TaskDeferred):
            hospital.collector(batch, deliver_to=[hospital.to_folder]).execute(hospital.context())
        assert hospital.states() == {"delivered": 1}

    def test_while_results_are_waited_for_it_delivers_for_seconds_only(self, hospital, ris, monkeypatch):
        given = []
        monkeypatch.setattr(
            "qure_provider.delivery.courier.Courier.deliver",
            lambda self, destinations, *, run_id, seconds, only_urgent: given.append(seconds),
        )
        films = hospital.xray(images=2)
        hospital.control.plan(films[1].SOPInstanceUID, processing_seconds=1)
        hospital.process(hospital.plan(), deliver_to=["ris"])
        assert given[0] == BETWEEN_SECONDS <= 10
        assert given[-1] == DELIVER_SECONDS

    def test_the_last_task_sends_what_a_dead_worker_left(self, hospital, ris):
        hospital.xray()
        (batch,) = hospital.plan()
        hospital.process([batch])  # it died before it recorded what is owed
        hospital.summarize(deliver_to=["ris"])
        assert hospital.states() == {"delivered": 1}

    def test_a_receiver_that_never_answers_well_does_not_keep_the_others_waiting(self, hospital, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_RIS", mllp_connection(None))
        films = hospital.xray(images=2)
        hospital.control.plan(films[1].SOPInstanceUID, processing_seconds=1)
        hospital.process(hospital.plan(), deliver_to=["ris", hospital.to_folder])
        assert hospital.states(hospital.to_folder) == {"delivered": 2}
        assert hospital.states("ris") == {"waiting": 1}

    def test_results_that_are_none_are_never_sent(self, hospital, ris):
        films = hospital.xray(images=2)
        hospital.control.plan(films[0].SOPInstanceUID, outcome="invalid")
        hospital.control.plan(films[1].SOPInstanceUID, outcome="unsupported")
        hospital.process(hospital.plan(), deliver_to=[hospital.to_folder, "ris"])
        with pytest.raises(NightUnresolvedError, match="Not one of 2 resources has a result"):
            hospital.summarize(deliver_to=[hospital.to_folder, "ris"])
        assert (hospital.received(), ris.messages, hospital.states()) == ([], [], {})

    def test_a_missing_triage_word_is_sent_as_unknown_and_never_as_normal(self, hospital, ris):
        (film,) = hospital.xray()
        hospital.control.plan(film.SOPInstanceUID, patch={"triage_status": None})
        hospital.process(hospital.plan(), deliver_to=["ris"])
        (message,) = ris.messages
        study = next(line for line in message.all("OBX") if line[3].startswith("AI-STUDY-MEANING"))
        assert study[5] == "unknown"


class TestShowingOnly:
    def test_what_would_be_delivered_is_in_the_store_and_nothing_is_sent(self, night, ris):
        night.summarize(deliver_to=[night.to_folder, "ris"], show_only="deliver")
        assert (ris.messages, night.received(), night.states()) == ([], [], {})
        (folder,) = night.root.glob("runs/*/*/dry_run")
        shown = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        assert len([name for name in shown if name.endswith("message.hl7")]) == 2
        assert len([name for name in shown if "/objects-" in name]) == 25

    def test_the_messages_are_exactly_those_that_would_go_but_for_the_time(self, night, ris):
        night.onward("ris")
        row = night.rows()[night.lateral]
        night.edit_result(row.store_path, report=night.result(row)["report"] | {"impression": "SIMULATED. Changed"})
        night.summarize(deliver_to=["ris"], show_only="deliver")
        (shown,) = night.root.glob("runs/*/*/dry_run/ris/*/message.hl7")
        night.onward("ris")
        sent = ris.messages[-1]
        time = sent["MSH"][7].encode()
        own = shown.read_bytes().split(b"|")[6]
        assert shown.read_bytes().replace(own, time) == sent.raw

    def test_what_was_delivered_already_would_not_go(self, night, ris):
        night.onward("ris")
        night.summarize(deliver_to=["ris"], show_only="deliver")
        assert list(night.root.glob("runs/*/*/dry_run/ris/*")) == []

    def test_what_is_held_says_why(self, night, ris):
        night.sql("UPDATE resources SET doubt = 'may predate late images' WHERE uid = :uid", uid=night.lateral)
        with pytest.raises(NightUnresolvedError) as failure:
            night.summarize(deliver_to=["ris", night.to_folder], show_only="deliver")
        study = settings.short_ref(night.chest)
        assert f"Study {study}, qxr report for ris would not be sent: may predate late images." in str(failure.value)
        assert f"qxr objects for {night.to_folder} would not be sent: may predate late images." in str(failure.value)
        notes = list(night.root.glob("runs/*/*/dry_run/*/*/NOT_SENT.txt"))
        assert {note.read_text() for note in notes} == {"may predate late images\n"}
        assert len(notes) == 2

    def test_a_connection_that_is_not_complete_says_what_to_enter(self, night, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_RIS", mllp_connection(None, processing_id=None))
        with pytest.raises(NightUnresolvedError, match=r"qxr report for ris would not be sent: .*processing_id"):
            night.summarize(deliver_to=["ris"], show_only="deliver")
        notes = {note.read_text() for note in night.root.glob("runs/*/*/dry_run/ris/*/NOT_SENT.txt")}
        assert all("processing_id" in note for note in notes)
        assert notes

    def test_while_collecting_nothing_is_delivered_either(self, hospital, ris):
        hospital.xray()
        hospital.process(hospital.plan(), deliver_to=[hospital.to_folder, "ris"], show_only="deliver")
        assert (ris.messages, hospital.states()) == ([], {})

    def test_what_would_leave_is_in_the_store_and_nothing_leaves_nor_is_delivered(self, hospital, ris):
        hospital.xray("first")
        run_night(hospital, deliver_to=["ris"])
        hospital.control.forget_requests()
        (film,) = hospital.xray("second")
        hospital.new_run("scheduled__2")
        batches = hospital.plan()
        for batch in batches:
            hospital.show_upload(batch)
        hospital.collect(batches[0], deliver_to=["ris", hospital.to_folder], show_only="upload")
        hospital.summarize(deliver_to=["ris", hospital.to_folder], show_only="upload")
        assert hospital.control.requests() == []
        assert (len(ris.messages), hospital.received()) == (1, [])
        (shown,) = hospital.root.glob("runs/*/*/dry_run/upload-*.jsonl")
        (line,) = map(json.loads, shown.read_text().splitlines())
        assert (line["study_instance_uid"], line["files"]) == (film.StudyInstanceUID, 1)
        assert {"PatientID", "PatientName"} <= {tag["keyword"] for tag in line["tags"]}

    def test_and_the_night_can_be_run_in_earnest_afterwards(self, hospital, ris):
        hospital.xray()
        for batch in hospital.plan():
            hospital.show_upload(batch)
        hospital.summarize(deliver_to=["ris"], show_only="upload")
        hospital.new_run("scheduled__2")
        run_night(hospital, deliver_to=["ris"])
        assert len(ris.messages) == 1

    def test_a_word_that_is_neither_is_refused(self, night):
        with pytest.raises(ValueError, match="'upload', 'deliver', or nothing"):
            night.summarize(show_only="delivery")


class TestRedelivering:
    def test_only_to_chosen_destinations(self, night, ris):
        night.enqueue([night.to_folder, "ris"])
        night.redeliver(destinations="ris")
        assert night.states("ris") == {"delivered": 2}
        assert night.states(night.to_folder) == {"waiting": 3}

    def test_only_since_a_date_in_the_hospitals_zone(self, night, ris, monkeypatch):
        monkeypatch.setenv("AIRFLOW__QURE__TIMEZONE", "Asia/Kolkata")
        ris.actions = [receivers.answer("AR")] * 2
        night.onward("ris")
        night.sql("UPDATE deliveries SET created_at = 1795199399")  # 2026-11-20 23:59:59 in Kolkata
        assert night.redeliver(states=["dead"], since="2026-11-21") == {"reopened": 0, "troubles": 0}
        assert night.redeliver(states=["dead"], since="2026-11-20") == {"reopened": 2, "troubles": 0}

    def test_to_a_destination_that_nothing_was_ever_owed_to_it_is_refused_and_nothing_is_sent(self, night, ris):
        night.enqueue([night.to_folder, "ris"])
        known = re.escape(
            f"No delivery to 'riss' is on record, so nothing was sent. Destinations on record: {night.to_folder}, ris."
        )
        with pytest.raises(ValueError, match=known):
            night.redeliver(destinations="ris, riss")
        assert night.states() == {"waiting": 5}

    def test_what_is_no_date_is_refused(self, night):
        with pytest.raises(ValueError, match="'last week' is no date"):
            night.redeliver(since="last week")

    def test_another_state_is_refused(self, night):
        with pytest.raises(ValueError, match="states takes only held and dead"):
            night.redeliver(states="delivered")

    def test_on_a_new_installation_there_is_nothing_to_do(self, hospital):
        assert hospital.redeliver() == {"reopened": 0, "troubles": 0}

    def test_its_dag_can_be_parsed_and_passes_what_was_entered(self):
        dag = runpy.run_path(str(ROOT / "dags" / "qure_redeliver.py"))["dag"]
        (task,) = dag.tasks
        assert isinstance(task, QureRedeliverOperator)
        assert set(QureRedeliverOperator.template_fields) == set(dag.params)

    @pytest.mark.parametrize("operator", [QureCollectBatchOperator, QureSummarizeOperator])
    def test_wrong_rules_fail_when_the_dag_is_parsed(self, operator):
        arguments = {"batch": None} if operator is QureCollectBatchOperator else {}
        with pytest.raises(ValueError, match="Rule 1 names no destination"):
            operator(task_id="t", rules=[{"to": []}], **arguments)


class TestNoPatientData:
    CANARY = "CANARYPATIENT"

    @pytest.fixture
    def watched(self, hospital, ris, caplog, capfd):
        """A night of a patient whose every word is a canary, with every way to fail; what was said of it."""
        film = {
            "PatientID": self.CANARY,
            "PatientName": f"{self.CANARY}^SIMULATED",
            "AccessionNumber": self.CANARY,
            "StudyDescription": self.CANARY,
        }
        images = [hospital.xray(name, **film)[0] for name in ("sound", "held", "gone")]
        hospital.control.plan(images[1].SOPInstanceUID, attributes={"*": {"PatientID": "OTHER"}})
        ris.actions = [receivers.answer("AR", text=self.CANARY), receivers.answer("AE"), receivers.drop]
        caplog.clear()
        with caplog.at_level(logging.DEBUG):
            said = []
            returned = [hospital.plan()]
            hospital.process(returned[0], deliver_to=[hospital.to_folder, "ris"], notifiers=[Pager.callback()])
            gone = hospital.rows()[images[2].SOPInstanceUID].store_path
            (hospital.root / gone / "report_sr.dcm").unlink()
            hospital.sql("UPDATE deliveries SET state = 'waiting', due_at = 0")
            for action in (lambda: hospital.summarize(deliver_to=["ris", "nowhere"]), hospital.redeliver):
                try:
                    returned.append(action())
                except Exception as error:
                    said.append(f"{error!r}")
            said.append(json.dumps(returned, default=str))
            said += [row["reason"] for row in hospital.table("deliveries")]
            said += [message for _, message in Pager.told]
        captured = capfd.readouterr()
        uids = [uid for image in images for uid in (image.StudyInstanceUID, image.SOPInstanceUID)]
        return "\n".join([*said, caplog.text, captured.out, captured.err]), uids

    def test_neither_in_logs_nor_in_errors_nor_in_what_tasks_return(self, watched):
        text, uids = watched
        assert "needs somebody" in text  # it did fail, and say so
        assert self.CANARY not in text
        assert [uid for uid in uids if uid in text] == []


def test_a_hook_is_what_a_message_is_sent_through(night, ris, monkeypatch):
    sent = []
    send = MllpHook.send
    monkeypatch.setattr(MllpHook, "send", lambda self, message: sent.append(message) or send(self, message))
    night.onward("ris")
    assert sorted(sent) == sorted(message.raw for message in ris.messages)
