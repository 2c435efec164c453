import asyncio
import logging
import threading
import time
from typing import ClassVar

import pytest
from airflow.sdk import AsyncCallback, BaseNotifier
from airflow.sdk.exceptions import TaskDeferred
from pipeline_kit import Pager, fire

from qure_provider import settings
from qure_provider.emulator.model import Answer, Stall
from qure_provider.operators.summarize import NightUnresolvedError
from qure_provider.retries import StepIncompleteError
from qure_provider.triggers import alerts
from qure_provider.triggers import results as results_trigger

BLEEDING = ["subdural_hemorrhage"]


def sent(hospital, *series, at_once=False):
    """Plan and send all; these CT are to be critical, at once or as soon as a task waits for them."""

    def finish():
        for uid in series:
            hospital.control.plan(uid, findings=BLEEDING)

    for uid in series:
        hospital.control.plan(uid, outcome="stuck")
    batches = hospital.plan()
    for batch in batches:
        hospital.upload(batch)
        if batch["route"] == "ct":
            hospital.compute(batch)
    hospital.meanwhile = finish
    if at_once:
        finish()
    return batches


def ref(dataset):
    return settings.short_ref(dataset.StudyInstanceUID)


class TestUrgentFirst:
    def test_people_are_told_from_the_triggerer_by_the_poll_that_sees_it(self, hospital):
        first = hospital.ct()[0]
        (batch,) = sent(hospital, first.SeriesInstanceUID)
        operator = hospital.collector(batch, notifiers=[Pager.callback()])
        with pytest.raises(TaskDeferred) as waiting:
            operator.execute(hospital.context())
        assert Pager.told == []
        hospital.meanwhile()

        event = fire(waiting.value.trigger)

        assert event["wake"] == "urgent"
        assert Pager.told == [("triggerer", ref(first))]
        assert hospital.rows()[first.SeriesInstanceUID].outcome == "pending"

    def test_the_task_that_wakes_fetches_it_and_tells_nobody_again(self, hospital):
        first = hospital.ct()[0]
        (batch,) = sent(hospital, first.SeriesInstanceUID)
        hospital.collect(batch, notifiers=[Pager.callback()])
        assert [event["wake"] for event in hospital.events] == ["urgent", "all"]
        assert Pager.told == [("triggerer", ref(first))]
        assert hospital.rows()[first.SeriesInstanceUID].is_resolved

    def test_one_that_is_ready_when_the_task_asks_is_told_by_the_task_before_anything_is_fetched(self, hospital):
        first = hospital.ct()[0]
        (batch,) = sent(hospital, first.SeriesInstanceUID, at_once=True)
        hospital.control.inject(Answer(kind="asset", status=500, times=None))
        with pytest.raises(StepIncompleteError):
            hospital.collect(batch, notifiers=[Pager.callback()])
        assert Pager.told == [("task", ref(first))]

    def test_it_does_not_wait_for_a_share_of_the_batch(self, hospital):
        urgent, *others = (hospital.ct(f"ct{number}")[0].SeriesInstanceUID for number in range(5))
        for other in others:
            hospital.control.plan(other, outcome="stuck")
        batch, *_ = sent(hospital, urgent)
        hospital.sql("UPDATE planned SET batch_id = :batch", batch=batch["batch_id"])
        with pytest.raises(TaskDeferred) as waiting:
            hospital.collector(batch, notifiers=[Pager.callback()]).execute(hospital.context())
        hospital.meanwhile()
        assert fire(waiting.value.trigger)["wake"] == "urgent"

    def test_it_does_not_wait_until_every_other_was_asked_for(self, hospital, monkeypatch):
        first, *others = hospital.xray(images=9)
        hospital.control.plan(first.SOPInstanceUID, findings=["nodule"])
        for other in others:
            hospital.control.inject(Stall(kind="results", uid=other.SOPInstanceUID, seconds=1.5))
        (batch,) = sent(hospital)
        hospital.control.forget_requests()
        told = []

        async def note(self, context):
            told.append(hospital.control.count("results", status=200))

        monkeypatch.setattr(Pager, "async_notify", note)
        with pytest.raises(TaskDeferred):
            hospital.collector(batch, notifiers=[Pager.callback()], page_on=["abnormal"]).execute(hospital.context())
        assert told[0] < 9

    def test_urgent_ones_are_fetched_first(self, hospital):
        films = hospital.xray(images=6)
        last = films[-1].SOPInstanceUID
        hospital.control.plan(last, findings=["nodule"])
        (batch,) = sent(hospital)
        hospital.control.forget_requests()
        hospital.collect(batch, page_on=["abnormal"])
        fetched = [record.uid for record in sorted(hospital.control.requests("asset"), key=lambda each: each.at)]
        assert last in fetched[:4]


class TestTheRightStudyIsNamed:
    def test_two_urgent_ones_each_name_their_own(self, hospital):
        """A notifier renders its templates in place: used twice, it would name the first study again."""
        first, second = hospital.ct("a")[0], hospital.ct("b")[0]
        batches = sent(hospital, first.SeriesInstanceUID, second.SeriesInstanceUID)
        hospital.sql("UPDATE planned SET batch_id = :batch", batch=batches[0]["batch_id"])
        hospital.collect(batches[0], notifiers=[Pager.callback("{{ alert.study_ref }} {{ alert.product }}")])
        assert sorted(Pager.told) == sorted([("triggerer", f"{ref(first)} qer"), ("triggerer", f"{ref(second)} qer")])

    def test_and_by_the_task_too(self, hospital):
        first, second = hospital.ct("a")[0], hospital.ct("b")[0]
        batches = sent(hospital, first.SeriesInstanceUID, second.SeriesInstanceUID, at_once=True)
        hospital.sql("UPDATE planned SET batch_id = :batch", batch=batches[0]["batch_id"])
        hospital.collect(batches[0], notifiers=[Pager.callback()])
        assert sorted(Pager.told) == sorted([("task", ref(first)), ("task", ref(second))])

    def test_an_alert_says_where_to_look_and_nothing_of_the_patient(self, hospital, monkeypatch):
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example")
        first = hospital.ct(PatientName="CANARY^NAME", PatientID="CANARY-ID", AccessionNumber="CANARY-ACC")[0]
        (batch,) = sent(hospital, first.SeriesInstanceUID)
        hospital.collect(batch, notifiers=[Pager.callback("{{ alert.text }}")])
        ((_, text),) = Pager.told
        for part in (
            ref(first),
            "AI output, unverified",
            "urgent",
            "SIM-ROOM",
            "2026-11-20 10:15",
            "/dags/night/runs/",
        ):
            assert part in text
        for secret in ("CANARY", first.StudyInstanceUID, first.SeriesInstanceUID):
            assert secret not in text


class TestANotifierThatFails:
    def test_is_tried_again_and_told_of_once(self, hospital):
        first = hospital.ct()[0]
        (batch,) = sent(hospital, first.SeriesInstanceUID)
        Pager.problems = [OSError("pager down"), TimeoutError()]
        hospital.collect(batch, notifiers=[Pager.callback()])
        assert Pager.tries == 3
        assert Pager.told == [("triggerer", ref(first))]
        hospital.summarize()
        assert hospital.summary()["alerts"] == {"sent": 1, "failed": 0}

    def test_never_fails_the_wait_and_is_tried_by_the_task_when_it_wakes(self, hospital):
        first = hospital.ct()[0]
        (batch,) = sent(hospital, first.SeriesInstanceUID)
        Pager.problems = [OSError("pager down")] * 3
        hospital.collect(batch, notifiers=[Pager.callback()])
        assert Pager.told == [("task", ref(first))]
        assert hospital.rows()[first.SeriesInstanceUID].is_resolved

    def test_that_never_works_turns_the_night_red_and_nothing_else(self, hospital):
        first = hospital.ct()[0]
        (batch,) = sent(hospital, first.SeriesInstanceUID)
        Pager.problems = [OSError("to: CANARY-NUMBER")] * 100
        hospital.collect(batch, notifiers=[Pager.callback()])
        assert hospital.rows()[first.SeriesInstanceUID].is_resolved
        with pytest.raises(NightUnresolvedError, match="1 alerts never got through"):
            hospital.summarize()
        assert hospital.summary()["alerts"] == {"sent": 0, "failed": 1}
        assert b"CANARY-NUMBER" not in (hospital.root / "ledger.sqlite3").read_bytes()

    def test_does_not_stand_in_the_way_of_another(self, hospital):
        first = hospital.ct()[0]
        (batch,) = sent(hospital, first.SeriesInstanceUID)
        broken = Pager.callback("{{ alert.study_ref | no_such_filter }}")
        hospital.collect(batch, notifiers=[broken, Pager.callback()])
        assert Pager.told == [("triggerer", ref(first))]
        with pytest.raises(NightUnresolvedError, match="1 alerts never got through"):
            hospital.summarize()

    def test_that_hangs_is_given_up(self, hospital, monkeypatch):
        first = hospital.ct()[0]
        (batch,) = sent(hospital, first.SeriesInstanceUID)
        monkeypatch.setattr(alerts, "TRY_SECONDS", 0.05)

        async def hang(self, context):
            await asyncio.sleep(60)

        monkeypatch.setattr(Pager, "async_notify", hang)
        hospital.collect(batch, notifiers=[Pager.callback()])
        assert hospital.rows()[first.SeriesInstanceUID].is_resolved

    def test_that_hangs_delays_neither_the_wake_nor_the_fetching(self, hospital, monkeypatch):
        first = hospital.ct()[0]
        (batch,) = sent(hospital, first.SeriesInstanceUID)
        monkeypatch.setattr(results_trigger, "TELLING_SECONDS", 0.2)
        monkeypatch.setattr(alerts, "TRY_SECONDS", 3.0)
        ended = []

        async def hang(self, context):
            try:
                await asyncio.sleep(60)
            finally:
                ended.append((time.monotonic(), hospital.rows()[first.SeriesInstanceUID].outcome))

        monkeypatch.setattr(Pager, "async_notify", hang)
        with pytest.raises(TaskDeferred) as waiting:
            hospital.collector(batch, notifiers=[Pager.callback()]).execute(hospital.context())
        hospital.meanwhile()
        begun = time.monotonic()
        assert fire(waiting.value.trigger)["wake"] == "urgent"
        assert time.monotonic() - begun < 2.5
        ended.clear()
        hospital.sql("UPDATE alerts SET claimed_until = 0")  # as if that triggerer had died
        monkeypatch.setattr(alerts, "TRY_SECONDS", 1.0)
        with pytest.raises(TaskDeferred):
            hospital.collector(batch, notifiers=[Pager.callback()]).execute(hospital.context())
        assert ended[0][1] == "ready"  # it was fetched while the first try still hung

    def test_is_tried_again_by_the_next_look_in_the_triggerer(self, hospital, monkeypatch):
        first = hospital.ct()[0]
        (batch,) = sent(hospital, first.SeriesInstanceUID)
        monkeypatch.setattr(alerts, "PAUSES_SECONDS", (0.0,))
        Pager.problems = [OSError()] * 2
        hospital.collect(batch, notifiers=[Pager.callback()])
        assert Pager.told == [("triggerer", ref(first))]
        assert Pager.tries == 3

    def test_is_tried_again_while_others_are_waited_for(self, hospital, monkeypatch):
        monkeypatch.setattr(results_trigger, "TELL_AGAIN_SECONDS", 0.1)
        monkeypatch.setattr(alerts, "PAUSES_SECONDS", (0.0,))
        first, second = hospital.ct("a")[0], hospital.ct("b")[0]
        batch, *_ = sent(hospital, first.SeriesInstanceUID)
        hospital.sql("UPDATE planned SET batch_id = :batch", batch=batch["batch_id"])
        hospital.control.plan(second.SeriesInstanceUID, outcome="stuck")

        async def late(self, context):
            Pager.tries += 1
            if Pager.tries < 8:
                raise OSError("pager down")
            Pager.told.append((Pager.where, self.message))
            hospital.control.clear_plans()  # only now is there an end to waiting for the other

        monkeypatch.setattr(Pager, "async_notify", late)
        hospital.collect(batch, notifiers=[Pager.callback()])
        assert Pager.told == [("triggerer", ref(first))]
        assert hospital.rows()[first.SeriesInstanceUID].is_resolved

    def test_is_tried_once_more_when_the_night_ends(self, hospital):
        first = hospital.ct()[0]
        (batch,) = sent(hospital, first.SeriesInstanceUID)
        Pager.problems = [OSError("pager down")] * 100
        hospital.collect(batch, notifiers=[Pager.callback()])
        assert Pager.told == []
        Pager.problems = []
        hospital.summarize(notifiers=[Pager.callback()])
        assert Pager.told == [("task", ref(first))]
        assert hospital.summary()["alerts"] == {"sent": 1, "failed": 0}

    def test_leaves_no_secret_of_its_own_in_the_log(self, hospital, caplog):
        first = hospital.ct()[0]
        (batch,) = sent(hospital, first.SeriesInstanceUID)
        Pager.problems = [OSError("https://hooks.example/SECRET")] * 100
        with caplog.at_level(logging.DEBUG):
            hospital.collect(batch, notifiers=[Pager.callback()])
        assert "could not be sent" in caplog.text
        assert "SECRET" not in caplog.text


class OldPager(BaseNotifier):
    """A notifier that cannot be awaited, as those of many providers."""

    template_fields = ("message",)

    def __init__(self, message, **arguments):
        super().__init__(**arguments)
        self.message = message

    def notify(self, context):
        if Pager.problems:
            raise Pager.problems.pop(0)
        Pager.told.append((Pager.where, self.message))


class TestANotifierThatCannotBeAwaited:
    def test_tells_people_all_the_same(self, hospital, caplog):
        first = hospital.ct()[0]
        (batch,) = sent(hospital, first.SeriesInstanceUID)
        Pager.problems = [OSError("https://hooks.example/SECRET")]
        callback = AsyncCallback(OldPager, kwargs={"message": "{{ alert.study_ref }}"})
        with caplog.at_level(logging.DEBUG):
            hospital.collect(batch, notifiers=[callback])
        assert Pager.told == [("triggerer", ref(first))]
        assert "SECRET" not in caplog.text


class StuckPager(BaseNotifier):
    """A notifier that cannot be awaited and whose server answers nothing."""

    released: ClassVar[threading.Event] = threading.Event()

    def notify(self, context):
        StuckPager.released.wait(60)


class TestANotifierThatBlocks:
    @pytest.fixture(autouse=True)
    def stuck(self, monkeypatch):
        StuckPager.released = threading.Event()
        monkeypatch.setattr(alerts, "_FREE", {})
        monkeypatch.setattr(alerts, "TRY_SECONDS", 0.3)
        yield
        StuckPager.released.set()

    def test_holds_neither_the_trigger_nor_the_task_nor_another_notifier(self, hospital):
        first = hospital.ct()[0]
        (batch,) = sent(hospital, first.SeriesInstanceUID)
        begun = time.monotonic()
        hospital.collect(batch, notifiers=[AsyncCallback(StuckPager, kwargs={}), Pager.callback()])
        assert time.monotonic() - begun < 20
        assert Pager.told == [("triggerer", ref(first))]
        assert hospital.rows()[first.SeriesInstanceUID].is_resolved


class TestNobodyIsToldTwice:
    def test_a_repeat_of_the_night_pages_nobody(self, hospital):
        first = hospital.ct()[0]
        hospital.control.plan(first.SeriesInstanceUID, findings=BLEEDING)
        for clear_number in range(2):
            hospital.new_run(clear_number=clear_number)
            hospital.process(hospital.plan(), notifiers=[Pager.callback()])
        assert len(Pager.told) == 1

    def test_nor_does_a_retry_whose_files_did_not_come(self, hospital):
        first = hospital.ct()[0]
        (batch,) = sent(hospital, first.SeriesInstanceUID)
        hospital.control.inject(Answer(kind="asset", status=500, times=None))
        with pytest.raises(StepIncompleteError):
            hospital.collect(batch, notifiers=[Pager.callback()])
        hospital.control.clear_faults()
        hospital.collect(batch, notifiers=[Pager.callback()])
        assert len(Pager.told) == 1

    def test_two_runs_that_wait_for_the_same_result_tell_of_it_once(self, hospital):
        first = hospital.ct()[0]
        (batch,) = sent(hospital, first.SeriesInstanceUID)
        with pytest.raises(TaskDeferred) as waiting:
            hospital.collector(batch, notifiers=[Pager.callback()]).execute(hospital.context())
        hospital.meanwhile()

        async def both():
            made = [type(waiting.value.trigger)(**waiting.value.trigger.serialize()[1]) for _ in range(2)]
            return await asyncio.gather(*(anext(trigger.run()) for trigger in made))

        events = asyncio.run(both())
        assert [event.payload["wake"] for event in events] == ["urgent"] * 2
        assert len(Pager.told) == 1

    def test_but_who_was_told_that_it_is_unknown_is_told_that_it_is_urgent(self, hospital):
        series = hospital.ct()[0].SeriesInstanceUID
        hospital.control.plan(series, findings=[], patch={"triage_status": None})
        (batch,) = hospital.plan()
        hospital.upload(batch)
        hospital.compute(batch)
        hospital.meanwhile = lambda: hospital.control.plan(series, findings=BLEEDING)
        notifiers = [Pager.callback("{{ alert.meaning }}")]
        hospital.collect(batch, notifiers=notifiers, page_on=["urgent", "unknown"])
        assert [message for _, message in Pager.told] == ["unknown", "urgent"]

    def test_a_ledger_that_fails_silences_nobody(self, hospital, monkeypatch):
        first = hospital.ct()[0]
        (batch,) = sent(hospital, first.SeriesInstanceUID)
        with pytest.raises(TaskDeferred) as waiting:
            hospital.collector(batch, notifiers=[Pager.callback()]).execute(hospital.context())
        hospital.meanwhile()
        monkeypatch.setattr("qure_provider.ledger.ledger.Ledger.begin_alert", lambda *_, **__: 1 / 0)
        monkeypatch.setattr("qure_provider.ledger.ledger.Ledger.record_alert", lambda *_, **__: 1 / 0)
        assert fire(waiting.value.trigger)["wake"] == "urgent"
        assert len(Pager.told) == 1

    def test_but_who_was_not_told_yet_is(self, hospital):
        first = hospital.ct()[0]
        (batch,) = sent(hospital, first.SeriesInstanceUID)
        hospital.control.inject(Answer(kind="asset", status=500, times=None))
        with pytest.raises(StepIncompleteError):
            hospital.collect(batch, notifiers=[Pager.callback("one")])
        hospital.control.clear_faults()
        hospital.collect(batch, notifiers=[Pager.callback("one"), Pager.callback("two")])
        assert [message for _, message in Pager.told] == ["one", "two"]


class TestAResultThatIsTakenBack:
    def test_is_told_of_as_such(self, hospital):
        first = hospital.ct()[0]
        (batch,) = sent(hospital, first.SeriesInstanceUID, at_once=True)
        hospital.meanwhile = lambda: hospital.control.plan(first.SeriesInstanceUID, outcome="unsupported")
        notifier = Pager.callback("{{ alert.problem }}")
        hospital.collect(batch, notifiers=[notifier])
        hospital.summarize(notifiers=[notifier])
        assert Pager.told[-1][1] == "the service took it back, and it is now unsupported"


class TestWhatPages:
    def collected(self, hospital, *, findings, **arguments):
        film = hospital.xray()[0]
        hospital.control.plan(film.SOPInstanceUID, findings=findings)
        hospital.process(hospital.plan(), notifiers=[Pager.callback("{{ alert.meaning }}")], **arguments)
        return [message for _, message in Pager.told]

    def test_critical_of_xray_v2_says_only_that_something_was_found_and_pages_nobody_by_default(self, hospital):
        assert self.collected(hospital, findings=["nodule"]) == []

    def test_unless_a_site_wants_to_be_told_of_what_is_abnormal(self, hospital):
        assert self.collected(hospital, findings=["nodule"], page_on=["urgent", "abnormal"]) == ["abnormal"]

    def test_or_of_one_finding(self, hospital):
        assert self.collected(hospital, findings=["pneumothorax"], page_findings=["pneumothorax"]) == ["abnormal"]

    def test_and_not_of_another(self, hospital):
        assert self.collected(hospital, findings=["nodule"], page_findings=["pneumothorax"]) == []

    def test_a_finding_that_a_ct_decided_against_is_none(self, hospital):
        series = hospital.ct()[0].SeriesInstanceUID
        hospital.control.plan(series, findings=["midline_shift"], triage="Routine")
        hospital.process(hospital.plan(), notifiers=[Pager.callback()], page_findings=["intracranial_hemorrhage"])
        assert Pager.told == []

    def test_a_triage_that_nobody_understands_can_page_too(self, hospital):
        series = hospital.ct()[0].SeriesInstanceUID
        hospital.control.plan(series, triage="Amber")
        notifier = Pager.callback("{{ alert.triage }}")
        hospital.process(hospital.plan(), notifiers=[notifier], page_on=["urgent", "unknown"])
        assert [message for _, message in Pager.told] == ["Amber"]
