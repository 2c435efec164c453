"""Promises of docs/reliability.md, each shown by scenarios of ``make chaos`` that need no Airflow."""

import pytest
from airflow.sdk.exceptions import TaskDeferred

from chaos.conservation import check
from chaos.place import open_place
from chaos.run import choose


@pytest.fixture
def play(emulator, tmp_path):
    """Play a scenario; all that is wrong afterwards."""

    def play(name):
        (scenario,) = choose([name])
        with open_place(tmp_path, emulator, **scenario.connection) as place:
            scenario.run(place)
            place.must_have_struck()
            return list(check(place.books()).lines())

    return play


@pytest.mark.parametrize("name", ["still-arriving", "permission-denied"])
def test_R1_every_file_comes_to_one_named_end(play, name):
    assert play(name) == []


@pytest.mark.parametrize("name", ["every-step-twice", "ledger-file-gone"])
def test_R2_what_is_done_stays_done_whatever_is_repeated(play, name):
    assert play(name) == []


@pytest.mark.parametrize("name", ["another-patients-files", "archive-has-another-patient", "one-study-of-two-patients"])
def test_R3_a_result_reaches_only_its_patient(play, name):
    assert play(name) == []


def test_R5_waiting_holds_no_worker(emulator, tmp_path):
    with open_place(tmp_path, emulator) as place:
        _, film, _ = place.usual()
        place.control.plan(film, outcome="stuck")
        place.begin()
        for batch in place.planned():
            place.upload(batch)
            with pytest.raises(TaskDeferred) as deferred:
                place.collector(batch).execute(place.context())
            assert deferred.value.timeout
        assert place.control.count("results", uid=film) == 1


def test_R5_waiting_ends_at_its_deadline(play):
    assert play("processed-for-ever") == []


def test_R7_unknown_never_reads_as_normal(play):
    assert play("triage-that-nobody-knows") == []


def test_R8_one_denied_image_harms_no_other(play):
    assert play("denied-for-one") == []
