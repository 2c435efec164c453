"""The conservation check finds what it is there to find: one night that is whole, and then something done to it."""

import copy
import shutil

import pytest

from chaos.conservation import check
from chaos.place import open_place
from tests.integration.pipeline.pipeline_kit import Pager


@pytest.fixture(scope="module")
def night(emulator, tmp_path_factory):
    """A whole night."""
    with open_place(tmp_path_factory.mktemp("night"), emulator) as place:
        place.usual()
        place.night()
        yield place


@pytest.fixture
def whole(night, tmp_path):
    """The same, to be damaged."""
    before = (list(night.archive.received), list(night.ris.messages), list(Pager.told), dict(night.sources))
    shutil.copytree(night.root, tmp_path / "store")
    assert list(check(night.books()).lines()) == []
    yield night
    night.archive.received[:], night.ris.messages[:], Pager.told[:] = before[:3]
    night.sources.clear()
    night.sources.update(before[3])
    shutil.rmtree(night.export / "late", ignore_errors=True)
    shutil.rmtree(night.root)
    shutil.copytree(tmp_path / "store", night.root)


def wrong(place):
    """Which of the four are not zero."""
    counts = check(place.books()).counts
    return {name for name, number in counts.items() if number}


def remove_from_store(place):
    next(place.root.glob("studies/**/sc.dcm")).unlink()


def shorten_in_store(place):
    next(place.root.glob("studies/**/sc.dcm")).write_bytes(b"")


def remove_from_archive(place):
    del place.archive.received[0]


def remove_from_ris(place):
    del place.ris.messages[0]


def forget_in_ledger(place):
    place.sql("UPDATE resources SET outcome = NULL WHERE route = 'ct'")


def owe_nobody(place):
    place.sql("DELETE FROM deliveries WHERE destination = 'ehr'")


def a_file_that_was_never_sent(place):
    place.xray("late", PatientID="SIM-8", PatientName="SIMULATED^0008")


def an_object_nobody_made(place):
    other = copy.deepcopy(place.archive.received[0])
    other.SOPInstanceUID = "2.25.1"
    place.archive.received.append(other)


def an_object_again(place):
    place.archive.received.append(place.archive.received[0])


def a_message_again(place):
    place.ris.messages.append(place.ris.messages[0])


def told_again(place):
    Pager.told.append(Pager.told[0])


def a_result_nobody_knows(place):
    (result, *_) = place.root.glob("studies/**/result.json")
    shutil.copytree(result.parent, result.parent.with_name("r9"))


def an_object_on_another_patient(place):
    other = copy.deepcopy(place.archive.received[0])
    other.PatientID = "SIM-OTHER"
    place.archive.received[0] = other


def a_message_on_another_patient(place):
    message = place.ris.messages[0]
    raw = message.raw.replace(b"SIM-1", b"SIM-7").replace(b"SIM-2", b"SIM-7").replace(b"SIM-3", b"SIM-7")
    place.ris.messages[0] = type(message)(raw)


def nobody_told(place):
    Pager.told.clear()


def a_meaning_without_a_word(place):
    place.sql("UPDATE resources SET triage = NULL WHERE route = 'ct'")


def not_ready_and_nobody_told(place):
    place.sql("UPDATE resources SET outcome = 'timed out' WHERE route = 'ct'")


def not_delivered_and_nobody_told(place):
    place.sql("UPDATE deliveries SET state = 'dead' WHERE destination = 'ris'")


FOUND = {
    "lost": (
        remove_from_store,
        shorten_in_store,
        remove_from_archive,
        remove_from_ris,
        forget_in_ledger,
        owe_nobody,
        a_file_that_was_never_sent,
    ),
    "doubled": (an_object_nobody_made, an_object_again, a_message_again, told_again, a_result_nobody_knows),
    "misplaced": (an_object_on_another_patient, a_message_on_another_patient),
    "silent": (nobody_told, a_meaning_without_a_word, not_ready_and_nobody_told, not_delivered_and_nobody_told),
}


@pytest.mark.parametrize(
    ("what", "damage"),
    [pytest.param(what, damage, id=damage.__name__) for what, damages in FOUND.items() for damage in damages],
)
def test_it_finds(whole, what, damage):
    damage(whole)
    assert what in wrong(whole)
