import multiprocessing
import threading
import time
from dataclasses import replace

import pytest
from sqlalchemy import select, update

from qure_provider.ledger import deliveries as module
from qure_provider.ledger.deliveries import (
    MAX_TRIES,
    DeliveryState,
    Event,
    NewParcel,
    ParcelKind,
    Wanted,
)
from qure_provider.ledger.ledger import Ledger
from qure_provider.ledger.schema import deliveries as table

STUDY = "1.2.3"


def parcel(subject="1.2.3.4", *, digest="a", kind=ParcelKind.OBJECTS, study=STUDY, resources=(1,), urgent=False):
    return NewParcel(kind, subject, digest, study, "qxr", resources, urgent)


def other_study(number, **values):
    return parcel(f"1.2.{number}.4", study=f"1.2.{number}", **values)


def owe(ledger, *parcels, to=("pacs",), run_id=None):
    for item in parcels:
        ledger.deliveries.enqueue(run_id, item, [Wanted(name) for name in to])


def a_run(ledger):
    return ledger.begin_run(
        dag_id="d",
        run_id="r",
        group_id="",
        clear_number=0,
        night="n",
        conn_id="c",
        folder="f",
        deadline=0,
        completeness="",
    )


def states(ledger, study=STUDY, to="pacs"):
    return [(row.revision, row.state.value) for row in ledger.deliveries.of_study(study) if row.destination == to]


def claim(ledger, owner="me", *, to="pacs", **arguments):
    return ledger.deliveries.claim(owner, destination=to, **arguments)


def claim_one(ledger, owner="me", **arguments):
    (row,) = claim(ledger, owner, **arguments)
    return row


def let_leases_run_out(ledger):
    with ledger._engine.begin() as connection:
        connection.execute(update(table).where(table.c.state == "sending").values(lease_until=time.time() - 1))


def stored(ledger, delivery):
    with ledger._engine.begin() as connection:
        return connection.execute(select(table).where(table.c.id == delivery.id)).mappings().one()


class TestOwing:
    def test_the_same_content_to_the_same_destination_is_owed_once(self, ledger):
        owe(ledger, parcel())
        owe(ledger, parcel())
        assert states(ledger) == [(1, "waiting")]

    def test_what_was_delivered_is_not_owed_again(self, ledger):
        owe(ledger, parcel())
        ledger.deliveries.delivered(claim_one(ledger), {"folder": "here"})
        owe(ledger, parcel())
        assert states(ledger) == [(1, "delivered")]
        assert claim(ledger, even_if_not_due=True) == []

    def test_changed_content_is_a_new_revision_that_supersedes_the_unsent_older_one(self, ledger):
        owe(ledger, parcel(digest="a"))
        owe(ledger, parcel(digest="b"))
        assert states(ledger) == [(1, "superseded"), (2, "waiting")]

    def test_content_that_came_back_is_a_new_revision_too(self, ledger):
        for digest in "aba":
            owe(ledger, parcel(digest=digest))
        assert [revision for revision, _ in states(ledger)] == [1, 2, 3]

    @pytest.mark.parametrize("end", ["held", "dead", "in doubt"])
    def test_a_newer_revision_supersedes_an_older_one_that_is_held_dead_or_in_doubt(self, ledger, end):
        owe(ledger, parcel(digest="a"))
        row = claim_one(ledger)
        if end == "in doubt":
            ledger.deliveries.try_later(row, "no answer", in_doubt=True)
        else:
            getattr(ledger.deliveries, end)(row, "a reason")
        owe(ledger, parcel(digest="b"))
        assert states(ledger) == [(1, "superseded"), (2, "waiting")]

    def test_a_destination_that_got_the_older_revision_keeps_its_receipt(self, ledger):
        owe(ledger, parcel(digest="a"))
        ledger.deliveries.delivered(claim_one(ledger), {"sha256": ["x"]})
        owe(ledger, parcel(digest="b"))
        newer = claim_one(ledger)
        assert [dict(receipt) for receipt in ledger.deliveries.earlier_receipts(newer)] == [{"sha256": ["x"]}]

    def test_another_destinations_older_revision_is_left_alone(self, ledger):
        owe(ledger, parcel(digest="a"), to=("pacs", "ris"))
        owe(ledger, parcel(digest="b"), to=("pacs",))
        assert states(ledger, to="ris") == [(1, "waiting")]

    def test_what_no_rule_wanted_is_recorded_and_owed_once_a_rule_wants_it(self, ledger):
        unwanted = Wanted("pacs", state=DeliveryState.NOT_WANTED, reason="no rule sends it there")
        ledger.deliveries.enqueue(None, parcel(), [unwanted])
        assert states(ledger) == [(1, "not wanted")]
        owe(ledger, parcel())
        assert states(ledger) == [(1, "waiting")]
        ledger.deliveries.enqueue(None, parcel(), [unwanted])
        assert states(ledger) == [(1, "waiting")]

    def test_what_is_held_from_the_start_is_remembered_with_its_reason(self, ledger):
        ledger.deliveries.enqueue(None, parcel(), [Wanted("pacs", (), DeliveryState.HELD, "in doubt")])
        (event,) = ledger.deliveries.events_of_study(STUDY)
        assert event["kind"] == Event.HELD
        assert event["detail"] == {"destination": "pacs", "reason": "in doubt"}


class TestClaiming:
    def test_it_is_recorded_before_that_it_is_about_to_be_sent(self, ledger):
        owe(ledger, parcel())
        row = claim_one(ledger)
        assert states(ledger) == [(1, "sending")]
        assert stored(ledger, row)["sending_at"] == pytest.approx(time.time(), abs=5)

    def test_urgent_ones_first(self, ledger):
        owe(ledger, other_study(1), other_study(2), other_study(3, urgent=True))
        assert [row.study_instance_uid for row in claim(ledger)] == ["1.2.3", "1.2.1", "1.2.2"]

    def test_one_is_in_flight_for_each_study_and_destination(self, ledger):
        owe(ledger, parcel("1.2.3.4"), parcel("1.2.3.5"), to=("pacs", "ris"))
        first = claim_one(ledger, "one")
        assert claim(ledger, "two") == []
        assert len(claim(ledger, "two", to="ris")) == 1
        ledger.deliveries.delivered(first, {})
        assert claim_one(ledger, "two").subject == "1.2.3.5"

    def test_a_study_in_flight_does_not_hide_those_behind_it(self, ledger):
        owe(ledger, *(parcel(f"1.2.3.{number}") for number in range(12)), other_study(9))
        claim_one(ledger, limit=1)
        assert [row.study_instance_uid for row in claim(ledger, limit=2)] == ["1.2.9"]

    def test_only_of_one_run(self, ledger):
        run = a_run(ledger)
        owe(ledger, other_study(1), run_id=run.id)
        owe(ledger, other_study(2))
        assert [row.study_instance_uid for row in claim(ledger, run_id=run.id)] == ["1.2.1"]

    def test_what_waits_for_its_next_try_is_taken_only_if_asked(self, ledger):
        owe(ledger, parcel())
        ledger.deliveries.try_later(claim_one(ledger), "down")
        assert claim(ledger) == []
        assert len(claim(ledger, even_if_not_due=True)) == 1

    def test_what_was_tried_since_is_not_taken_again(self, ledger):
        began = time.time()
        owe(ledger, parcel())
        ledger.deliveries.try_later(claim_one(ledger), "down")
        assert claim(ledger, even_if_not_due=True, not_begun_since=began) == []

    def test_what_was_put_back_counts_as_no_try_and_keeps_its_reason(self, ledger):
        owe(ledger, parcel())
        ledger.deliveries.try_later(claim_one(ledger), "down")
        ledger.deliveries.put_back([claim_one(ledger, even_if_not_due=True)])
        (row,) = ledger.deliveries.of_study(STUDY)
        assert (row.state, row.tries, row.reason) == (DeliveryState.WAITING, 1, "down")

    def test_an_older_revision_is_never_sent_after_a_newer_one(self, ledger):
        owe(ledger, parcel(digest="a"))
        older = claim_one(ledger)
        owe(ledger, parcel(digest="b"))
        assert claim(ledger, "two") == []  # the older one is still in flight
        ledger.deliveries.try_later(older, "no answer", in_doubt=True)
        newer = claim_one(ledger, "two")
        assert newer.revision == 2
        ledger.deliveries.delivered(newer, {})
        assert claim(ledger, even_if_not_due=True) == []
        assert states(ledger) == [(1, "superseded"), (2, "delivered")]

    def test_nor_by_the_worker_that_takes_a_dead_ones_over(self, ledger):
        owe(ledger, parcel(digest="a"))
        claim_one(ledger, "dead")
        let_leases_run_out(ledger)
        owe(ledger, parcel(digest="b", urgent=True))
        assert [row.revision for row in claim(ledger, "two")] == [2]
        assert states(ledger)[0] == (1, "superseded")


class TestLanes:
    def test_somebody_may_take_only_what_is_urgent(self, ledger):
        owe(ledger, parcel(), other_study(7, urgent=True))
        assert [row.subject for row in claim(ledger, only_urgent=True)] == ["1.2.7.4"]
        assert claim(ledger, only_urgent=True) == []
        assert len(claim(ledger, "other")) == 1

    def test_a_run_owes_what_waits_and_is_due_and_what_a_dead_worker_was_sending(self, ledger):
        run_id = a_run(ledger).id
        assert not ledger.deliveries.is_owed(run_id)
        owe(ledger, parcel(), run_id=run_id)
        assert ledger.deliveries.is_owed(run_id)
        taken = claim_one(ledger)
        assert not ledger.deliveries.is_owed(run_id)
        let_leases_run_out(ledger)
        assert ledger.deliveries.is_owed(run_id)
        ledger.deliveries.try_later(taken, "no answer")
        assert not ledger.deliveries.is_owed(run_id)


class TestADeadWorker:
    def test_its_delivery_is_taken_over_when_its_lease_has_run_out_and_may_have_arrived(self, ledger):
        owe(ledger, parcel())
        claim_one(ledger, "dead")
        assert claim(ledger, "other") == []
        let_leases_run_out(ledger)
        assert claim_one(ledger, "other").was_in_doubt

    def test_one_that_was_only_believed_dead_notices(self, ledger):
        owe(ledger, parcel())
        zombie = claim_one(ledger, "zombie")
        let_leases_run_out(ledger)
        claim_one(ledger, "other")
        assert not ledger.deliveries.renew(zombie)
        for action in (ledger.deliveries.held, ledger.deliveries.dead, ledger.deliveries.try_later):
            action(zombie, "too late")
        ledger.deliveries.put_back([zombie])
        assert states(ledger) == [(1, "sending")]
        assert ledger.deliveries.events_of_study(STUDY) == []

    def test_its_receipt_is_a_fact_all_the_same(self, ledger):
        owe(ledger, parcel())
        zombie = claim_one(ledger, "zombie")
        let_leases_run_out(ledger)
        other = claim_one(ledger, "other")
        ledger.deliveries.delivered(zombie, {"code": "AA"})
        ledger.deliveries.try_later(other, "no answer", in_doubt=True)
        (row,) = ledger.deliveries.of_study(STUDY)
        assert (row.state, row.receipt) == (DeliveryState.DELIVERED, {"code": "AA"})

    def test_a_lease_is_lengthened_right_before_sending(self, ledger):
        owe(ledger, parcel())
        row = claim_one(ledger)
        let_leases_run_out(ledger)
        assert ledger.deliveries.renew(row)
        assert claim(ledger, "other") == []


class TestTryingAgain:
    def test_less_and_less_often_up_to_an_hour(self, ledger, monkeypatch):
        monkeypatch.setattr(module.random, "uniform", lambda low, high: 1.0)
        owe(ledger, parcel())
        waits = []
        for _ in range(9):
            row = claim_one(ledger, even_if_not_due=True)
            ledger.deliveries.try_later(row, "down")
            waits.append(round((stored(ledger, row)["due_at"] - time.time()) / 60))
        assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]

    def test_it_ends_and_says_so(self, ledger):
        owe(ledger, parcel())
        row = replace(claim_one(ledger), tries=MAX_TRIES - 1)
        assert ledger.deliveries.try_later(row, "no acknowledgement") is DeliveryState.DEAD
        (row,) = ledger.deliveries.of_study(STUDY)
        assert row.state is DeliveryState.DEAD
        assert row.reason == f"given up after {MAX_TRIES} tries; the last one: no acknowledgement"
        assert ledger.deliveries.destinations_owed() == []

    def test_the_last_try_of_many_still_computes_its_wait(self, ledger):
        owe(ledger, parcel())
        assert ledger.deliveries.try_later(replace(claim_one(ledger), tries=MAX_TRIES - 2), "") is DeliveryState.WAITING

    def test_a_receiver_that_is_down_over_a_long_weekend_does_not_kill_what_it_is_owed(self):
        assert MAX_TRIES * module._LONGEST_WAIT_SECONDS * 0.8 > 4 * 86_400

    def test_what_was_in_doubt_stays_so_when_a_later_try_is_not_even_answered(self, ledger):
        owe(ledger, parcel())
        ledger.deliveries.try_later(claim_one(ledger), "no acknowledgement", in_doubt=True)
        row = claim_one(ledger, even_if_not_due=True)
        assert ledger.deliveries.try_later(row, "connection refused") is DeliveryState.IN_DOUBT

    def test_the_dead_are_opened_again_with_all_their_tries(self, ledger):
        owe(ledger, parcel())
        ledger.deliveries.dead(claim_one(ledger), "refused")
        assert ledger.deliveries.reopen(states=[DeliveryState.HELD]) == 0
        assert ledger.deliveries.reopen(states=[DeliveryState.DEAD]) == 1
        row = claim_one(ledger)
        assert row.tries == 0

    def test_only_of_a_destination_and_since_a_time(self, ledger):
        owe(ledger, parcel(), to=("pacs", "ris"))
        for name in ("pacs", "ris"):
            ledger.deliveries.dead(claim_one(ledger, to=name), "refused")
        dead = [DeliveryState.DEAD]
        assert ledger.deliveries.reopen(states=dead, since=time.time() + 60) == 0
        assert ledger.deliveries.reopen(states=dead, destinations=["ris"]) == 1
        assert ledger.deliveries.destinations_owed() == ["ris"]

    def test_why_a_destination_was_not_tried_at_all_is_noted(self, ledger):
        owe(ledger, parcel(), to=("pacs", "ris"))
        ledger.deliveries.note("pacs", "There is no connection 'pacs'.")
        reasons = {row.destination: row.reason for row in ledger.deliveries.of_study(STUDY)}
        assert reasons == {"pacs": "There is no connection 'pacs'.", "ris": ""}


class TestTakingBack:
    def withdraw(self, ledger, **which):
        found = ledger.deliveries.not_withdrawn(**which)
        ledger.deliveries.withdraw(found, by="Dr Simulated", why="wrong model")
        return found

    def test_what_was_delivered_is_owed_its_withdrawal_and_who_and_why_are_recorded(self, ledger):
        owe(ledger, parcel())
        ledger.deliveries.delivered(claim_one(ledger), {})
        self.withdraw(ledger)
        row = claim_one(ledger)
        assert row.kind is ParcelKind.WITHDRAWAL
        assert ledger.deliveries.withdrawn_because(row) == "wrong model"
        event = ledger.deliveries.events_of_study(STUDY)[-1]
        assert event["kind"] == Event.WITHDRAWN
        assert event["detail"] == {
            "destination": "pacs",
            "resources": [1],
            "by": "Dr Simulated",
            "why": "wrong model",
        }

    def test_a_repeat_does_nothing_new(self, ledger):
        for digest in "ab":
            owe(ledger, parcel(digest=digest))
            ledger.deliveries.delivered(claim_one(ledger), {})
        self.withdraw(ledger)
        ledger.deliveries.delivered(claim_one(ledger), {})
        events = ledger.deliveries.events_of_study(STUDY)
        assert self.withdraw(ledger) == []
        assert ledger.deliveries.events_of_study(STUDY) == events
        assert claim(ledger, even_if_not_due=True) == []

    def test_two_revisions_delivered_are_taken_back_by_one_withdrawal(self, ledger):
        for digest, resources in (("a", (1,)), ("b", (1, 2))):
            owe(ledger, parcel(digest=digest, resources=resources))
            ledger.deliveries.delivered(claim_one(ledger), {})
        self.withdraw(ledger)
        row = claim_one(ledger)
        assert row.resource_ids == (1, 2)
        ledger.deliveries.delivered(row, {})
        assert claim(ledger) == []

    @pytest.mark.parametrize("state", ["waiting", "held"])
    def test_what_was_never_sent_never_goes_and_needs_no_withdrawal(self, ledger, state):
        owe(ledger, parcel())
        if state != "waiting":
            getattr(ledger.deliveries, state)(claim_one(ledger), "a reason")
        self.withdraw(ledger)
        assert states(ledger) == [(1, "superseded")]
        assert claim(ledger, even_if_not_due=True) == []

    @pytest.mark.parametrize("end", ["in doubt", "dead"])
    def test_what_is_in_doubt_or_was_refused_at_last_may_be_there_and_is_taken_back(self, ledger, end):
        owe(ledger, parcel())
        if end == "dead":
            ledger.deliveries.dead(claim_one(ledger), "refused")
        else:
            ledger.deliveries.try_later(claim_one(ledger), "no answer", in_doubt=True)
        self.withdraw(ledger)
        assert claim_one(ledger, even_if_not_due=True).kind is ParcelKind.WITHDRAWAL

    def test_what_is_in_flight_is_taken_back_after_it(self, ledger):
        owe(ledger, parcel())
        flying = claim_one(ledger)
        self.withdraw(ledger)
        assert claim(ledger, "other") == []
        ledger.deliveries.delivered(flying, {})
        assert claim_one(ledger, "other").kind is ParcelKind.WITHDRAWAL

    def test_the_resources_are_known_as_taken_back(self, ledger):
        owe(ledger, parcel(resources=(1, 2)), other_study(9, resources=(3,)))
        self.withdraw(ledger, study_instance_uid=STUDY)
        assert ledger.deliveries.withdrawn_resources(STUDY) == {1, 2}
        assert ledger.deliveries.withdrawn_resources("1.2.9") == set()

    def test_only_what_was_delivered_since_a_time(self, ledger):
        owe(ledger, parcel())
        ledger.deliveries.delivered(claim_one(ledger), {})
        assert self.withdraw(ledger, since=time.time() + 60) == []

    def test_a_newer_result_of_the_same_image_can_be_taken_back_in_its_turn(self, ledger):
        for digest, resources in (("a", (1,)), ("b", (2,))):
            owe(ledger, parcel(digest=digest, resources=resources))
            ledger.deliveries.delivered(claim_one(ledger), {})
            self.withdraw(ledger)
            ledger.deliveries.delivered(claim_one(ledger), {})
        kinds = [row.kind.value for row in ledger.deliveries.of_study(STUDY)]
        assert kinds == ["objects", "withdrawal", "objects", "withdrawal"]

    def test_of_what_goes_wrong_with_urgent_ones_and_withdrawals_people_are_told(self, ledger):
        owe(ledger, parcel(urgent=True), other_study(9))
        for row in claim(ledger):
            ledger.deliveries.held(row, "a reason")
        assert [row.urgent for row in ledger.deliveries.in_trouble()] == [True]

    def test_a_withdrawal_is_in_trouble_as_soon_as_its_receiver_could_not_be_reached(self, ledger):
        owe(ledger, parcel())
        ledger.deliveries.delivered(claim_one(ledger), {})
        self.withdraw(ledger)
        assert ledger.deliveries.in_trouble() == []
        ledger.deliveries.try_later(claim_one(ledger), "nobody answers")
        assert [row.kind.value for row in ledger.deliveries.in_trouble()] == ["withdrawal"]


def take_all(url, owner, taken):
    """Claim and deliver until nothing is left; in a process or a thread of its own."""
    with Ledger.open(url) as ledger:
        empty = 0
        while empty < 3:
            rows = ledger.deliveries.claim(owner, destination="pacs", limit=3)
            empty = 0 if rows else empty + 1
            for row in rows:
                taken.put((owner, row.id, row.study_instance_uid, row.revision, "begin"))
                time.sleep(0.001)
                taken.put((owner, row.id, row.study_instance_uid, row.revision, "end"))
                ledger.deliveries.delivered(row, {})


def fill(ledger, studies=6, subjects=4):
    for study in range(studies):
        for subject in range(subjects):
            owe(ledger, parcel(f"1.2.{study}.{subject}", study=f"1.2.{study}"))


def drained(queue, expected):
    return [queue.get(timeout=20) for _ in range(expected)]


@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_concurrent_claimers_never_take_the_same_one_nor_two_of_a_study(ledger, url, workers):
    fill(ledger)
    context = multiprocessing.get_context("spawn")
    taken = context.Queue()
    make = threading.Thread if workers == "threads" else context.Process
    claimers = [make(target=take_all, args=(url, f"worker-{number}", taken)) for number in range(2)]
    for claimer in claimers:
        claimer.start()
    records = drained(taken, 2 * 24)
    for claimer in claimers:
        claimer.join(20)

    begun = [record[1] for record in records if record[4] == "begin"]
    assert len(begun) == len(set(begun)) == 24
    in_flight = set()
    for _, _, study, _, what in records if workers == "threads" else ():
        assert (study in in_flight) == (what == "end")
        in_flight ^= {study}


def test_revisions_that_come_while_others_are_sent_arrive_in_order(ledger, url):
    """One thread enqueues ever newer revisions, two deliver: what arrives of a subject only ever grows."""
    arrived = []
    is_over = threading.Event()

    def deliver():
        with Ledger.open(url) as mine:
            is_last = False
            while not is_last:
                is_last = is_over.is_set()
                for row in mine.deliveries.claim(threading.current_thread().name, destination="pacs"):
                    time.sleep(0.002)
                    arrived.append((row.subject, row.revision))
                    if row.revision % 3:
                        mine.deliveries.delivered(row, {})
                    else:
                        mine.deliveries.try_later(row, "no answer", in_doubt=True)

    threads = [threading.Thread(target=deliver, name=f"courier-{number}") for number in range(2)]
    for thread in threads:
        thread.start()
    for digest in range(25):
        owe(ledger, parcel(digest=str(digest)))
        time.sleep(0.005)
    is_over.set()
    for thread in threads:
        thread.join(20)

    revisions = [revision for _, revision in arrived]
    assert revisions == sorted(set(revisions))
    assert revisions[-1] == 25
