import errno
import hashlib
import itertools
import json
import os
import shutil
import time

import pydicom
import pytest
from airflow.sdk.bases.operator import TriggerFailureReason
from airflow.sdk.exceptions import TaskDeferred
from airflow.triggers.base import TriggerEvent
from pipeline_kit import QUICK, Pager, fire, slices

from qure_provider.api.errors import QureSettingsError
from qure_provider.emulator.model import Answer, Drip, Kind, MissingFiles, Reset, Stall, Truncate
from qure_provider.ledger.ledger import LeaseLostError
from qure_provider.operators import collect as collect_module
from qure_provider.operators import fetching
from qure_provider.operators.collect import PARALLEL, QureCollectBatchOperator
from qure_provider.operators.summarize import NightUnresolvedError
from qure_provider.retries import QureRetryPolicy, StepIncompleteError
from qure_provider.store import Store
from qure_provider.triggers import results as trigger_module
from qure_provider.triggers.results import QureResultsTrigger, ResultsEvent, Wake


def uploaded(hospital, **arguments):
    """Plan and send what is exported; return the only batch."""
    (batch,) = hospital.plan(**arguments)
    hospital.upload(batch)
    if batch["route"] == "ct":
        hospital.compute(batch)
    return batch


def deferral(hospital, batch, context=None, **arguments):
    """Run a collect task until it waits."""
    operator = hospital.collector(batch, **arguments)
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context or hospital.context())
    return operator, deferred.value


class TestWaiting:
    def test_it_asks_once_then_waits_in_the_triggerer(self, hospital):
        (film,) = hospital.xray()
        batch = uploaded(hospital)
        hospital.control.plan(film.SOPInstanceUID, processing_seconds=60)
        hospital.control.forget_requests()

        _, waiting = deferral(hospital, batch)

        assert isinstance(waiting.trigger, QureResultsTrigger)
        assert hospital.control.count("results") == 1

    def test_by_default_the_first_question_comes_15_s_after_deferring_and_then_ever_rarer(self, hospital):
        (film,) = hospital.xray()
        batch = uploaded(hospital)
        hospital.control.plan(film.SOPInstanceUID, processing_seconds=60)
        _, waiting = deferral(hospital, batch, first_poll_seconds=None, max_poll_seconds=None, settle_seconds=None)
        assert waiting.trigger.pace == {"first_poll": 15.0, "max_poll": 60.0, "settle": 15.0}

    def test_the_deadline_is_the_runs_and_stays_over_retries(self, hospital):
        (film,) = hospital.xray()
        batch = uploaded(hospital, wait_seconds=1000)
        hospital.control.plan(film.SOPInstanceUID, processing_seconds=60)
        deadlines = {deferral(hospital, batch)[1].trigger.deadline for _ in range(2)}
        with hospital.ledger() as ledger:
            assert deadlines == {ledger.run_of_batch(batch["batch_id"]).deadline}

    def test_the_deferral_itself_ends_a_little_after_it_since_a_trigger_alone_never_fires_without_a_triggerer(
        self, hospital
    ):
        (film,) = hospital.xray()
        batch = uploaded(hospital, wait_seconds=1000)
        hospital.control.plan(film.SOPInstanceUID, processing_seconds=60)
        _, waiting = deferral(hospital, batch)
        assert 1000 < waiting.timeout.total_seconds() < 1100

    def test_what_is_ready_is_taken_while_the_rest_is_waited_for(self, hospital):
        films = hospital.xray(images=4)
        for film in films[1:]:
            hospital.control.plan(film.SOPInstanceUID, processing_seconds=60)
        batch = uploaded(hospital)
        operator, waiting = deferral(hospital, batch)
        event = fire(waiting.trigger)
        assert event["wake"] == "some"

        with pytest.raises(TaskDeferred):
            operator.resume_execution("resume", {"event": event}, hospital.context())

        rows = hospital.rows()
        assert [rows[film.SOPInstanceUID].outcome for film in films[1:]] == ["pending"] * 3
        assert rows[films[0].SOPInstanceUID].settled_at

    def test_a_batch_of_which_nothing_was_uploaded_is_not_waited_for(self, hospital):
        hospital.xray()
        (batch,) = hospital.plan()
        hospital.collect(batch)
        assert hospital.control.requests() == []

    def test_a_retry_after_the_end_asks_nothing(self, hospital):
        hospital.xray()
        batch = uploaded(hospital)
        hospital.collect(batch)
        hospital.control.forget_requests()
        hospital.collect(batch)
        assert hospital.control.requests() == []

    def test_polls_go_over_the_connections_one_ceiling(self, hospital, monkeypatch):
        fields = json.loads(os.environ["AIRFLOW_CONN_QURE_DEFAULT"])
        fields["extra"]["requests_per_second"] = 5
        monkeypatch.setenv("AIRFLOW_CONN_QURE_DEFAULT", json.dumps(fields))
        films = hospital.xray(images=6)
        hospital.control.plan(films[0].StudyInstanceUID, outcome="stuck")
        batch = uploaded(hospital)
        _, waiting = deferral(hospital, batch, first_poll_seconds=0.01, max_poll_seconds=0.01)
        waiting.trigger.deadline = time.time() + 1.5
        hospital.control.forget_requests()
        begun = time.monotonic()
        fire(waiting.trigger)
        assert hospital.control.count("results") <= 5 * (time.monotonic() - begun) + 7


class TestTheDeadline:
    def test_what_is_not_ready_by_then_is_timed_out_and_named(self, hospital):
        ready, stuck = hospital.xray("a")[0], hospital.xray("b")[0]
        hospital.control.plan(stuck.SOPInstanceUID, outcome="stuck")
        for batch in (batches := hospital.plan(wait_seconds=1)):
            hospital.upload(batch)
        for batch in batches:
            hospital.collect(batch)

        rows = hospital.rows()
        assert rows[ready.SOPInstanceUID].outcome == "ready"
        assert rows[stuck.SOPInstanceUID].outcome == "timed out"
        with pytest.raises(NightUnresolvedError, match=r"timed out\. the service had no result at the run's deadline"):
            hospital.summarize()

    def test_a_deferral_that_timed_out_marks_what_is_left_instead_of_failing(self, hospital):
        """No triggerer lived: Airflow resumes the task with a failure that is none."""
        ready, stuck = hospital.xray(images=2)
        hospital.control.plan(ready.SOPInstanceUID, processing_seconds=0.5)
        hospital.control.plan(stuck.SOPInstanceUID, outcome="stuck")
        batch = uploaded(hospital)
        operator, _ = deferral(hospital, batch)
        time.sleep(0.5)

        error = TriggerFailureReason.TRIGGER_TIMEOUT
        operator.resume_execution("__fail__", {"error": error}, hospital.context())

        rows = hospital.rows()
        assert rows[stuck.SOPInstanceUID].outcome == "timed out"
        assert rows[ready.SOPInstanceUID].outcome == "ready"
        assert rows[ready.SOPInstanceUID].is_resolved

    def test_a_trigger_that_failed_otherwise_fails_the_try(self, hospital):
        hospital.xray()
        batch = uploaded(hospital)
        with pytest.raises(Exception, match="Trigger failure"):
            hospital.collector(batch).resume_execution("__fail__", {"error": "Trigger failure"}, hospital.context())

    def test_a_person_who_clears_the_task_afterwards_has_it_ask_again(self, hospital):
        (film,) = hospital.xray()
        hospital.control.plan(film.SOPInstanceUID, outcome="stuck")
        batch = uploaded(hospital, wait_seconds=0.2)
        hospital.collect(batch)
        assert hospital.rows()[film.SOPInstanceUID].outcome == "timed out"
        hospital.run.clear_number = 1
        hospital.collect(batch)
        assert hospital.rows()[film.SOPInstanceUID].outcome == "timed out"
        hospital.control.clear_plans()

        hospital.collect(batch)

        assert hospital.rows()[film.SOPInstanceUID].is_resolved
        hospital.summarize()

    def test_the_service_is_asked_a_last_time(self, hospital):
        (film,) = hospital.xray()
        hospital.control.plan(film.SOPInstanceUID, processing_seconds=0.3)
        batch = uploaded(hospital)
        operator, _ = deferral(hospital, batch)
        time.sleep(0.3)
        operator.resume_execution("resume", {"event": ResultsEvent(Wake.DEADLINE).to_payload()}, hospital.context())
        assert hospital.rows()[film.SOPInstanceUID].outcome == "ready"


class TestAnEventThatIsNotUnderstood:
    @pytest.mark.parametrize(
        "event",
        [
            None,
            {},
            "all",
            [],
            {"wake": "all"},
            {"wake": "some day", "urgent": [], "done": []},
            {"wake": "all", "urgent": None, "done": []},
            {"wake": "all", "urgent": [], "done": ["x"]},
            {"status": "success"},
        ],
    )
    def test_raises_and_is_never_taken_for_a_good_one(self, hospital, event):
        hospital.xray()
        batch = uploaded(hospital)
        with pytest.raises(ValueError, match="empty or not understood") as failure:
            hospital.collector(batch).resume(hospital.context(), event)
        assert QureRetryPolicy().evaluate(failure.value, 1, 3).action.value == "default"


class TestUnknownIsNotNormal:
    @pytest.mark.parametrize(
        "patch", [{"triage_status": None}, {"triage_status": ""}, {"triage_status": "Fine"}, {"triage_status": 3}]
    )
    def test_a_triage_word_that_is_missing_or_new_is_unknown(self, hospital, patch):
        (film,) = hospital.xray()
        hospital.control.plan(film.SOPInstanceUID, findings=[], patch=patch)
        summary = hospital.night()
        assert [row["meaning"] for row in summary["resources"]] == ["unknown"]
        assert summary["meanings"] == {"unknown": 1}

    def test_an_invalid_scan_says_routine_and_is_no_result(self, hospital):
        (film,) = hospital.xray()
        hospital.control.plan(film.SOPInstanceUID, outcome="invalid")
        summary = hospital.night()
        (row,) = summary["resources"]
        assert (row["outcome"], row["meaning"], row["triage"]) == ("invalid", "unknown", "Routine")
        assert summary["meanings"] == {}

    @pytest.mark.parametrize("words", ["critical", "CRITICAL", " Critical "])
    def test_the_case_of_a_word_does_not_hide_what_is_urgent(self, hospital, words):
        series = hospital.ct()[0].SeriesInstanceUID
        hospital.control.plan(series, triage=words)
        hospital.process(hospital.plan())
        assert hospital.rows()[series].meaning == "urgent"


class TestAResultBeforeItsFiles:
    def test_a_file_that_comes_late_is_added(self, hospital):
        (film,) = hospital.xray()
        hospital.control.plan(film.SOPInstanceUID, kinds=("sc_thumbnail", "report_pdf"))
        batch = uploaded(hospital)
        hospital.control.inject(MissingFiles(kinds=("report_pdf",)))
        hospital.collect(batch)

        row = hospital.rows()[film.SOPInstanceUID]
        assert row.settled_at
        assert {asset["kind"] for asset in hospital.result(row)["assets"]} == {"sc_thumbnail", "report_pdf"}
        assert hospital.control.count("asset", status=200) == 2

    def test_the_second_look_comes_no_sooner_than_files_may(self, hospital):
        hospital.xray()
        batch = uploaded(hospital)
        _, waiting = deferral(hospital, batch, settle_seconds=0.6)
        begun = time.monotonic()
        fire(waiting.trigger)
        assert time.monotonic() - begun >= 0.6

    def test_the_task_itself_may_be_the_second_look(self, hospital):
        (film,) = hospital.xray()
        batch = uploaded(hospital)
        deferral(hospital, batch, settle_seconds=0.2)
        time.sleep(0.25)
        hospital.collector(batch, settle_seconds=0.2).execute(hospital.context())
        assert hospital.rows()[film.SOPInstanceUID].settled_at

    def test_but_not_too_soon_after_the_first(self, hospital):
        (film,) = hospital.xray()
        batch = uploaded(hospital)
        for _ in range(2):
            deferral(hospital, batch, settle_seconds=30)
        assert hospital.rows()[film.SOPInstanceUID].settled_at is None

    def test_and_not_where_files_were_added_since(self, hospital):
        (film,) = hospital.xray()
        hospital.control.plan(film.SOPInstanceUID, kinds=("sc_thumbnail", "report_pdf"))
        batch = uploaded(hospital)
        hospital.control.inject(MissingFiles(kinds=("report_pdf",)))
        deferral(hospital, batch, settle_seconds=0.2)
        time.sleep(0.25)
        deferral(hospital, batch, settle_seconds=0.2)
        row = hospital.rows()[film.SOPInstanceUID]
        assert row.settled_at is None
        assert len(hospital.result(row)["assets"]) == 2

    def test_a_set_that_never_stops_growing_is_taken_after_300_s(self, hospital, monkeypatch):
        (film,) = hospital.xray()
        batch = uploaded(hospital)
        monkeypatch.setattr(trigger_module, "STABLE_LIMIT_SECONDS", 0.4)
        kinds = ("sc_thumbnail", "report_pdf", "sc", "report_sr")
        for round_ in range(1, 40):
            hospital.control.inject(MissingFiles(kinds=kinds[: round_ % 3 + 1]))
        hospital.collect(batch)
        assert hospital.rows()[film.SOPInstanceUID].settled_at

    def test_one_without_any_file_is_waited_for_that_long(self, hospital, monkeypatch):
        (film,) = hospital.xray()
        kinds = ("report_pdf", "report_sr")
        hospital.control.plan(film.SOPInstanceUID, kinds=kinds, delays=dict.fromkeys(kinds, 2.0))
        batch = uploaded(hospital)
        hospital.collect(batch)
        assert len(hospital.result(hospital.rows()[film.SOPInstanceUID])["assets"]) == 2

    def test_and_then_the_night_says_so(self, hospital, monkeypatch):
        for module in (trigger_module, collect_module):
            monkeypatch.setattr(module, "STABLE_LIMIT_SECONDS", 0.2)
        (film,) = hospital.xray()
        hospital.control.plan(film.SOPInstanceUID, kinds=())
        hospital.collect(uploaded(hospital))
        with pytest.raises(NightUnresolvedError, match="ready without any file"):
            hospital.summarize()

    def test_and_so_it_does_of_files_that_have_no_address(self, hospital):
        (film,) = hospital.xray()
        patch = {"result": {"files": {"report_sr": ["/media/report.dcm"]}}}
        hospital.control.plan(film.SOPInstanceUID, kinds=("report_pdf", "report_sr"), patch=patch)
        hospital.collect(uploaded(hospital))
        with pytest.raises(NightUnresolvedError, match="files passed over: not an http or https address"):
            hospital.summarize()

    def test_the_limit_is_300_s(self):
        assert trigger_module.STABLE_LIMIT_SECONDS == 300

    def test_an_address_that_expired_is_asked_for_again(self, hospital, monkeypatch):
        (film,) = hospital.xray()
        hospital.control.plan(film.SOPInstanceUID, kinds=("sc_thumbnail", "report_pdf"))
        batch = uploaded(hospital)
        hospital.control.inject(Answer(kind="asset", status=403, body="<Error>Request has expired</Error>"))
        hospital.control.forget_requests()

        hospital.collect(batch)

        assert len(hospital.result(hospital.rows()[film.SOPInstanceUID])["assets"]) == 2
        assert hospital.control.count("asset", status=403) == 1

    def test_a_file_that_came_in_part_is_fetched_whole(self, hospital):
        (film,) = hospital.xray()
        hospital.control.plan(film.SOPInstanceUID, kinds=("report_pdf",))
        batch = uploaded(hospital)
        hospital.control.inject(Truncate(kind="asset"))
        hospital.control.inject(Reset(kind="asset", at="body", after_bytes=100))
        hospital.collect(batch)
        row = hospital.rows()[film.SOPInstanceUID]
        (asset,) = hospital.result(row)["assets"]
        content = (hospital.root / row.store_path / asset["name"]).read_bytes()
        assert len(content) == asset["size"]
        assert content.startswith(b"%PDF")
        assert content.rstrip().endswith(b"%%EOF")


class TestAFileThatCannotBeFetched:
    def test_fails_the_task_after_everything_else_and_says_why(self, hospital):
        bad, good = hospital.xray(images=2)
        hospital.control.plan(bad.SOPInstanceUID, kinds=("sc_thumbnail", "report_pdf"), missing=("report_pdf",))
        batch = uploaded(hospital)

        with pytest.raises(StepIncompleteError, match="Fetching results failed for 1 of"):
            hospital.collect(batch)

        rows = hospital.rows()
        assert rows[good.SOPInstanceUID].is_resolved
        assert not rows[bad.SOPInstanceUID].is_resolved
        assert "no longer good" in rows[bad.SOPInstanceUID].reason
        with pytest.raises(NightUnresolvedError, match="no longer good"):
            hospital.summarize()

    def test_and_the_retry_fetches_it(self, hospital):
        (film,) = hospital.xray()
        batch = uploaded(hospital)
        hospital.control.inject(Answer(kind="asset", status=500, times=None))
        with pytest.raises(StepIncompleteError):
            hospital.collect(batch)
        hospital.control.clear_faults()
        hospital.collect(batch)
        assert hospital.rows()[film.SOPInstanceUID].is_resolved

    def test_is_not_said_to_have_had_no_result_when_the_deadline_passes(self, hospital):
        (film,) = hospital.xray()
        batch = uploaded(hospital, wait_seconds=1)
        time.sleep(1)
        hospital.control.inject(Answer(kind="asset", status=500, times=None))
        with pytest.raises(StepIncompleteError):
            hospital.collect(batch)
        row = hospital.rows()[film.SOPInstanceUID]
        assert "no result" not in row.reason
        assert not row.is_resolved

    def test_a_retry_after_the_deadline_still_fetches_what_is_ready(self, hospital):
        (film,) = hospital.xray()
        batch = uploaded(hospital, wait_seconds=1)
        time.sleep(1)
        hospital.control.inject(Answer(kind="asset", status=500, times=None))
        with pytest.raises(StepIncompleteError):
            hospital.collect(batch)
        hospital.control.clear_faults()
        hospital.collect(batch)
        assert hospital.rows()[film.SOPInstanceUID].is_resolved

    def test_a_store_that_is_full_is_said_so_without_naming_any_path(self, hospital, monkeypatch):
        (film,) = hospital.xray()
        batch = uploaded(hospital)
        real = Store.put

        def full(self, local, relative):
            if relative.startswith("studies/"):
                raise OSError(errno.ENOSPC, "No space left on device", str(self.path(relative)))
            real(self, local, relative)

        monkeypatch.setattr(Store, "put", full)
        with pytest.raises(StepIncompleteError, match="No space left on device") as failure:
            hospital.collect(batch)
        assert film.StudyInstanceUID not in str(failure.value)
        assert QureRetryPolicy().evaluate(failure.value, 1, 3).action.value == "default"
        assert "No space left" in hospital.rows()[film.SOPInstanceUID].reason

    def test_a_result_of_more_files_than_anybody_wants_is_recorded_and_not_fetched(self, hospital, monkeypatch):
        fields = json.loads(os.environ["AIRFLOW_CONN_QURE_DEFAULT"])
        fields["extra"]["max_assets"] = 3
        monkeypatch.setenv("AIRFLOW_CONN_QURE_DEFAULT", json.dumps(fields))
        (film,) = hospital.xray()
        batch = uploaded(hospital)
        hospital.collect(batch)
        row = hospital.rows()[film.SOPInstanceUID]
        assert (row.outcome, "max_assets" in row.reason) == ("failed", True)
        assert hospital.control.count("asset") == 0

    def test_one_that_vanished_between_question_and_answer_is_asked_for_again(self, hospital):
        (film,) = hospital.xray()
        hospital.control.plan(film.SOPInstanceUID, kinds=("report_pdf",))
        batch = uploaded(hospital)
        hospital.control.inject(Answer(kind="asset", status=403))
        hospital.control.inject(MissingFiles(skip=1))
        with pytest.raises(StepIncompleteError, match="lost files"):
            hospital.collect(batch)
        hospital.collect(batch)
        assert hospital.rows()[film.SOPInstanceUID].is_resolved

    def test_one_that_will_never_come_is_recorded_and_not_retried(self, hospital, monkeypatch):
        fields = json.loads(os.environ["AIRFLOW_CONN_QURE_DEFAULT"])
        fields["extra"]["max_asset_bytes"] = 1024
        monkeypatch.setenv("AIRFLOW_CONN_QURE_DEFAULT", json.dumps(fields))
        bad, good = hospital.xray(images=2)
        hospital.control.plan(bad.SOPInstanceUID, kinds=("report_pdf",))
        hospital.control.plan(good.SOPInstanceUID, kinds=("sc_thumbnail",))
        batch = uploaded(hospital)
        hospital.collect(batch)
        rows = hospital.rows()
        assert rows[good.SOPInstanceUID].is_resolved
        assert rows[bad.SOPInstanceUID].outcome == "failed"
        assert "max_asset_bytes" in rows[bad.SOPInstanceUID].reason
        with pytest.raises(NightUnresolvedError, match="max_asset_bytes"):
            hospital.summarize()


class TestWhatCouldNotBeTakenIsTriedAgain:
    """While another series of the batch is still waited for, for ever where need be."""

    FIRST = 0.6
    """Seconds, in place of a minute."""

    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch):
        monkeypatch.setattr(trigger_module, "AGAIN_SECONDS", self.FIRST)
        monkeypatch.setattr(trigger_module, "HOLD_SECONDS", 0.2)

    @pytest.fixture
    def batch(self, hospital):
        """Two CT in one batch: one urgent, one that never ends."""
        self.urgent, stuck = (hospital.ct(name)[0].SeriesInstanceUID for name in "ab")
        hospital.control.plan(self.urgent, findings=["intracranial_hemorrhage"], kinds=("report_pdf",))
        hospital.control.plan(stuck, outcome="stuck")
        batches = hospital.plan()
        for batch in batches:
            hospital.upload(batch)
            hospital.compute(batch)
        hospital.sql("UPDATE planned SET batch_id = :batch", batch=batches[0]["batch_id"])
        return batches[0]

    def arguments(self, hospital):
        folder = f"file://{hospital.root.parent / 'out'}"
        return {"notifiers": [Pager.callback("{{ alert.meaning }}: {{ alert.problem }}")], "deliver_to": [folder]}

    def resumed(self, hospital, operator, event):
        """Resume a task until it waits again."""
        with pytest.raises(TaskDeferred) as deferred:
            operator.resume_execution("resume", {"event": event}, hospital.context())
        return deferred.value

    def delivered(self, hospital):
        return list((hospital.root.parent / "out").rglob("*.pdf"))

    def key(self, hospital):
        return hospital.rows()[self.urgent].id

    def test_an_urgent_one_is_fetched_and_delivered_as_soon_as_its_files_come(self, hospital, batch):
        hospital.control.inject(Answer(kind="asset", status=503, times=None))
        operator, waiting = deferral(hospital, batch, **self.arguments(hospital))
        assert self.delivered(hospital) == []
        hospital.control.clear_faults()
        begun = time.time()

        event = fire(waiting.trigger)
        self.resumed(hospital, operator, event)

        assert (event["wake"], event["urgent"]) == ("urgent", [self.key(hospital)])
        assert time.time() - begun < 20
        assert self.delivered(hospital)
        assert Pager.told == [("task", "urgent: ")]

    def test_it_is_left_alone_ever_longer_while_they_do_not(self, hospital, batch):
        hospital.control.inject(Answer(kind="asset", status=503, times=None))
        operator, waiting = deferral(hospital, batch, **self.arguments(hospital))
        tries = [time.time()]
        for _ in range(3):
            event = fire(waiting.trigger)
            tries.append(time.time())
            assert event["urgent"] == [self.key(hospital)]
            waiting = self.resumed(hospital, operator, event)
        waits = [after - before for before, after in itertools.pairwise(tries)]
        assert all(wait >= 0.9 * self.FIRST * 2**number for number, wait in enumerate(waits)), waits

    def test_people_are_told_once_that_it_is_not_there(self, hospital, batch):
        arguments = self.arguments(hospital)
        hospital.control.inject(Answer(kind="asset", status=503, times=None))
        operator, waiting = deferral(hospital, batch, **arguments)
        assert [text for _, text in Pager.told] == ["urgent: "]
        for _ in range(2):
            waiting = self.resumed(hospital, operator, fire(waiting.trigger))
        with pytest.raises(NightUnresolvedError):
            hospital.summarize(notifiers=arguments["notifiers"])
        assert [text for _, text in Pager.told] == [
            "urgent: ",
            "urgent: its files could not be fetched so far; they are asked for again",
        ]

    def test_one_that_was_fetched_before_is_not_said_to_be_missing(self, hospital, batch):
        operator, waiting = deferral(hospital, batch, **self.arguments(hospital))
        row = hospital.rows()[self.urgent]
        assert row.store_path
        shutil.rmtree(hospital.root / row.store_path)
        hospital.control.inject(Answer(kind="asset", status=503, times=None))
        for _ in range(3):
            waiting = self.resumed(hospital, operator, fire(waiting.trigger))
        assert waiting.trigger.again[0][1] > 1
        assert [text for _, text in Pager.told] == ["urgent: "]

    def test_a_wake_for_another_tries_it_too_and_does_not_put_it_off(self, hospital, batch):
        hospital.control.inject(Answer(kind="asset", status=503, times=None))
        operator, waiting = deferral(hospital, batch, **self.arguments(hospital))
        event = ResultsEvent(Wake.SOME).to_payload() | {"again": waiting.trigger.again}
        assert self.resumed(hospital, operator, event).trigger.again == waiting.trigger.again
        hospital.control.clear_faults()
        assert self.resumed(hospital, operator, event).trigger.again == []

    def test_a_pause_that_the_service_asks_for_is_kept(self, hospital, batch):
        hospital.control.inject(Answer(kind="asset", status=503, times=None, headers={"Retry-After": "1000"}))
        begun = time.time()
        _, waiting = deferral(hospital, batch)
        ((key, times, at),) = waiting.trigger.again
        assert (key, times) == (self.key(hospital), 1)
        assert at >= begun + 1000

    def test_a_question_that_fails_for_what_the_trigger_saw_wakes_nobody_again_at_once(self, hospital, batch):
        hospital.control.plan(self.urgent, outcome="stuck")
        operator, waiting = deferral(hospital, batch, **self.arguments(hospital))
        assert waiting.trigger.again == []
        hospital.control.plan(self.urgent, findings=["intracranial_hemorrhage"])
        event = fire(waiting.trigger)
        hospital.control.inject(Answer(kind="results", uid=self.urgent, status=503))
        begun = time.time()
        waiting = self.resumed(hospital, operator, event)
        assert [each[:2] for each in waiting.trigger.again] == [[self.key(hospital), 1]]

        event = fire(waiting.trigger)

        assert time.time() - begun >= self.FIRST
        assert event["wake"] == "urgent"
        assert len(Pager.told) == 1

    def test_what_blamed_the_settings_is_asked_again(self, hospital, batch):
        hospital.control.inject(Answer(kind="results", uid=self.urgent, status=401))
        operator, waiting = deferral(hospital, batch, **self.arguments(hospital))
        event = fire(waiting.trigger)
        assert event["urgent"] == [self.key(hospital)]
        self.resumed(hospital, operator, event)
        assert self.delivered(hospital)

    def test_it_does_not_hold_up_what_is_there(self, hospital, batch, monkeypatch):
        for name in ("AGAIN_SECONDS", "HOLD_SECONDS"):
            monkeypatch.setattr(trigger_module, name, 60.0)
        hospital.control.inject(Answer(kind="asset", uid=self.urgent, status=503, times=None))
        _, waiting = deferral(hospital, batch)
        hospital.control.clear_plans()
        begun = time.monotonic()
        event = fire(waiting.trigger)
        assert event["wake"] == "some"
        assert len(event["done"]) == 1
        assert time.monotonic() - begun < 20

    def test_where_nothing_else_is_waited_for_the_task_fails_and_is_retried(self, hospital, batch):
        hospital.control.inject(Answer(kind="asset", uid=self.urgent, status=503, times=None))
        hospital.meanwhile = hospital.control.clear_plans
        with pytest.raises(StepIncompleteError):
            hospital.collect(batch)


class TestAnAnswerThatChanges:
    """The service may say something else when it is asked again, with as many files."""

    @pytest.fixture
    def changing(self, hospital):
        series = hospital.ct()[0].SeriesInstanceUID
        hospital.control.plan(series, findings=[], kinds=("report_sr",))
        batch = uploaded(hospital)

        def change():
            hospital.control.plan(series, findings=["intracranial_hemorrhage"], kinds=("report_sr",))

        return series, batch, change

    def test_brings_its_own_files_and_keeps_none_of_before(self, hospital, changing):
        series, batch, hospital.meanwhile = changing
        hospital.collect(batch)

        row = hospital.rows()[series]
        (asset,) = hospital.result(row)["assets"]
        report = pydicom.dcmread(hospital.root / row.store_path / asset["name"])
        texts = [str(element.value) for element in report.iterall() if element.keyword == "TextValue"]
        assert row.meaning == "urgent"
        assert any("emorrhage" in text for text in texts), texts
        assert [path.name for path in (hospital.root / row.store_path).glob("*.dcm")] == [asset["name"]]

    def test_wakes_the_task_at_once_where_it_is_urgent_now(self, hospital, changing):
        _, batch, hospital.meanwhile = changing
        hospital.collect(batch)
        assert hospital.events[0]["wake"] == "urgent"

    def test_is_looked_at_again(self, hospital, changing):
        series, batch, change = changing
        deferral(hospital, batch, settle_seconds=0.2)
        time.sleep(0.25)
        change()
        deferral(hospital, batch, settle_seconds=0.2)
        assert hospital.rows()[series].settled_at is None

    def test_leaves_nothing_of_before_where_its_files_cannot_be_fetched(self, hospital, changing):
        series, batch, change = changing
        deferral(hospital, batch, settle_seconds=0.2)
        assert hospital.rows()[series].meaning == "no finding of this product"
        time.sleep(0.25)
        change()
        hospital.control.inject(Answer(kind="asset", status=500, times=None))
        with pytest.raises(StepIncompleteError):
            deferral(hospital, batch, settle_seconds=0.2)
        row = hospital.rows()[series]
        assert (row.outcome, row.meaning, row.triage) == ("pending", "unknown", None)
        assert row.reason.startswith("fetching: ")

    def test_while_an_address_is_asked_for_anew_is_not_mixed_with_the_old(self, hospital, changing):
        series, batch, change = changing
        hospital.control.inject(Answer(kind="asset", status=403, times=None))
        real = fetching._download

        def late(*arguments):
            change()
            return real(*arguments)

        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(fetching, "_download", late)
            with pytest.raises(StepIncompleteError, match="changed while its files were fetched"):
                hospital.collect(batch)
        assert hospital.rows()[series].store_path is None


class TestWhatLiesInTheStore:
    def test_holds_no_address_that_grants_access(self, hospital):
        hospital.xray()
        hospital.ct()
        hospital.night()
        for path in hospital.root.rglob("*.json"):
            content = path.read_text(encoding="utf-8")
            assert "/assets/" not in content, path
            assert "expires=" not in content, path
        assert b"expires=" not in (hospital.root / "ledger.sqlite3").read_bytes()

    def test_every_asset_is_what_its_name_and_sum_say(self, hospital):
        hospital.ct()
        hospital.night()
        (row,) = hospital.rows().values()
        assets = hospital.result(row)["assets"]
        assert assets
        for asset in assets:
            content = (hospital.root / row.store_path / asset["name"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == asset["sha256"]
            assert len(content) == asset["size"]
        kinds = {asset["media"]: asset["name"].rsplit(".", 1)[1] for asset in assets}
        assert kinds["application/dicom"] == "dcm"

    def test_a_listing_shows_study_series_image_and_revision(self, hospital):
        (film,) = hospital.xray()
        hospital.night()
        study, series, image = film.StudyInstanceUID, film.SeriesInstanceUID, film.SOPInstanceUID
        assert (hospital.root / "studies" / study / series / image / "r1" / "result.json").is_file()

    def test_nothing_is_left_of_what_was_on_its_way(self, hospital):
        hospital.xray()
        batch = uploaded(hospital)
        hospital.control.inject(Answer(kind="asset", status=500, times=None))
        with pytest.raises(StepIncompleteError):
            hospital.collect(batch)
        assert list((hospital.root / ".scratch").iterdir()) == []

    def test_a_damaged_result_is_fetched_anew_and_holds_back_nobody(self, hospital):
        films = hospital.xray(images=2)
        batch = uploaded(hospital)
        row = hospital.rows()[films[0].SOPInstanceUID]
        folder = hospital.root / "studies" / films[0].StudyInstanceUID / films[0].SeriesInstanceUID / row.uid / "r1"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text('{"schema": 99}')
        hospital.collect(batch)
        assert {each.outcome for each in hospital.rows().values()} == {"ready"}
        assert hospital.result(hospital.rows()[row.uid])["assets"]


class TestTheServicesErrors:
    def test_a_wrong_token_fails_at_once(self, hospital):
        hospital.xray()
        batch = uploaded(hospital)
        hospital.control.configure(token="another")
        with pytest.raises(QureSettingsError, match="token") as failure:
            hospital.collect(batch)
        assert QureRetryPolicy().evaluate(failure.value, 1, 3).action.value == "fail"

    def test_a_token_withdrawn_while_waiting_wakes_the_task_which_fails(self, hospital):
        (film,) = hospital.xray()
        hospital.control.plan(film.SOPInstanceUID, outcome="stuck")
        batch = uploaded(hospital)
        operator, waiting = deferral(hospital, batch)
        hospital.control.configure(token="another")
        event = fire(waiting.trigger)
        assert event["wake"] == "settings"
        with pytest.raises(QureSettingsError, match="token"):
            operator.resume_execution("resume", {"event": event}, hospital.context())

    def test_errors_that_pass_cost_only_time(self, hospital):
        (film,) = hospital.xray()
        hospital.control.plan(film.SOPInstanceUID, processing_seconds=0.3)
        batch = uploaded(hospital)
        for status in (500, 502, 503):
            hospital.control.inject(Answer(kind="results", status=status, skip=1))
        hospital.control.inject(Reset(kind="results", skip=2))
        hospital.control.inject(Answer(kind="results", status=200, body="<html>login</html>", skip=1))
        hospital.collect(batch)
        assert hospital.rows()[film.SOPInstanceUID].is_resolved

    def test_a_pause_that_the_service_asks_for_is_kept_while_polling(self, hospital):
        (film,) = hospital.xray()
        hospital.control.plan(film.SOPInstanceUID, processing_seconds=0.2)
        batch = uploaded(hospital)
        _, waiting = deferral(hospital, batch)
        time.sleep(0.2)
        hospital.control.inject(Answer(kind="results", status=429, headers={"Retry-After": "2"}))
        begun = time.monotonic()
        fire(waiting.trigger)
        assert time.monotonic() - begun >= 2

    @pytest.mark.parametrize("status", [401, 403, 302])
    def test_an_answer_to_one_that_blames_the_settings_holds_back_no_other(self, hospital, status):
        urgent, refused, later = (hospital.ct(name)[0].SeriesInstanceUID for name in "abc")
        batches = hospital.plan()
        for batch in batches:
            hospital.upload(batch)
            hospital.compute(batch)
        hospital.sql("UPDATE planned SET batch_id = :batch", batch=batches[0]["batch_id"])
        hospital.control.plan(urgent, findings=["intracranial_hemorrhage"], kinds=("report_pdf",))
        hospital.control.plan(later, processing_seconds=1.0, kinds=("report_pdf",))
        headers = {"Location": "https://login.example/"} if status == 302 else {}
        hospital.control.inject(Answer(kind="results", uid=refused, status=status, times=None, headers=headers))

        with pytest.raises((StepIncompleteError, QureSettingsError)) as failure:
            hospital.collect(batches[0], notifiers=[Pager.callback()])

        assert QureRetryPolicy().evaluate(failure.value, 1, 3).action.value == "fail"
        assert len(Pager.told) == 1
        rows = hospital.rows()
        assert rows[urgent].is_resolved
        assert rows[later].is_resolved
        assert f"{status}: " in rows[refused].reason

    def test_one_image_outside_the_workspace_is_that_images_outcome(self, hospital, monkeypatch):
        monkeypatch.setattr(trigger_module, "GRACE_SECONDS", 0.0)
        denied, ready = hospital.xray(images=2)
        hospital.control.plan(denied.SOPInstanceUID, outcome="denied")
        batch = uploaded(hospital)
        hospital.collect(batch)
        rows = hospital.rows()
        assert rows[ready.SOPInstanceUID].is_resolved
        assert (rows[denied.SOPInstanceUID].outcome, rows[denied.SOPInstanceUID].is_resolved) == ("denied", False)

    def test_if_all_are_the_source_is_to_be_checked(self, hospital):
        films = hospital.xray(images=2)
        hospital.control.plan(films[0].StudyInstanceUID, outcome="denied")
        batch = uploaded(hospital)
        with pytest.raises(QureSettingsError, match="Source"):
            hospital.collect(batch)

    def test_one_alone_that_is_denied_right_after_its_upload_is_asked_for_again(self, hospital):
        (film,) = hospital.xray()
        hospital.control.inject(Answer(kind="results", uid=film.SOPInstanceUID, status=403, json_body={}))
        batch = uploaded(hospital)
        hospital.collect(batch)
        assert hospital.rows()[film.SOPInstanceUID].is_resolved

    def test_the_last_of_a_batch_that_is_denied_is_its_own_outcome(self, hospital, monkeypatch):
        monkeypatch.setattr(trigger_module, "GRACE_SECONDS", 2.0)
        monkeypatch.setattr(trigger_module, "SHARE", 0.5)
        denied, ready = hospital.xray(images=2)
        hospital.control.plan(denied.SOPInstanceUID, outcome="denied")
        batch = uploaded(hospital)
        hospital.collect(batch)
        assert len(hospital.events) > 1
        assert {uid: row.outcome for uid, row in hospital.rows().items()} == {
            denied.SOPInstanceUID: "denied",
            ready.SOPInstanceUID: "ready",
        }

    def test_a_service_that_is_away_is_waited_for_in_the_triggerer(self, hospital):
        films = hospital.xray(images=40)
        batch = uploaded(hospital)
        hospital.control.forget_requests()
        hospital.control.inject(Answer(kind="results", status=503, times=None))
        with pytest.raises(TaskDeferred):
            hospital.collector(batch).execute(hospital.context())
        assert hospital.control.count("results") <= 12
        assert {row.outcome for row in hospital.rows().values()} == {None, "pending"}
        assert len(films) == 40

    def test_a_few_that_never_answer_keep_no_other_from_being_asked(self, hospital):
        films = hospital.xray(images=30)
        bad = sorted(film.SOPInstanceUID for film in films)[:10]
        for uid in bad:
            hospital.control.inject(Answer(kind="results", status=500, times=None, uid=uid))
        (batch,) = hospital.plan(wait_seconds=3.0)
        hospital.upload(batch)
        with pytest.raises(StepIncompleteError, match="failed for 10 of"):
            hospital.collect(batch)
        rows = hospital.rows()
        assert {rows[uid].outcome for uid in bad} == {"pending"}
        assert all(rows[uid].reason.startswith("asking: ") for uid in bad)
        assert {row.outcome for uid, row in rows.items() if uid not in bad} == {"ready"}

    def test_a_ct_that_was_never_computed_is_said_so_after_a_while(self, hospital, monkeypatch):
        monkeypatch.setattr(trigger_module, "GRACE_SECONDS", 0.0)
        series = hospital.ct()[0].SeriesInstanceUID
        (batch,) = hospital.plan()
        hospital.upload(batch)
        hospital.collect(batch)
        assert hospital.rows()[series].outcome == "not computed"

    def test_the_answer_that_looks_final_and_is_not_is_waited_for(self, hospital):
        series = hospital.ct()[0].SeriesInstanceUID
        hospital.control.plan(series, processing_seconds=0.6, validity_seconds=0.6)
        batch = uploaded(hospital)
        hospital.collect(batch)
        assert hospital.rows()[series].outcome == "ready"

    def test_but_not_for_ever(self, hospital, monkeypatch):
        monkeypatch.setattr(trigger_module, "GRACE_SECONDS", 0.3)
        series = hospital.ct()[0].SeriesInstanceUID
        hospital.control.plan(series, outcome="stuck", validity_seconds=600)
        batch = uploaded(hospital)
        hospital.collect(batch)
        row = hospital.rows()[series]
        assert (row.is_over, row.is_resolved) == (True, False)
        assert "Validity not determined" in row.reason

    def test_a_result_that_is_taken_back_is_waited_for_again(self, hospital):
        """Somebody else asked for it to be computed again, just as we came for its files."""
        series = hospital.ct()[0].SeriesInstanceUID
        batch = uploaded(hospital)
        operator, waiting = deferral(hospital, batch)
        event = fire(waiting.trigger)
        assert event["done"]
        hospital.control.inject(Answer(kind="results", status=202, json_body={"success": False}))

        with pytest.raises(TaskDeferred):
            operator.resume_execution("resume", {"event": event}, hospital.context())

        row = hospital.rows()[series]
        assert not row.is_over
        hospital.collect(batch)
        assert hospital.rows()[series].is_resolved


class TestTwoMayRunAtOnce:
    def test_an_orphan_stops_when_a_newer_try_took_the_batch(self, hospital, monkeypatch):
        films = hospital.xray(images=8)
        batch = uploaded(hospital)
        real = fetching.fetch_result
        fetched = []

        def overtake(*arguments, **options):
            if not fetched:
                with hospital.ledger() as ledger:
                    ledger.take_lease(batch["batch_id"], "the newer try")
            fetched.append(arguments)
            return real(*arguments, **options)

        monkeypatch.setattr(fetching, "fetch_result", overtake)
        with pytest.raises(LeaseLostError):
            hospital.collect(batch)
        assert len(fetched) <= PARALLEL < len(films)

    def test_the_resumed_task_is_the_same_try(self, hospital):
        (film,) = hospital.xray()
        hospital.control.plan(film.SOPInstanceUID, processing_seconds=0.2)
        batch = uploaded(hospital)
        context = hospital.context()
        hospital.drive(hospital.collector(batch), context)
        with hospital.ledger() as ledger:
            ledger.check_lease(batch["batch_id"], str(context["ti"].id))


class TestTheTrigger:
    def trigger(self, hospital, batch, **arguments):
        return QureResultsTrigger(
            **{
                "qure_conn_id": "qure_default",
                "deadline": time.time() + 60,
                "batch_id": batch["batch_id"],
                "store_root": str(hospital.root),
                "pace": {"first_poll": 0.02, "max_poll": 0.1, "settle": 0.05},
                **arguments,
            }
        )

    def test_what_it_says_of_itself_makes_the_same_again(self, hospital):
        trigger = QureResultsTrigger(
            qure_conn_id="q",
            deadline=1.5,
            resources=[("1.2", "xray")],
            batch_id=3,
            store_root="/s",
            besides=(4,),
            again=[(5, 2, 1.5)],
            pace={"first_poll": 1.0, "max_poll": 2.0, "settle": 3.0},
            notifiers=[{"path": "a.B", "kwargs": {"x": 1}}],
            meanings=("urgent", "abnormal"),
            findings=("x",),
            run={"dag_id": "d", "run_id": "r", "link": ""},
        )
        path, arguments = trigger.serialize()
        assert path == "qure_provider.triggers.results.QureResultsTrigger"
        again = QureResultsTrigger(**json.loads(json.dumps(arguments)))
        assert again.serialize() == (path, arguments)
        assert vars(again) == vars(trigger)

    def test_it_fires_when_a_quarter_has_its_answer(self, hospital):
        films = hospital.xray(images=8)
        for film in films[2:]:
            hospital.control.plan(film.SOPInstanceUID, outcome="stuck")
        batch = uploaded(hospital)
        event = fire(self.trigger(hospital, batch))
        assert event["wake"] == "some"
        assert len(event["done"]) == 2

    def test_but_what_is_ready_together_wakes_the_task_once(self, hospital):
        """More than are asked for at once, or the first of them would be a quarter before the others are looked at."""
        films = hospital.xray(images=24)
        hospital.control.plan(films[-1].SOPInstanceUID, outcome="stuck")
        batch = uploaded(hospital)
        event = fire(self.trigger(hospital, batch))
        assert (event["wake"], len(event["done"])) == ("some", 23)

    def test_a_result_whose_files_keep_growing_holds_the_others_a_minute_at_most(self, hospital, monkeypatch):
        monkeypatch.setattr(trigger_module, "HOLD_SECONDS", 0.5)
        films = hospital.xray(images=4)
        batch = uploaded(hospital)
        growing = films[0].SOPInstanceUID
        kinds = ("sc_thumbnail", "report_pdf", "sc", "report_sr")
        hospital.control.plan(growing, kinds=kinds)
        for round_ in range(400):
            hospital.control.inject(MissingFiles(uid=growing, kinds=kinds[: round_ % 3 + 1]))
        begun = time.monotonic()
        event = fire(self.trigger(hospital, batch))
        assert (event["wake"], len(event["done"])) == ("some", 3)
        assert time.monotonic() - begun >= 0.5

    def test_or_when_something_has_been_there_for_a_minute(self, hospital, monkeypatch):
        monkeypatch.setattr(trigger_module, "HOLD_SECONDS", 0.5)
        films = hospital.xray(images=8)
        for film in films[1:]:
            hospital.control.plan(film.SOPInstanceUID, outcome="stuck")
        batch = uploaded(hospital)
        begun = time.monotonic()
        event = fire(self.trigger(hospital, batch))
        assert (event["wake"], len(event["done"])) == ("some", 1)
        assert time.monotonic() - begun >= 0.5

    def test_or_at_the_deadline(self, hospital):
        (film,) = hospital.xray()
        hospital.control.plan(film.SOPInstanceUID, outcome="stuck")
        batch = uploaded(hospital)
        begun = time.monotonic()
        event = fire(self.trigger(hospital, batch, deadline=time.time() + 0.5))
        assert event == {"wake": "deadline", "urgent": [], "done": [], "told": [], "again": []}
        assert 0.4 < time.monotonic() - begun < 30

    def test_an_answer_that_never_comes_holds_no_other_result(self, hospital, monkeypatch):
        monkeypatch.setattr(trigger_module, "ANSWERING_SECONDS", 0.2)
        films = hospital.xray(images=8)
        batch = uploaded(hospital)
        hospital.control.inject(Stall(kind=Kind.RESULTS, uid=films[0].SOPInstanceUID, times=None))
        begun = time.monotonic()
        event = fire(self.trigger(hospital, batch))
        assert (event["wake"], len(event["done"])) == ("some", 7)
        assert time.monotonic() - begun < 10

    def test_people_are_told_at_once_while_other_answers_drip(self, hospital, monkeypatch):
        monkeypatch.setattr(trigger_module, "ANSWERING_SECONDS", 0.2)
        films = hospital.xray(images=3)
        batch = uploaded(hospital)
        for film in films[:2]:
            hospital.control.inject(Drip(kind=Kind.RESULTS, uid=film.SOPInstanceUID, times=None, seconds=2))
        hospital.control.plan(films[2].SOPInstanceUID, findings=["nodule"])
        (notifier,) = hospital.collector(batch, notifiers=[Pager.callback()]).notifiers
        begun = time.monotonic()
        event = fire(self.trigger(hospital, batch, notifiers=[notifier], meanings=["abnormal"]))
        assert event["urgent"] == [hospital.rows()[films[2].SOPInstanceUID].id]
        assert time.monotonic() - begun < 10
        assert [where for where, _ in Pager.told] == ["triggerer"]

    def test_nor_does_it_hold_the_deadline(self, hospital):
        (film,) = hospital.xray()
        batch = uploaded(hospital)
        hospital.control.inject(Stall(kind=Kind.RESULTS, uid=film.SOPInstanceUID, times=None))
        begun = time.monotonic()
        event = fire(self.trigger(hospital, batch, deadline=time.time() + 2))
        assert event["wake"] == "deadline"
        assert time.monotonic() - begun < 10

    def test_it_says_when_the_ceiling_makes_it_ask_late(self, hospital, monkeypatch, caplog):
        monkeypatch.setattr(trigger_module, "CONCURRENCY", 1)
        films = hospital.xray(images=3)
        batch = uploaded(hospital)
        for film in films:
            hospital.control.inject(Stall(kind=Kind.RESULTS, uid=film.SOPInstanceUID, seconds=0.5))
        fire(self.trigger(hospital, batch))
        (said,) = [record for record in caplog.records if "asked for late" in record.message]
        assert "polling ceiling" in said.message

    def test_it_does_not_ask_for_what_it_is_told_to_leave_out_nor_for_what_is_over(self, hospital):
        films = hospital.xray(images=3)
        batch = uploaded(hospital)
        rows = hospital.rows()
        hospital.sql("UPDATE resources SET outcome = 'invalid' WHERE uid = :uid", uid=films[0].SOPInstanceUID)
        hospital.control.forget_requests()
        event = fire(self.trigger(hospital, batch, besides=[rows[films[1].SOPInstanceUID].id]))
        assert event["done"] == [rows[films[2].SOPInstanceUID].id]
        assert {record.uid for record in hospital.control.requests("results")} == {films[2].SOPInstanceUID}

    def test_its_event_carries_keys_only(self, hospital):
        series = slices()
        for number, each in enumerate(series):
            hospital.put(f"ct/{number}.dcm", each)
        hospital.control.plan(series[0].SeriesInstanceUID, findings=["subdural_hemorrhage"])
        batch = uploaded(hospital)
        event = fire(self.trigger(hospital, batch))
        assert set(event) == {"wake", "urgent", "done", "told", "again"}
        assert isinstance(TriggerEvent(event), TriggerEvent)
        assert all(isinstance(key, int) for key in event["urgent"] + event["done"])

    def test_neither_its_row_nor_its_event_speak_of_the_patient(self, hospital):
        (film,) = hospital.xray()
        batch = uploaded(hospital)
        trigger = self.trigger(hospital, batch)
        text = json.dumps([trigger.serialize(), fire(trigger)])
        for secret in (film.SOPInstanceUID, film.StudyInstanceUID, "SIM-1", "SIM-A1", "19700101", "PATIENT"):
            assert secret not in text


@pytest.mark.parametrize(
    "wrong", [{"page_on": ["terrible"]}, {"notifiers": ["somebody"]}, {"notifiers": [{"path": "x", "kwargs": {}}]}]
)
def test_bad_arguments_fail_when_the_dag_is_parsed(wrong):
    with pytest.raises(ValueError, match=r"triage meaning|AsyncCallback"):
        QureCollectBatchOperator(task_id="collect", batch={}, **QUICK, **wrong)


@pytest.mark.parametrize("nothing", [None, {}, "batch", {"batch_id": 1}, {"nonsense": 1}])
def test_what_is_no_batch_is_said_so(hospital, nothing):
    with pytest.raises(ValueError, match="batch must be one of the batches"):
        hospital.collector(nothing).execute(hospital.context())
