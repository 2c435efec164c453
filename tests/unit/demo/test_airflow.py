import sys
import time

import pytest

from demo import airflow
from demo.airflow import AirflowStack

ENDS = [sys.executable, "-c", "exit(3)"]


@pytest.fixture
def stack(tmp_path, monkeypatch):
    monkeypatch.setattr(airflow, "COMPONENTS", {"version": ()})
    with_nothing_started = AirflowStack(tmp_path, dags_folder=tmp_path)
    yield with_nothing_started
    with_nothing_started.stop()


def test_a_component_that_ended_by_itself_is_started_anew_and_nothing_else_is(stack):
    for name in ("version", "service"):
        stack.processes.start(name, ENDS, env=stack.env, cwd=stack.home)
    deadline = time.monotonic() + 10
    while len(stack.processes.ended()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    before = [leader.pid for leader in stack.processes.leaders]
    stack.revive()
    anew = [leader.name for leader in stack.processes.leaders if leader.pid not in before]
    assert anew == ["version"]
    assert list(stack.processes.ended()) == ["service"]
