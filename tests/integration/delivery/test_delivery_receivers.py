import json
import logging
import time

import pytest
from delivery_kit import mllp_connection
from pipeline_kit import Pager
from support import hl7_receiver as receivers
from support.hl7_receiver import Hl7Receiver

from qure_provider.delivery import courier as courier_module
from qure_provider.delivery.courier import ENOUGH
from qure_provider.ledger.deliveries import DeliveryState
from qure_provider.operators.summarize import NightUnresolvedError

NOBODY = mllp_connection(None)


def reasons(hospital, destination=None):
    return {row.reason for row in hospital.deliveries(destination)}


def many(hospital, count, to="ris"):
    """Owe a receiver as many reports of other studies, beside the night's two."""
    hospital.enqueue([to])
    with hospital.ledger() as ledger:
        chest = next(row for row in ledger.deliveries.of_study(hospital.chest) if row.destination == to)
    for number in range(count):
        hospital.sql(
            "INSERT INTO parcels (kind, subject, revision, digest, study_instance_uid, product, resource_ids, urgent, "
            "created_at) SELECT kind, :subject, revision, digest, :study, product, '[]', 0, created_at FROM parcels "
            "WHERE subject = :old AND kind = 'report'",
            subject=f"OTHER{number}",
            study=f"1.2.{number}",
            old=chest.subject,
        )
        hospital.sql(
            "INSERT INTO deliveries (parcel_id, destination, sends, state, reason, tries, due_at, lease_owner, "
            "lease_until, receipt, created_at) SELECT id, :to, '[]', 'waiting', '', 0, 0, '', 0, '{}', created_at "
            "FROM parcels WHERE subject = :subject",
            to=to,
            subject=f"OTHER{number}",
        )


class TestADestinationThatIsDown:
    @pytest.fixture
    def down(self, night, monkeypatch):
        """A RIS that nobody answers for, and a folder that is no folder, all night."""
        monkeypatch.setenv("AIRFLOW_CONN_RIS", NOBODY)
        night.out.write_text("not mounted")
        return night

    def come_back(self, hospital, monkeypatch, receiver):
        monkeypatch.setenv("AIRFLOW_CONN_RIS", mllp_connection(receiver))
        hospital.out.unlink()

    def test_what_is_owed_waits_and_the_run_ends_red_naming_it(self, down):
        with pytest.raises(NightUnresolvedError) as error:
            down.summarize(deliver_to=[down.to_folder, "ris"])
        assert f"Deliveries to {down.to_folder}: 3 waiting." in str(error.value)
        assert "Deliveries to ris: 2 waiting." in str(error.value)
        assert "qure_redeliver" in str(error.value)
        assert down.summary()["deliveries"] == {down.to_folder: {"waiting": 3}, "ris": {"waiting": 2}}

    def test_why_it_waits_is_recorded(self, down):
        down.onward("ris", down.to_folder)
        assert reasons(down, "ris") == {"Nothing listens at the receiver's host and port."}
        assert any("The folder cannot be written to" in reason for reason in reasons(down, down.to_folder))

    def test_all_of_it_goes_when_they_are_back_and_no_task_is_cleared(self, down, monkeypatch):
        with pytest.raises(NightUnresolvedError):
            down.summarize(deliver_to=[down.to_folder, "ris"])
        with Hl7Receiver() as ris:
            self.come_back(down, monkeypatch, ris)
            down.sql("UPDATE deliveries SET due_at = 0")  # an hour later
            assert down.redeliver() == {"reopened": 0, "troubles": 0}
            assert len(ris.messages) == 2
        assert down.states() == {"delivered": 5}

    def test_before_its_time_nothing_is_tried_unless_asked(self, down, monkeypatch):
        down.onward("ris")
        with Hl7Receiver() as ris:
            self.come_back(down, monkeypatch, ris)
            down.redeliver(destinations="ris")
            assert len(ris.messages) == 0
            down.redeliver(destinations="ris", even_if_not_due="True")
            assert len(ris.messages) == 2

    def test_it_is_left_alone_after_a_few_in_a_row(self, night, monkeypatch):
        night.out.write_text("not mounted")
        many(night, 6, night.to_folder)
        night.deliver(night.to_folder)
        assert sum(row["tries"] for row in night.table("deliveries")) == ENOUGH

    def test_another_destination_is_served_meanwhile(self, night, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_RIS", NOBODY)
        night.onward("ris", night.to_folder)
        assert night.states(night.to_folder) == {"delivered": 3}

    def test_a_destination_without_a_connection_is_named_and_keeps_nobody_waiting(self, hospital):
        hospital.xray()
        batches = hospital.plan()
        hospital.process(batches, deliver_to=["nowhere", hospital.to_folder])
        assert hospital.states() == {"delivered": 1}
        with pytest.raises(NightUnresolvedError, match="Nothing is delivered to 'nowhere': There is no connection"):
            hospital.summarize(deliver_to=["nowhere", hospital.to_folder])

    def test_a_connection_of_another_type_is_no_destination(self, night, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_MAIL", json.dumps({"conn_type": "smtp", "host": "localhost"}))
        (problem,) = night.enqueue(["mail"])
        assert "'smtp'; one of dicom, dicomweb, fhir, mllp is needed" in problem

    def test_what_waited_for_a_connection_that_was_removed_says_so_and_loses_no_try(self, night, ris, monkeypatch):
        night.enqueue(["ris"])
        monkeypatch.delenv("AIRFLOW_CONN_RIS")
        assert night.redeliver() == {"reopened": 0, "troubles": 0}
        assert reasons(night, "ris") == {"There is no connection 'ris': create it in Airflow."}
        assert {row.tries for row in night.deliveries("ris")} == {0}


class TestOneThatGoesWrong:
    def test_a_message_that_the_receiver_wants_later_does_not_hold_up_the_others(self, night, ris):
        ris.actions = [receivers.answer("AE")]
        night.onward("ris")
        assert night.states("ris") == {"waiting": 1, "delivered": 1}

    def test_a_refused_one_is_dead_and_the_others_go_on(self, night, ris):
        ris.actions = [receivers.answer("AR")]
        (trouble,) = night.onward("ris")
        assert trouble.state is DeliveryState.DEAD
        assert night.states("ris") == {"dead": 1, "delivered": 1}

    def test_a_dead_one_is_opened_again_only_on_demand(self, night, ris):
        ris.actions = [receivers.answer("AR")]
        night.onward("ris")
        night.redeliver(even_if_not_due=True)
        assert night.states("ris") == {"dead": 1, "delivered": 1}
        assert night.redeliver(states="dead") == {"reopened": 1, "troubles": 0}
        assert night.states("ris") == {"delivered": 2}

    def test_a_character_that_one_receiver_does_not_know_stops_that_message_alone(self, night, ris, monkeypatch):
        row = night.rows()[night.frontal]
        report = night.result(row)["report"] | {"impression": "СИМУЛЯЦИЯ (SIMULATED)"}
        night.edit_result(row.store_path, report=report)
        monkeypatch.setenv("AIRFLOW_CONN_RIS", mllp_connection(ris, character_set="ASCII"))
        night.onward("ris")
        assert night.states("ris") == {"waiting": 1, "delivered": 1}
        assert any("character_set" in reason for reason in reasons(night, "ris"))

    def test_a_damaged_result_is_held_and_the_others_go_on(self, night):
        night.enqueue([night.to_folder])
        (night.root / night.rows()[night.frontal].store_path / "result.json").write_text('{"schema": 1}')
        (trouble,) = night.deliver(night.to_folder)
        assert trouble.reason == "the stored result is damaged; recompute brings a new one"
        assert night.states() == {"held": 1, "delivered": 2}

    def test_a_file_that_is_gone_is_named_without_its_path_and_the_others_go_on(self, night, caplog):
        night.enqueue([night.to_folder])
        gone = night.root / night.rows()[night.frontal].store_path / "report_pdf.pdf"
        gone.unlink()
        night.deliver(night.to_folder)
        assert night.states() == {"waiting": 1, "delivered": 2}
        assert not any(night.chest in text for text in [*reasons(night), caplog.text])

    def test_what_nobody_foresaw_is_recorded_without_its_text_and_the_others_go_on(self, night, monkeypatch, caplog):
        send = courier_module.Courier._send

        def failing(courier, destination, row):
            if row.study_instance_uid == night.head:
                raise RuntimeError(f"patient {row.study_instance_uid}")
            return send(courier, destination, row)

        monkeypatch.setattr(courier_module.Courier, "_send", failing)
        with caplog.at_level(logging.INFO):
            night.onward(night.to_folder)
        assert night.states() == {"waiting": 1, "delivered": 2}
        (reason,) = reasons(night) - {""}
        assert reason == "it failed unexpectedly (RuntimeError); the task's log says where"
        assert night.head not in caplog.text
        assert "test_delivery_receivers.py" in caplog.text

    def test_after_the_time_that_it_has_nothing_more_is_begun(self, night, ris):
        ris.actions = [receivers.late(0.5)]
        night.enqueue(["ris"])
        night.deliver("ris", seconds=0.3)
        assert night.states("ris") == {"delivered": 1, "waiting": 1}
        assert {row.tries for row in night.deliveries("ris") if row.state is DeliveryState.WAITING} == {0}

    def test_nothing_is_tried_twice_in_one_round(self, night, ris):
        ris.actions = [receivers.drop] * 2
        began = time.monotonic()
        night.enqueue(["ris"])
        night.deliver("ris", even_if_not_due=True)
        assert len(ris.messages) == 2
        assert time.monotonic() - began < 10


class TestInDoubt:
    @pytest.mark.parametrize("loses", [receivers.drop, receivers.half])
    def test_a_message_without_a_whole_answer_is_in_doubt_then_sent_again_recognisably(self, night, ris, loses):
        ris.actions = [loses]
        (trouble,) = night.onward("ris")
        assert trouble.state is DeliveryState.IN_DOUBT
        assert night.states("ris") == {"in doubt": 1, "delivered": 1}
        night.redeliver(even_if_not_due=True)
        assert night.states("ris") == {"delivered": 2}
        first, _, again = ris.messages
        assert again.control_id == first.control_id
        assert again.raw == first.raw

    def test_it_stays_in_doubt_when_the_next_try_reaches_nobody(self, night, ris, monkeypatch):
        ris.actions = [receivers.drop]
        night.onward("ris")
        monkeypatch.setenv("AIRFLOW_CONN_RIS", NOBODY)
        night.redeliver(even_if_not_due=True)
        assert night.states("ris") == {"in doubt": 1, "delivered": 1}

    def test_a_negative_answer_is_no_doubt(self, night, ris):
        ris.actions = [receivers.answer("AR")]
        (trouble,) = night.onward("ris")
        assert trouble.state is DeliveryState.DEAD


class TestAWorkerThatDies:
    def die_while_sending(self, hospital, destination, *, after):
        """Claim everything, do what ``after`` does, and never say what became of it."""
        hospital.enqueue([destination])
        with hospital.ledger() as ledger:
            while rows := ledger.deliveries.claim("dead", destination=destination):
                after(rows)
        hospital.sql("UPDATE deliveries SET lease_until = 1")

    def test_a_folder_is_asked_whether_it_arrived_and_then_nothing_is_sent_twice(self, night, monkeypatch):
        night.onward(night.to_folder)
        written = {name: (night.out / name).stat().st_mtime_ns for name in night.received()}
        night.sql("UPDATE deliveries SET state = 'sending', receipt = '{}', lease_owner = 'dead', lease_until = 1")
        night.redeliver()
        assert night.states() == {"delivered": 3}
        assert {name: (night.out / name).stat().st_mtime_ns for name in night.received()} == written

    def test_what_is_known_of_it_by_asking_is_as_good_as_a_receipt(self, night):
        night.onward(night.to_folder)
        receipts = {row.subject: dict(row.receipt) for row in night.deliveries()}
        night.sql("UPDATE deliveries SET state = 'sending', receipt = '{}', lease_owner = 'dead', lease_until = 1")
        night.redeliver()
        for row in night.deliveries():
            assert row.receipt["objects"] == receipts[row.subject]["objects"]
            assert row.receipt["sha256"] == receipts[row.subject]["sha256"]
            assert "asked" in row.receipt["proof"]

    def test_what_did_not_arrive_whole_is_sent(self, night):
        self.die_while_sending(night, night.to_folder, after=lambda rows: None)
        assert night.received() == []
        night.redeliver()
        assert night.states() == {"delivered": 3}
        assert len(night.received()) == 25

    def test_a_receiver_that_cannot_be_asked_gets_the_same_message_again(self, night, ris):
        night.onward("ris")
        night.sql("UPDATE deliveries SET state = 'sending', receipt = '{}', lease_owner = 'dead', lease_until = 1")
        night.redeliver()
        assert night.states("ris") == {"delivered": 2}
        assert len(ris.messages) == 4
        assert len({message.control_id for message in ris.messages}) == 2

    def test_while_its_lease_runs_nobody_else_sends(self, night, ris):
        night.enqueue(["ris"])
        with night.ledger() as ledger:
            ledger.deliveries.claim("busy", destination="ris")
        night.redeliver(even_if_not_due=True)
        assert ris.messages == []
        assert night.states("ris") == {"sending": 2}

    def test_a_worker_that_lost_its_lease_before_sending_leaves_it_alone(self, night, ris, monkeypatch):
        night.enqueue(["ris"])
        monkeypatch.setattr("qure_provider.ledger.deliveries.Deliveries.renew", lambda self, delivery: False)
        night.deliver("ris")
        assert ris.messages == []


class TestPeopleAreTold:
    @pytest.fixture(autouse=True)
    def told_of_the_result(self, night):
        """The triggerer told people of the urgent result itself."""
        with night.ledger() as ledger:
            ledger.record_alert(night.rows()[night.head_series].id, "somebody")

    def test_of_an_urgent_refused_one_once_and_not_again_on_repeat(self, night, ris):
        ris.actions = [receivers.answer("AR")]
        notifiers = [Pager.callback("{{ alert.text }}")]
        for _ in range(2):
            with pytest.raises(NightUnresolvedError):
                night.summarize(deliver_to=["ris"], notifiers=notifiers)
        night.redeliver(notifiers=notifiers)
        ((_, told),) = Pager.told
        assert told.startswith("NOT DELIVERED: dead for ris: ")
        assert "qer marks a CT as urgent" in told
        assert "SIM-ROOM" in told
        assert "min after acquisition" in told

    def test_again_when_it_was_opened_and_ended_otherwise(self, night, ris):
        ris.actions = [receivers.answer("AR"), receivers.accept, receivers.drop]
        notifiers = [Pager.callback("{{ alert.problem }}")]
        night.onward("ris")
        night.redeliver(notifiers=notifiers)
        night.redeliver(notifiers=notifiers, states="dead")
        assert [told.split(" for ")[0] for _, told in Pager.told] == ["dead", "in doubt"]

    def test_not_of_one_that_is_not_urgent(self, night, ris):
        ris.actions = [receivers.accept, receivers.answer("AR")]
        night.onward("ris")
        assert night.states("ris") == {"delivered": 1, "dead": 1}
        night.redeliver(notifiers=[Pager.callback()])
        assert Pager.told == []

    def test_of_an_urgent_one_that_still_waits_when_the_run_ends(self, night, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_RIS", NOBODY)
        with pytest.raises(NightUnresolvedError):
            night.summarize(deliver_to=["ris"], notifiers=[Pager.callback("{{ alert.problem }}")])
        ((_, told),) = Pager.told
        assert told.startswith("waiting for ris: ")

    def test_of_an_urgent_one_that_hangs_when_the_run_ends(self, night, ris):
        night.enqueue(["ris"])
        with night.ledger() as ledger:
            assert len(ledger.deliveries.claim("another task", destination="ris", only_urgent=True)) == 1
        with pytest.raises(NightUnresolvedError, match="1 sending"):
            night.summarize(deliver_to=["ris"], notifiers=[Pager.callback("{{ alert.problem }}")])
        assert [told for _, told in Pager.told] == ["sending for ris: it has no receipt yet"]

    def test_of_an_urgent_one_held_from_the_start(self, night, ris):
        night.sql("UPDATE resources SET doubt = 'may predate late images' WHERE uid = :uid", uid=night.head_series)
        with pytest.raises(NightUnresolvedError, match="held: may predate late images"):
            night.summarize(deliver_to=["ris"], notifiers=[Pager.callback("{{ alert.problem }}")])
        assert [told for _, told in Pager.told] == ["held for ris: may predate late images"]
        assert night.head not in "".join(message.raw.decode() for message in ris.messages)

    def test_an_alert_that_fails_is_tried_again_by_the_next_run(self, night, ris):
        ris.actions = [receivers.answer("AR")]
        night.onward("ris")
        Pager.problems = [OSError("no network")] * 3
        night.redeliver(notifiers=[Pager.callback()])
        assert Pager.told == []
        night.redeliver(notifiers=[Pager.callback()])
        assert len(Pager.told) == 1

    def test_of_an_urgent_result_that_was_seen_and_never_came_home(self, night):
        with night.ledger() as ledger:
            row = night.rows()[night.head_series]
            ledger.record_alert(row.id, "somebody")
        night.sql("UPDATE resources SET outcome = 'timed out', meaning = 'unknown' WHERE uid = :u", u=night.head_series)
        for _ in range(2):
            with pytest.raises(NightUnresolvedError):
                night.summarize(notifiers=[Pager.callback("{{ alert.problem }}")])
        assert [told for _, told in Pager.told] == ["its files could not be fetched, and it is now timed out"]

    def test_not_of_one_that_nobody_ever_saw_which_the_summary_names(self, night):
        night.sql("DELETE FROM alerts")
        night.sql("UPDATE resources SET outcome = 'timed out', meaning = 'unknown' WHERE uid = :u", u=night.head_series)
        with pytest.raises(NightUnresolvedError, match="timed out"):
            night.summarize(notifiers=[Pager.callback()])
        assert Pager.told == []
