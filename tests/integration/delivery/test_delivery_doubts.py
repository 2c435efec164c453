"""What may have arrived, what is held and what another run owes: none of it is forgotten by what happens next."""

import threading
import time

import pytest
from delivery_kit import mllp_connection
from support import hl7_receiver as receivers

from qure_provider.delivery.assemble import LACKING
from qure_provider.delivery.folder import FolderDestination
from qure_provider.operators.summarize import NightUnresolvedError

STALE = "it may predate late images"


def withdrawals(ris):
    return [message for message in ris.messages if {line[11] for line in message.all("OBX")} == {"W"}]


def withdraw(night, found=None):
    with night.ledger() as ledger:
        ledger.deliveries.withdraw(
            ledger.deliveries.not_withdrawn(study_instance_uid=night.head) if found is None else found,
            by="Dr Simulated",
            why="SIMULATED reason",
        )
    night.deliver("ris", even_if_not_due=True)


class TestWhatMayHaveArrivedIsTakenBack:
    @pytest.fixture
    def doubtful(self, night, ris):
        """The RIS has the head's report, and its acknowledgement was lost."""
        ris.actions = [receivers.drop]
        night.onward("ris", rules=[{"when": {"product": ["qxr"]}, "send": [], "to": ["ris"]}])
        assert night.states("ris") == {"in doubt": 1, "not wanted": 1}
        return night

    def doubt(self, night):
        night.sql("UPDATE resources SET doubt = :why WHERE uid = :uid", why=STALE, uid=night.head_series)

    def test_though_it_was_held_since(self, doubtful, ris):
        self.doubt(doubtful)
        doubtful.deliver("ris", even_if_not_due=True)
        assert doubtful.states("ris") == {"held": 1, "not wanted": 1}
        withdraw(doubtful)
        assert len(withdrawals(ris)) == 1

    def test_though_a_newer_revision_that_is_held_took_its_place(self, doubtful, ris):
        self.doubt(doubtful)
        doubtful.edit_result(doubtful.rows()[doubtful.head_series].store_path, triage="Urgent")
        doubtful.enqueue(["ris"])
        assert {row.state.value for row in doubtful.deliveries("ris", study_instance_uid=doubtful.head)} == {
            "superseded",
            "held",
        }
        withdraw(doubtful)
        assert len(withdrawals(ris)) == 1

    def test_though_its_worker_died_and_a_newer_revision_took_its_place(self, night, ris):
        night.enqueue(["ris"])
        with night.ledger() as ledger:
            ledger.deliveries.claim("a worker that dies", destination="ris")
        night.sql("UPDATE deliveries SET lease_until = 1 WHERE state = 'sending'")
        self.doubt(night)
        night.edit_result(night.rows()[night.head_series].store_path, triage="Urgent")
        night.enqueue(["ris"])
        withdraw(night)
        assert len(withdrawals(ris)) == 1

    def test_though_it_arrived_only_while_somebody_looked_what_to_take_back(self, night, ris):
        night.enqueue(["ris"])
        with night.ledger() as ledger:
            found = ledger.deliveries.not_withdrawn(study_instance_uid=night.head)
        night.deliver("ris")
        withdraw(night, found)
        assert len(withdrawals(ris)) == 1

    def test_but_not_what_never_left(self, night, ris, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_RIS", mllp_connection(None))
        night.onward("ris")
        monkeypatch.setenv("AIRFLOW_CONN_RIS", mllp_connection(ris))
        withdraw(night)
        assert withdrawals(ris) == []
        with night.ledger() as ledger:
            assert ledger.deliveries.not_withdrawn(study_instance_uid=night.head) == []


class TestWhatIsHeldStaysHeld:
    def test_a_report_that_lacks_a_newer_result_whoever_opens_it_again(self, night, ris):
        night.onward("ris")
        night.send_again(night.frontal)
        night.sql("UPDATE resources SET outcome = 'timed out' WHERE uid = :uid AND revision = 2", uid=night.frontal)
        night.onward("ris")
        received = len(ris.messages)
        night.redeliver(states="held")
        newest = max(night.deliveries("ris", study_instance_uid=night.chest), key=lambda row: row.revision)
        assert (newest.state.value, newest.reason) == ("held", LACKING)
        assert len(ris.messages) == received

    def test_a_result_whose_files_are_all_held_back_is_held_and_never_counts_as_not_wanted(self, night):
        folder = night.rows()[night.head_series].store_path
        held = [{"kind": "sc", "position": 0, "name": "held/sc.dcm", "reason": "SIMULATED: cannot be put back"}]
        night.edit_result(folder, assets=[], held=held)
        night.onward(night.to_folder)
        (row,) = night.deliveries(study_instance_uid=night.head)
        assert (row.state.value, row.reason, row.urgent) == ("held", "SIMULATED: cannot be put back", True)
        night.redeliver(states="held")
        assert night.states() == {"held": 1, "delivered": 2}


class TestAnotherRunsDebts:
    def test_a_run_over_the_same_studies_is_red_while_they_have_not_arrived(self, hospital, ris):
        hospital.xray()
        ris.actions = [receivers.answer("AR")]
        hospital.process(hospital.plan(), deliver_to=["ris"])
        assert hospital.states() == {"dead": 1}
        for name in ("scheduled__2", "scheduled__3"):
            hospital.new_run(name)
            hospital.process(hospital.plan(), deliver_to=["ris"])
            with pytest.raises(NightUnresolvedError, match="Deliveries to ris: 1 dead"):
                hospital.summarize(deliver_to=["ris"])
            assert hospital.summary()["deliveries"] == {"ris": {"dead": 1}}
        hospital.redeliver(states="dead")
        hospital.summarize(deliver_to=["ris"])
        assert hospital.summary()["problems"] == []


def test_what_turns_out_to_be_urgent_with_the_same_files_is_urgent_from_then_on(night):
    rules = [{"when": {"meaning": ["unknown"]}, "send": [], "to": [night.to_folder]}]
    folder = night.rows()[night.head_series].store_path
    night.edit_result(folder, triage=None, meaning="unknown")
    night.enqueue([night.to_folder], rules)
    night.edit_result(folder, triage="Critical", meaning="urgent")
    night.enqueue([night.to_folder], rules)
    (row,) = night.deliveries(study_instance_uid=night.head)
    assert (row.state.value, row.urgent) == ("waiting", True)


def test_a_share_that_hangs_holds_neither_the_task_nor_the_others(night, ris, monkeypatch):
    come_back = threading.Event()
    monkeypatch.setattr(FolderDestination, "send", lambda self, parcel: come_back.wait(60) and {})
    night.enqueue([night.to_folder, "ris"])
    begun = time.monotonic()
    try:
        night.deliver(night.to_folder, "ris", seconds=1, patience=1)
        assert time.monotonic() - begun < 20
        assert night.states("ris") == {"delivered": 2}
        assert "sending" in night.states(night.to_folder)  # and in doubt when the lease runs out
    finally:
        come_back.set()


def test_what_takes_long_keeps_its_lease(night, monkeypatch):
    monkeypatch.setattr("qure_provider.delivery.courier._RENEW_SECONDS", 0.2)
    leases = []

    def send(self, parcel):
        for _ in range(2):
            time.sleep(0.5)
            leases.append(max(row["lease_until"] for row in night.table("deliveries")))
        return {}

    monkeypatch.setattr(FolderDestination, "send", send)
    night.enqueue([night.to_folder], [{"when": {"product": ["qxr"]}, "send": [], "to": [night.to_folder]}])
    night.deliver(night.to_folder)
    first, second = leases
    assert second > first
