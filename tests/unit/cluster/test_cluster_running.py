"""Starting, watching and ending services, with small programs in the place of real ones."""

import time

import psutil
import pytest

from cluster.cluster import Cluster, ClusterError

QUICKLY = "interval: 1s, start_period: 30s, start_interval: 1s"


@pytest.fixture
def make(tmp_path):
    made = []

    def cluster(text):
        path = tmp_path / "docker-compose.yaml"
        path.write_text("services:\n" + text.replace("IMAGE", "image: airflow-provider-qure"))
        made.append(Cluster(path, tmp_path / "root", variables={}))
        return made[-1]

    yield cluster
    for each in made:
        each.stop()


def processes_of(cluster):
    leaders = [psutil.Process(leader.pid) for leader in cluster.processes.leaders]
    return [process for leader in leaders for process in (leader, *leader.children(recursive=True))]


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_service_starts_when_what_it_depends_on_is_as_far(make, tmp_path):
    notes = tmp_path / "notes"
    cluster = make(
        f"""
  last:
    IMAGE
    command: [sh, -c, 'echo last >> {notes}; sleep 60']
    depends_on: {{init: {{condition: service_completed_successfully}}}}
  init:
    IMAGE
    command: [sh, -c, 'echo init >> {notes}']
    depends_on: {{base: {{condition: service_healthy}}}}
  base:
    IMAGE
    command: [sh, -c, 'sleep 0.3; echo base >> {notes}; sleep 60']
    healthcheck: {{test: [CMD, test, -e, {notes}], {QUICKLY}}}
"""
    )
    cluster.start(timeout=20)
    wait_for(lambda: notes.read_text().split() == ["base", "init", "last"])
    cluster.check()


def test_nothing_is_left_when_it_stops(make):
    cluster = make("  one: {IMAGE, command: [sh, -c, 'sleep 61 & sleep 62']}\n")
    cluster.start(timeout=20)
    wait_for(lambda: len(processes_of(cluster)) == 3)
    running = processes_of(cluster)
    cluster.stop()
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in running)


def test_a_service_that_ends_by_itself_is_named_with_its_log(make, tmp_path):
    cluster = make("  one: {IMAGE, command: [sh, -c, 'exit 3']}\n  two: {IMAGE, command: [sleep, '60']}\n")
    with pytest.raises(ClusterError, match=rf"one ended with 3; see {tmp_path}/root/logs/one\.log"):
        wait_for(lambda: cluster.start(timeout=20) and cluster.check())


def test_an_init_that_fails_stops_all_of_it(make):
    cluster = make(
        """
  init: {IMAGE, command: ['false']}
  one: {IMAGE, command: [sleep, '60'], depends_on: {init: {condition: service_completed_successfully}}}
"""
    )
    with pytest.raises(ClusterError, match="init ended with 1"):
        cluster.start(timeout=20)
    assert cluster.processes.leaders == ()


def test_a_service_that_stays_ill_is_named_with_what_its_check_said(make):
    check = "{test: [CMD-SHELL, 'echo no heart beat; exit 1'], interval: 1s, retries: 2}"
    cluster = make(f"  one: {{IMAGE, command: [sleep, '60'], healthcheck: {check}}}\n")
    with pytest.raises(ClusterError, match="one is ill: no heart beat"):
        cluster.start(timeout=20)


def test_a_check_that_takes_too_long_has_failed(make):
    check = "{test: [CMD, sleep, '60'], timeout: 1s, retries: 1}"
    cluster = make(f"  one: {{IMAGE, command: [sleep, '60'], healthcheck: {check}}}\n")
    with pytest.raises(ClusterError, match="one is ill: no answer in 1 s"):
        cluster.start(timeout=20)


def test_it_says_what_it_waited_for(make):
    check = f"{{test: [CMD, 'false'], {QUICKLY}}}"
    cluster = make(f"  one: {{IMAGE, command: [sleep, '60'], healthcheck: {check}}}\n")
    with pytest.raises(ClusterError, match="Not ready after 1 s: one"):
        cluster.start(timeout=1)


def test_a_lost_service_can_say_nothing_and_stays_lost(make, tmp_path):
    notes, ready = tmp_path / "notes", tmp_path / "ready"
    script = f'trap "echo asked >> {notes}" TERM INT HUP; (sleep 61; echo seen >> {notes}) & touch {ready}; wait; wait'
    cluster = make(f"  one: {{IMAGE, command: [sh, -c, '{script}']}}\n  two: {{IMAGE, command: [sleep, '62']}}\n")
    cluster.start(timeout=20)
    wait_for(ready.exists)
    running = processes_of(cluster)
    cluster.kill("one")
    alive = [process for process in running if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert [process.cmdline() for process in alive] == [["sleep", "62"]]
    assert not notes.exists()
    cluster.check()
