import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from demo.processes import Leader, Processes, end_sessions, load_leaders, save_leaders

FAMILY = textwrap.dedent(
    """
    import os, signal, subprocess, sys, time
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    own_group = subprocess.Popen(sleeper, process_group=0)
    own_session = subprocess.Popen(sleeper, start_new_session=True)
    orphaning = "import subprocess as s, sys; print(s.Popen(sys.argv[1:], process_group=0, stdout=s.DEVNULL).pid)"
    middle = subprocess.run([sys.executable, "-c", orphaning, *sleeper], stdout=subprocess.PIPE, text=True, timeout=5)
    if "stubborn" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(own_group.pid, own_session.pid, middle.stdout.strip(), flush=True)
    time.sleep(60)
    """
)


def start_family(processes, *arguments):
    leader = processes.start("family", [sys.executable, "-c", FAMILY, *arguments], env=os.environ, cwd=processes.logs)
    log = processes.logs / "family.log"
    deadline = time.monotonic() + 10
    while "\n" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    return leader, [int(pid) for pid in log.read_text().split()]


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def processes(tmp_path):
    with Processes(tmp_path) as processes:
        yield processes


def test_children_in_other_groups_and_sessions_and_orphans_are_ended(processes):
    leader, pids = start_family(processes)
    assert len(pids) == 3
    assert all(is_running(pid) for pid in (leader.pid, *pids))
    processes.stop()
    assert not any(is_running(pid) for pid in (leader.pid, *pids))


def test_orphans_are_ended_when_their_leader_had_died(processes):
    leader, (own_group, own_session, orphan) = start_family(processes)
    os.kill(own_session, signal.SIGKILL)
    os.kill(leader.pid, signal.SIGKILL)
    while is_running(leader.pid):
        time.sleep(0.02)
    assert is_running(own_group)
    assert is_running(orphan)
    assert processes.ended() == {"family": -signal.SIGKILL}
    processes.stop()
    assert not is_running(own_group)
    assert not is_running(orphan)


def test_what_is_killed_can_be_started_again_and_its_orphans_are_ended_with_the_rest(processes):
    killed, (own_group, _, orphan) = start_family(processes)
    processes.kill("family")
    assert not is_running(killed.pid)
    assert is_running(own_group)
    assert is_running(orphan)
    assert processes.ended() == {}
    again = processes.start("family", [sys.executable, "-c", FAMILY], env=os.environ, cwd=processes.logs)
    assert processes.leaders == (killed, again)
    processes.stop()
    assert not any(is_running(pid) for pid in (own_group, orphan, again.pid))
    assert processes.leaders == ()


def test_what_ignores_sigterm_is_killed_after_the_grace(processes):
    leader, pids = start_family(processes, "stubborn")
    began = time.monotonic()
    processes.stop(grace=0.5)
    assert 0.5 <= time.monotonic() - began < 5
    assert not any(is_running(pid) for pid in (leader.pid, *pids))


def test_another_program_can_end_what_was_kept_on_disk(processes, tmp_path):
    leader, pids = start_family(processes)
    save_leaders(tmp_path / "state" / "leaders.json", processes.leaders)
    loaded = load_leaders(tmp_path / "state" / "leaders.json")
    assert loaded == (leader,)
    assert end_sessions(loaded) == 4
    assert not any(is_running(pid) for pid in pids)
    assert end_sessions(loaded) == 0


def test_a_process_that_got_the_number_of_an_ended_one_is_left_alone():
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        earlier = Leader("gone", stranger.pid, psutil.Process(stranger.pid).create_time() - 100)
        assert end_sessions([earlier]) == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_nothing_is_loaded_without_a_file_or_after_the_machine_was_started_anew(tmp_path, monkeypatch):
    path = tmp_path / "leaders.json"
    assert load_leaders(path) == ()
    save_leaders(path, [Leader("one", 1, 2.0)])
    assert load_leaders(path) == (Leader("one", 1, 2.0),)
    monkeypatch.setattr(psutil, "boot_time", lambda: time.time())
    assert load_leaders(path) == ()
