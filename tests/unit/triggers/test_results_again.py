"""When a result that could not be taken is tried again."""

import json
import time

import pytest

from qure_provider.api.errors import QureSettingsError, QureTransientError
from qure_provider.triggers.results import Again, QureResultsTrigger, ResultsEvent, Wake

NOW = 1_000_000.0
AWAY = QureTransientError("away")


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: NOW)


def test_it_is_left_alone_a_minute_and_twice_as_long_each_time_up_to_a_quarter_of_an_hour():
    waits, before = [], None
    for _ in range(7):
        before = Again.after(4, AWAY, before)
        waits.append(before.at - NOW)
        before = Again(before.key, before.times, NOW)
    assert waits == [60, 120, 240, 480, 900, 900, 900]


def test_a_longer_pause_that_the_service_asked_for_is_kept():
    assert Again.after(4, QureTransientError("busy", retry_after=2000), None) == Again(4, 1, NOW + 2000)
    assert Again.after(4, QureTransientError("busy", retry_after=5), None) == Again(4, 1, NOW + 60)


def test_one_that_blames_the_settings_is_tried_again_too():
    assert Again.after(4, QureSettingsError("token"), None) == Again(4, 1, NOW + 60)


def test_a_try_before_its_turn_counts_for_nothing():
    before = Again(4, 2, NOW + 50)
    assert Again.after(4, AWAY, before) == before
    assert Again.after(4, QureTransientError("busy", retry_after=70), before) == Again(4, 2, NOW + 70)


def test_the_event_brings_back_what_the_task_said():
    event = ResultsEvent(Wake.URGENT, urgent=(4,), again=(Again(4, 2, NOW), Again(5, 1, NOW + 0.5)))
    assert ResultsEvent.from_payload(json.loads(json.dumps(event.to_payload()))) == event


def test_an_event_of_before_knows_of_none():
    assert ResultsEvent.from_payload({"wake": "all", "urgent": [], "done": []}).again == ()


@pytest.mark.parametrize("again", [None, [4], [[4]], [[4, 1, "soon"]]])
def test_what_is_none_is_not_understood(again):
    with pytest.raises(ValueError, match="not understood"):
        ResultsEvent.from_payload({"wake": "all", "urgent": [], "done": [], "again": again})


def test_a_triggers_row_of_before_still_makes_one():
    _, arguments = QureResultsTrigger(qure_conn_id="q", deadline=NOW, batch_id=1, besides=[4]).serialize()
    del arguments["again"]
    trigger = QureResultsTrigger(**arguments)
    assert (trigger.again, trigger.besides) == ([], [4])
