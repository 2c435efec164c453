"""What was sent in place of whose a study is."""

import pytest
from ledger_kit import begin, plan, series

from qure_provider.dicom.pseudonym import IdentityMap, Pseudonymizer
from qure_provider.ledger.pseudonyms import Sending

OLD, NEW = Pseudonymizer(b"o" * 32), Pseudonymizer(b"n" * 32)


def way_back(row, key=OLD, **uids):
    sent = key.identity(row.identity)
    known = {key.uid(row.uid): row.uid, sent.study_instance_uid: row.identity.study_instance_uid, **uids}
    return IdentityMap(row.identity, sent, known, {"20200101": "20260101"}, key.key_id)


def send(ledger, row, key=OLD, **uids):
    ledger.pseudonyms.begin([row.id], key.key_id)
    return ledger.pseudonyms.record([Sending(row.id, key.uid(row.uid), way_back(row, key, **uids))])


def row_of(ledger, number=1):
    (batch,) = plan(ledger, begin(ledger, f"r{number}"), series(number))
    (row,) = ledger.rows_of_batch(batch)
    return row


def again(ledger, row):
    (found,) = ledger.rows_by_id([row.id])
    return found


def test_what_was_sent_as_it_is_has_no_way_back(ledger):
    row = row_of(ledger)
    assert ledger.pseudonyms.way_back(row.id) is None
    assert row.ref.uid == row.ref.own_uid == row.uid


def test_the_way_back_is_what_was_recorded_and_the_result_is_asked_for_by_the_pseudonym(ledger):
    row = row_of(ledger)
    assert send(ledger, row) == {}

    assert ledger.pseudonyms.way_back(row.id) == way_back(row)
    ref = again(ledger, row).ref
    assert (ref.uid, ref.own_uid) == (OLD.uid(row.uid), row.uid)


def test_a_retry_adds_to_it(ledger):
    row = row_of(ledger)
    send(ledger, row, **{"2.25.1": "1.2.1"})
    ledger.acknowledge([(row.id, "1.2.1")])
    send(ledger, row, **{"2.25.2": "1.2.2"})

    assert {"2.25.1", "2.25.2"} <= ledger.pseudonyms.way_back(row.id).uids.keys()
    assert ledger.acknowledged([row.id])[row.id] == {"1.2.1"}


@pytest.mark.parametrize("key_id", [NEW.key_id, ""])
def test_another_key_or_none_forgets_what_was_begun(ledger, key_id):
    row = row_of(ledger)
    send(ledger, row)
    ledger.acknowledge([(row.id, "1.2.1")])

    ledger.pseudonyms.begin([row.id], key_id)

    assert ledger.acknowledged([row.id])[row.id] == set()
    assert ledger.pseudonyms.way_back(row.id) is None
    assert again(ledger, row).sent_uid is None


def test_a_pseudonym_of_two_sources_is_refused_and_harms_no_other(ledger, monkeypatch):
    one, other, third = (row_of(ledger, number) for number in (1, 2, 3))
    send(ledger, one)
    taken = way_back(one).pseudonym.patient_id
    with monkeypatch.context() as colliding:
        colliding.setattr(Pseudonymizer, "patient_id", lambda self, patient: taken)
        same_patient = way_back(other)
    sendings = [
        Sending(other.id, OLD.uid(other.uid), same_patient),
        Sending(third.id, OLD.uid(third.uid), way_back(third)),
    ]

    refused = ledger.pseudonyms.record(sendings)

    assert list(refused) == [other.id]
    assert ledger.pseudonyms.way_back(other.id) is None
    assert ledger.pseudonyms.way_back(third.id) == way_back(third)


def test_a_resource_of_another_ones_pseudonym_is_refused(ledger):
    one, other = row_of(ledger, 1), row_of(ledger, 2)
    send(ledger, one)

    assert list(ledger.pseudonyms.record([Sending(other.id, OLD.uid(one.uid), way_back(other))])) == [other.id]


def test_it_is_forgotten_with_the_resource(ledger):
    run = begin(ledger)
    (batch,) = plan(ledger, run, series())
    (row,) = ledger.rows_of_batch(batch)
    send(ledger, row)
    ledger.finish_run(run.id)

    ledger.prune(before=9e12)

    assert ledger.pseudonyms.way_back(row.id) is None
