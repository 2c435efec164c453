import json
import time

import pytest
from airflow.sdk.bases.operator import TriggerFailureReason
from airflow.sdk.exceptions import AirflowSensorTimeout, TaskDeferred
from pipeline_kit import QUICK, Pager, State, fire

from qure_provider.api.errors import QureSettingsError
from qure_provider.emulator.model import Answer
from qure_provider.exports import Completeness
from qure_provider.sensors.export import QureExportSensor
from qure_provider.sensors.results import QureResultsSensor
from qure_provider.triggers.export import QureExportTrigger


class TestResults:
    @pytest.fixture
    def sent(self, hospital):
        """A film and a CT that the service holds and computes; give their UIDs."""
        film = hospital.xray()[0].SOPInstanceUID
        series = hospital.ct()[0].SeriesInstanceUID
        batches = hospital.plan()
        for batch in batches:
            hospital.upload(batch)
            if batch["route"] == "ct":
                hospital.compute(batch)
        hospital.batches = batches
        return film, series

    def sensor(self, **arguments):
        return QureResultsSensor(task_id="results", **{**QUICK, **arguments})

    def test_it_returns_what_each_result_is(self, hospital, sent):
        film, series = sent
        hospital.control.plan(series, findings=["subdural_hemorrhage"])
        outcomes = hospital.drive(self.sensor(sop_instance_uids=film, series_instance_uids=[series]))
        assert outcomes == {
            film: {"outcome": "ready", "meaning": "no finding of this product", "usecase": "qxr"},
            series: {"outcome": "ready", "meaning": "urgent", "usecase": "qer"},
        }

    def test_what_is_there_needs_no_deferral(self, hospital, sent):
        hospital.drive(self.sensor(sop_instance_uids=sent[0]))
        assert hospital.events == []

    def test_it_waits_in_the_triggerer_for_what_is_not(self, hospital, sent):
        film, series = sent
        hospital.control.plan(film, outcome="stuck")
        hospital.meanwhile = hospital.control.clear_plans
        outcomes = hospital.drive(self.sensor(sop_instance_uids=[film], series_instance_uids=series))
        assert [event["wake"] for event in hospital.events] == ["all"]
        assert {each["outcome"] for each in outcomes.values()} == {"ready"}

    def test_a_batch_can_stand_for_its_uids(self, hospital, sent):
        outcomes = {}
        for batch in hospital.batches:
            outcomes |= hospital.drive(self.sensor(batch=batch, store_root=str(hospital.root)))
        assert set(outcomes) == set(sent)

    @pytest.mark.parametrize("planned", ["invalid", "unsupported"])
    def test_an_image_that_is_not_for_it_does_not_fail_and_is_never_ready(self, hospital, sent, planned):
        hospital.control.plan(sent[0], outcome=planned)
        outcomes = hospital.drive(self.sensor(sop_instance_uids=sent[0]))
        assert outcomes == {
            sent[0]: {"outcome": planned, "meaning": "unknown", "usecase": outcomes[sent[0]]["usecase"]}
        }

    def test_nothing_to_wait_for_is_over_at_once(self, hospital):
        assert hospital.drive(self.sensor()) == {}
        assert hospital.control.requests() == []

    def test_what_can_be_no_uid_is_failed_and_not_asked_for(self, hospital):
        outcomes = hospital.drive(self.sensor(sop_instance_uids=["../studies"]))
        assert outcomes["../studies"]["outcome"] == "failed"
        assert hospital.control.requests() == []

    def test_questions_that_fail_are_put_again(self, hospital, sent):
        hospital.control.inject(Answer(kind="results", status=503, times=6))
        assert hospital.drive(self.sensor(sop_instance_uids=sent[0]))[sent[0]]["outcome"] == "ready"

    def test_a_wrong_token_fails_at_once(self, hospital, sent):
        hospital.control.configure(token="another")
        with pytest.raises(QureSettingsError, match="token"):
            hospital.drive(self.sensor(sop_instance_uids=sent[0]))

    @pytest.mark.parametrize("event", [None, {}, {"wake": "x", "urgent": [], "done": [], "told": []}])
    def test_an_event_that_is_not_understood_raises(self, hospital, sent, event):
        with pytest.raises(ValueError, match="empty or not understood"):
            self.sensor(sop_instance_uids=sent[0]).resume(hospital.context(), event)

    class TestTheDeadline:
        def sensor(self, uid, **arguments):
            return QureResultsSensor(task_id="results", sop_instance_uids=uid, **{**QUICK, **arguments})

        def deadline(self, hospital, uid, state):
            with pytest.raises(TaskDeferred) as waiting:
                self.sensor(uid, wait_seconds=1000).execute(hospital.context(state))
            return waiting.value.trigger.deadline

        def test_is_kept_over_retries_and_set_anew_by_a_clear(self, hospital, sent):
            hospital.control.plan(sent[0], outcome="stuck")
            state = State()
            first = self.deadline(hospital, sent[0], state)
            assert self.deadline(hospital, sent[0], state) == first
            hospital.run.clear_number = 1
            assert self.deadline(hospital, sent[0], state) > first

        def test_ends_the_waiting_with_a_timeout_that_says_what_to_do(self, hospital, sent):
            hospital.control.plan(sent[0], outcome="stuck")
            with pytest.raises(AirflowSensorTimeout, match="clear the task to wait again"):
                hospital.drive(self.sensor(sent[0], wait_seconds=0.3))

        def test_also_where_no_triggerer_lived(self, hospital, sent):
            hospital.control.plan(sent[0], outcome="stuck")
            sensor = self.sensor(sent[0])
            with pytest.raises(AirflowSensorTimeout):
                sensor.resume_execution("__fail__", {"error": TriggerFailureReason.TRIGGER_TIMEOUT}, hospital.context())

    class TestAWorkerThatPokes:
        def sensor(self, uid, **arguments):
            return QureResultsSensor(
                task_id="results", sop_instance_uids=uid, deferrable=False, poke_interval=0.05, **arguments
            )

        def test_waits_without_a_triggerer(self, hospital, sent):
            hospital.control.inject(Answer(kind="results", status=202, json_body={"reason": "x"}, times=3))
            assert self.sensor(sent[0]).execute(hospital.context())[sent[0]]["outcome"] == "ready"
            assert hospital.control.count("results") == 4

        def test_tells_people_once(self, hospital, sent):
            hospital.control.plan(sent[1], findings=["subdural_hemorrhage"])
            hospital.control.plan(sent[0], outcome="stuck")
            context = hospital.context()
            sensor = QureResultsSensor(
                task_id="results",
                sop_instance_uids=sent[0],
                series_instance_uids=sent[1],
                deferrable=False,
                notifiers=[Pager.callback("{{ alert.meaning }}")],
            )
            for _ in range(2):
                assert not sensor.poke(context).is_done
            assert Pager.told == [("task", "urgent")]

        def test_ends_at_the_deadline(self, hospital, sent):
            hospital.control.plan(sent[0], outcome="stuck")
            with pytest.raises(AirflowSensorTimeout):
                self.sensor(sent[0], wait_seconds=0.3).execute(hospital.context())

    class TestUrgentFirst:
        def sensor(self, uid, **arguments):
            return QureResultsSensor(
                task_id="results",
                series_instance_uids=uid,
                **{"notifiers": [Pager.callback("{{ alert.product }}")], **QUICK, **arguments},
            )

        def test_people_are_told_from_the_triggerer_and_once(self, hospital, sent):
            hospital.control.plan(sent[1], outcome="stuck")
            hospital.meanwhile = lambda: hospital.control.plan(sent[1], findings=["subdural_hemorrhage"])
            hospital.drive(self.sensor(sent[1]))
            assert Pager.told == [("triggerer", "qer")]

        def test_or_by_the_task_where_it_is_ready_at_once(self, hospital, sent):
            hospital.control.plan(sent[1], findings=["subdural_hemorrhage"])
            state = State()
            for _ in range(2):
                hospital.drive(self.sensor(sent[1]), hospital.context(state))
            assert Pager.told == [("task", "qer")]

        def test_one_that_nobody_could_be_told_of_is_told_by_the_next_look(self, hospital, sent):
            hospital.control.plan(sent[1], outcome="stuck")
            hospital.meanwhile = lambda: hospital.control.plan(sent[1], findings=["subdural_hemorrhage"])
            Pager.problems = [OSError()] * 3
            hospital.drive(self.sensor(sent[1]))
            assert Pager.told == [("triggerer", "qer")]

        def test_whom_one_notifier_told_is_not_told_again_because_another_failed(self, hospital, sent):
            hospital.control.plan(sent[1], outcome="stuck")
            hospital.meanwhile = lambda: hospital.control.plan(sent[1], findings=["subdural_hemorrhage"])
            broken = Pager.callback("{{ alert.product | no_such_filter }}")
            hospital.drive(self.sensor(sent[1], notifiers=[broken, Pager.callback("one")]))
            assert Pager.told == [("triggerer", "one")]

        def test_a_retry_tells_only_those_who_were_not(self, hospital, sent):
            hospital.control.plan(sent[1], findings=["subdural_hemorrhage"])
            state = State()
            broken = Pager.callback("{{ alert.product | no_such_filter }}")
            for notifiers in ([broken, Pager.callback("one")], [Pager.callback("one"), Pager.callback("two")]):
                sensor = QureResultsSensor(
                    task_id="results", series_instance_uids=sent[1], notifiers=notifiers, **QUICK
                )
                hospital.drive(sensor, hospital.context(state))
            assert [message for _, message in Pager.told] == ["one", "two"]

    @pytest.mark.parametrize(
        "wrong",
        [{"wait_seconds": 0}, {"page_on": ["terrible"]}, {"page_findings": "nodule"}, {"notifiers": ["somebody"]}],
    )
    def test_bad_arguments_fail_when_the_dag_is_parsed(self, wrong):
        with pytest.raises(ValueError, match=r"wait_seconds|triage meaning|page_findings must be|AsyncCallback"):
            QureResultsSensor(task_id="results", sop_instance_uids="1.2", **wrong)

    def test_it_defers_by_default_whatever_airflow_does_by_default(self):
        assert QureResultsSensor(task_id="results", sop_instance_uids="1.2").deferrable is True


class TestExport:
    def sensor(self, hospital, **arguments):
        export = str(hospital.export.parent / "{night}")
        return QureExportSensor(task_id="complete", **{"export": export, "poll_seconds": 0.05, **arguments})

    def test_a_complete_export_needs_no_waiting(self, hospital):
        hospital.xray()
        assert hospital.drive(self.sensor(hospital, quiet_seconds="0")) == Completeness.QUIET.value
        assert hospital.events == []

    def test_it_waits_in_the_triggerer_until_it_is(self, hospital):
        hospital.xray()
        hospital.meanwhile = lambda: (hospital.export / "DONE").touch()
        assert hospital.drive(self.sensor(hospital, marker="DONE")) == Completeness.MARKER.value
        assert hospital.events == [{"completeness": Completeness.MARKER.value}]

    def test_files_that_come_while_it_waits_are_seen(self, hospital):
        hospital.meanwhile = lambda: hospital.xray(images=2)
        assert hospital.drive(self.sensor(hospital, expected_files="2")) == Completeness.COUNT.value

    def test_at_the_limit_it_is_taken_as_it_is_and_that_is_said(self, hospital):
        hospital.xray()
        begun = time.monotonic()
        verdict = hospital.drive(self.sensor(hospital, marker="DONE", limit_seconds="0.4"))
        assert verdict == Completeness.LIMIT.value
        assert time.monotonic() - begun >= 0.4

    def test_an_export_that_never_came_fails(self, hospital):
        sensor = self.sensor(hospital, export="/no/such/{night}", limit_seconds=0.2)
        with pytest.raises(AirflowSensorTimeout, match="not there at the limit"):
            hospital.drive(sensor)

    def test_the_limit_is_kept_over_retries_and_set_anew_by_a_clear(self, hospital):
        state = State()

        def limit():
            with pytest.raises(TaskDeferred) as waiting:
                self.sensor(hospital, marker="DONE").execute(hospital.context(state))
            return waiting.value.trigger.limit

        first = limit()
        assert limit() == first
        hospital.run.clear_number = 1
        assert limit() > first

    @pytest.mark.parametrize("event", [None, {}, {"completeness": "surely"}, "complete"])
    def test_an_event_that_is_not_understood_raises(self, hospital, event):
        with pytest.raises(ValueError, match="empty or not understood"):
            self.sensor(hospital).resume(hospital.context(), event)

    def test_what_its_trigger_says_of_itself_makes_the_same_again(self):
        arguments = {
            "export": "/x",
            "quiet_seconds": 1.0,
            "marker": "m",
            "expected_files": 2,
            "limit": 3.0,
            "poll_seconds": 4.0,
        }
        path, said = QureExportTrigger(**arguments).serialize()
        assert path == "qure_provider.triggers.export.QureExportTrigger"
        assert json.loads(json.dumps(said)) == arguments

    def test_its_trigger_ends_at_the_limit_even_between_two_looks(self, hospital):
        begun = time.monotonic()
        event = fire(
            QureExportTrigger(
                export=str(hospital.export),
                quiet_seconds=60,
                marker="",
                expected_files=0,
                limit=time.time() + 0.3,
                poll_seconds=600,
            )
        )
        assert event == {"completeness": Completeness.LIMIT.value}
        assert time.monotonic() - begun < 60

    def test_a_pause_that_is_none_fails_when_the_dag_is_parsed(self):
        with pytest.raises(ValueError, match="poll_seconds"):
            QureExportSensor(task_id="complete", export="/x", poll_seconds=0)

    def test_the_summary_says_by_what_it_was_judged_complete(self, hospital):
        hospital.xray()
        verdict = hospital.drive(self.sensor(hospital, quiet_seconds=0))
        assert hospital.night(completeness=verdict)["completeness"] == "nothing was added for the quiet time"
