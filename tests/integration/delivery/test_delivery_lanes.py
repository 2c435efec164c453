"""What is urgent is delivered by the task that brings it, and all the rest by a task of its own beside it."""

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from pipeline_kit import Pager
from support.hl7_receiver import accept, answer

from qure_provider.delivery import courier
from qure_provider.delivery.messages import MllpDestination
from qure_provider.ledger import deliveries
from qure_provider.operators import collect
from qure_provider.operators.deliver import STUCK_SECONDS, QureDeliverOperator
from qure_provider.triggers import deliver as deliver_trigger
from qure_provider.triggers.deliver import QureOwedTrigger

COLLECTS = ["night.ct.collect", "night.xray.collect"]
SECONDS = 20


@pytest.fixture
def lane(hospital):
    """The run's task for what is routine."""
    return lambda **arguments: QureDeliverOperator(
        task_id="deliver", bringers=COLLECTS, store_root=str(hospital.root), **arguments
    )


def bleeding(hospital, name="head"):
    images = hospital.ct(name, PatientID="SIM-2", PatientName="SIMULATED^OTHER", AccessionNumber="SIM-A2")
    hospital.control.plan(images[0].SeriesInstanceUID, findings=("intracranial_hemorrhage",))
    return images[0]


def one_batch(hospital):
    """Plan all CT series as one batch."""
    hospital.xray()
    (batch,) = [batch for batch in hospital.plan(max_batches=2) if batch["route"] == "ct"]
    return batch


class TestTwoLanes:
    def test_routine_deliveries_that_hang_never_make_an_urgent_one_wait(self, hospital, ris, lane):
        for number in range(12):
            hospital.xray(f"chest-{number}")
        bleeding(hospital)
        batches = {batch["route"]: batch for batch in hospital.plan(max_batches=2)}
        hospital.process([batches["xray"]], deliver_to=["ris"], only_urgent=True)
        assert hospital.states() == {"waiting": 12}
        released = threading.Event()

        def hang(wire, message):
            released.wait(SECONDS)
            accept(wire, message)

        with ThreadPoolExecutor() as threads:
            ris.actions = [hang] * 4
            routine = threads.submit(lane(deliver_to=["ris"]).resume, hospital.context(), {"is_over": True})
            try:
                while not ris.messages:
                    time.sleep(0.01)
                ris.actions = []
                hospital.process([batches["ct"]], deliver_to=["ris"], only_urgent=True)
                assert [row.state.value for row in hospital.deliveries(urgent=True)] == ["delivered"]
                assert not routine.done()
            finally:
                ris.actions = []
                released.set()
            routine.result(SECONDS)
        assert hospital.states() == {"delivered": 13}
        hospital.summarize(deliver_to=["ris"])

    def test_in_one_batch_the_urgent_one_is_delivered_before_a_routine_one_is_fetched(self, hospital, ris):
        hospital.ct("first")
        head = bleeding(hospital)
        hospital.ct("last")
        fetched = []

        def look(wire, message):
            fetched.append([uid for uid, row in hospital.rows().items() if row.store_path])
            accept(wire, message)

        ris.actions = [look]
        hospital.process([one_batch(hospital)], deliver_to=["ris"])
        assert fetched == [[head.SeriesInstanceUID]]
        assert hospital.states() == {"delivered": 3}

    def test_one_that_the_trigger_saw_is_taken_before_anything_else_is_asked_for(self, hospital, ris):
        others = [hospital.ct(f"other-{number}")[0].SeriesInstanceUID for number in range(3)]
        head = bleeding(hospital)
        batch = one_batch(hospital)
        hospital.upload(batch)
        hospital.compute(batch)
        (urgent,) = [row.id for uid, row in hospital.rows().items() if uid == head.SeriesInstanceUID]
        outcomes = []

        def look(wire, message):
            outcomes.append({row.outcome for uid, row in hospital.rows().items() if uid in others})
            accept(wire, message)

        ris.actions = [look]
        event = {"wake": "urgent", "urgent": [urgent], "done": []}
        with contextlib.suppress(TaskDeferred):
            hospital.collector(batch, deliver_to=["ris"], only_urgent=True).resume(hospital.context(), event)
        assert outcomes == [{None}]

    def test_a_slow_receiver_of_urgent_ones_holds_no_question_for_long(self, hospital, ris, monkeypatch):
        heads = [bleeding(hospital, f"head-{number}").SeriesInstanceUID for number in range(4)]
        other = hospital.ct("other")[0].SeriesInstanceUID
        batch = one_batch(hospital)
        hospital.upload(batch)
        hospital.compute(batch)
        seen = [row.id for uid, row in hospital.rows().items() if uid in heads]
        monkeypatch.setattr(collect, "BETWEEN_SECONDS", 0.1)
        outcomes = []

        def look(wire, message):
            time.sleep(0.2)
            outcomes.append(hospital.rows()[other].outcome)
            accept(wire, message)

        ris.actions = [look] * 5
        event = {"wake": "urgent", "urgent": seen, "done": []}
        with contextlib.suppress(TaskDeferred):
            hospital.collector(batch, deliver_to=["ris"], only_urgent=True).resume(hospital.context(), event)
        assert outcomes.count(None) == 1

    def test_lanes_never_send_what_another_has_taken(self, hospital, ris, monkeypatch):
        starts, begin = iter([0.0, 0.03]), courier.Courier._deliver_to

        def begin_late(*arguments, **more):
            time.sleep(next(starts))
            return begin(*arguments, **more)

        monkeypatch.setattr(courier.Courier, "_deliver_to", begin_late)
        monkeypatch.setattr(courier, "AT_A_TIME", 4)
        monkeypatch.setattr(MllpDestination, "lanes", 2)
        for number in range(6):
            hospital.xray(f"chest-{number}")
        hospital.process(hospital.plan())
        hospital.enqueue(["ris"])
        monkeypatch.setattr(deliveries, "LEASE_SECONDS", 0.05)

        def slowly(wire, message):
            time.sleep(0.1)
            accept(wire, message)

        ris.actions = [slowly] * 20
        hospital.deliver("ris", lanes=2)
        assert len(ris.messages) == 6
        assert hospital.states() == {"delivered": 6}

    def test_of_an_urgent_one_in_trouble_people_are_told_while_routine_ones_hang(self, hospital, ris, lane):
        hospital.xray()
        bleeding(hospital)
        hospital.process(hospital.plan())
        hospital.enqueue(["ris"])
        released = threading.Event()

        def act(wire, message):
            if b"SIM-2" in message.raw:
                answer("AR")(wire, message)
            else:
                released.wait(SECONDS)
                accept(wire, message)

        ris.actions = [act] * 2
        task = lane(deliver_to=["ris"], notifiers=[Pager.callback("{{ alert.problem }}")])
        with ThreadPoolExecutor() as threads:
            routine = threads.submit(task.resume, hospital.context(), {"is_over": True})
            until = time.monotonic() + 1.5
            while not Pager.told and time.monotonic() < until:
                time.sleep(0.01)
            told, is_done = list(Pager.told), routine.done()
            released.set()
            routine.result(SECONDS)
        assert [text.partition(":")[0] for _, text in told] == ["dead for ris"]
        assert not is_done
        assert len(Pager.told) == 1

    def test_where_people_cannot_be_told_the_others_are_sent_all_the_same(self, hospital, ris):
        for number in range(3):
            bleeding(hospital, f"head-{number}")
        hospital.process(hospital.plan())
        hospital.enqueue(["ris"])

        def fail():
            raise OSError("no ledger")

        ris.actions = [answer("AR"), accept, accept]
        hospital.deliver("ris", tell=fail)
        assert hospital.states() == {"dead": 1, "delivered": 2}

    def test_a_night_delivers_everything_where_one_task_runs_after_the_other(self, hospital, ris, lane):
        hospital.xray(images=2)
        bleeding(hospital)
        batches = hospital.plan()
        hospital.drive(lane(deliver_to=["ris"], first_poll_seconds=0))
        assert hospital.events == [{"is_over": True}]
        hospital.process(batches, deliver_to=["ris"], only_urgent=True)
        hospital.summarize(deliver_to=["ris"])
        assert hospital.states() == {"delivered": 2}

    @pytest.mark.parametrize("arguments", [{}, {"deliver_to": "ris", "show_only": "deliver"}])
    def test_where_nothing_goes_onward_it_is_done_at_once(self, hospital, lane, arguments):
        assert lane(**arguments).execute(hospital.context()) is None

    @pytest.mark.parametrize("event", [None, {}, {"is_over": "no"}])
    def test_an_event_that_is_not_understood_is_no_end(self, hospital, lane, event):
        with pytest.raises(ValueError, match="not understood"):
            lane(deliver_to="ris").resume(hospital.context(), event)

    def test_what_cannot_even_be_tried_is_left_alone_for_a_while(self, night, ris, monkeypatch):
        night.enqueue(["ris"])
        monkeypatch.delenv("AIRFLOW_CONN_RIS")
        lane = QureDeliverOperator(task_id="deliver", bringers=COLLECTS, store_root=str(night.root), deliver_to="ris")
        with pytest.raises(TaskDeferred) as deferred:
            lane.execute(night.context())
        assert deferred.value.trigger.owed_from > time.time() + STUCK_SECONDS / 2


class TestWaiting:
    @pytest.fixture
    def states(self, monkeypatch):
        """What Airflow says of the run's tasks."""
        found = {}
        monkeypatch.setattr(deliver_trigger, "LOOK_SECONDS", 0.01)

        def say(*, dag_id, task_ids, run_ids):
            assert (dag_id, task_ids) == ("night", COLLECTS)
            if isinstance(found.get("says"), Exception):
                raise found["says"]
            return {run_ids[0]: found.get("says", {})}

        monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", staticmethod(say))
        return found

    @pytest.fixture
    def trigger(self, night):
        with night.ledger() as ledger:
            key = night.run_row(ledger).id

        def make(**arguments):
            values = {"pause": 0.0, "owed_from": 0.0, "deadline": time.time() + 60, **arguments}
            run = {"dag_id": "night", "run_id": night.run.run_id, "ledger_run": key, "store_root": str(night.root)}
            made = QureOwedTrigger(bringers=COLLECTS, **run, **values)
            assert QureOwedTrigger(**made.serialize()[1]).serialize() == made.serialize()
            made.trigger_id = 1
            return made

        return make

    def first(self, trigger, seconds=5.0):
        async def wait():
            async with asyncio.timeout(seconds):
                return (await anext(trigger.run())).payload

        return asyncio.run(wait())

    def test_fires_as_soon_as_something_is_owed(self, night, trigger, states):
        states["says"] = {"night.ct.collect_0": "deferred"}
        with pytest.raises(TimeoutError):
            self.first(trigger(), 0.3)
        night.enqueue([night.to_folder])
        assert self.first(trigger()) == {"is_over": False}
        with pytest.raises(TimeoutError):
            self.first(trigger(owed_from=time.time() + STUCK_SECONDS), 0.3)

    @pytest.mark.parametrize("says", [{}, {"night.ct.collect": None}, OSError("no answer")])
    def test_what_airflow_does_not_know_is_no_end(self, trigger, states, says):
        states["says"] = says
        with pytest.raises(TimeoutError):
            self.first(trigger(), 0.3)

    @pytest.mark.parametrize("left", ["deferred", "running", "up_for_retry", "queued", None])
    def test_ends_only_when_no_task_brings_anything_any_more(self, trigger, states, left):
        states["says"] = {"night.ct.collect": "skipped", "night.xray.collect_0": "failed", "night.xray.collect_1": left}
        with pytest.raises(TimeoutError):
            self.first(trigger(), 0.3)
        states["says"]["night.xray.collect_1"] = "success"
        assert self.first(trigger()) == {"is_over": True}

    def test_and_at_its_deadline(self, trigger, states):
        assert self.first(trigger(deadline=time.time() + 0.1)) == {"is_over": True}
