"""Starts the demo's programs and ends them with everything that they started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Self

import psutil


@dataclass(frozen=True, slots=True)
class Leader:
    """The first process of a session of its own.

    Attributes:
        name: What it runs.
        pid: Its process id, which is also its session's.
        created: When it was started, seconds since the epoch; tells it from a later process with the same id.
    """

    name: str
    pid: int
    created: float


class Processes:
    """Programs that run in the background, each in a session of its own.

    Airflow's tasks leave their parent's process group but not its session, so a session is what finds all of them,
    those included whose parent has died.

    Args:
        logs: The folder that gets ``<name>.log`` for each program.
        record: The file that says what runs, for as long as something does; None for none.
    """

    def __init__(self, logs: Path, *, record: Path | None = None) -> None:
        self.logs = logs
        self.record = record
        self._started: dict[str, tuple[subprocess.Popen[bytes], Leader]] = {}
        self._killed: list[Leader] = []

    @property
    def leaders(self) -> tuple[Leader, ...]:
        """What was started, in order; what was killed comes first."""
        return (*self._killed, *(leader for _, leader in self._started.values()))

    def start(self, name: str, command: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> Leader:
        """Start one program.

        Args:
            name: Names it and its log.
            command: The program and its arguments.
            env: Its whole environment.
            cwd: Its working folder.

        Returns:
            The session's leader.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        leader = Leader(name, process.pid, psutil.Process(process.pid).create_time())
        self._started[name] = (process, leader)
        if self.record:
            save_leaders(self.record, self.leaders)
        return leader

    def kill(self, name: str) -> None:
        """End a program's first process as ``kill -9`` does; what that had started lives on until ``stop``."""
        process, leader = self._started.pop(name)
        self._killed.append(leader)
        process.kill()
        process.wait()

    def ended(self) -> dict[str, int]:
        """Programs that ended by themselves, with their exit codes."""
        codes = {name: process.poll() for name, (process, _) in self._started.items()}
        return {name: code for name, code in codes.items() if code is not None}

    def stop(self, *, grace: float = 5) -> None:
        """End all of it: SIGTERM, then SIGKILL for what still runs after ``grace`` seconds."""
        with _unstoppable():
            end_sessions(self.leaders, grace=grace)
            for process, _ in self._started.values():
                process.wait()
            self._started.clear()
            self._killed.clear()
            if self.record:
                self.record.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def end_sessions(leaders: Iterable[Leader], *, grace: float = 5) -> int:
    """End every process of some sessions, whoever started it.

    Args:
        leaders: The sessions. One whose number now belongs to another program is passed over.
        grace: Seconds between SIGTERM and SIGKILL.

    Returns:
        How many processes there were.

    Raises:
        RuntimeError: Some still run though they were killed.
    """
    leaders = tuple(leaders)
    known: set[psutil.Process] = set()
    asked: set[psutil.Process] = set()
    patience = time.monotonic() + grace
    while members := _members(leaders):
        known |= members
        overdue = time.monotonic() - patience
        if overdue > _KILL_SECONDS:
            raise RuntimeError(f"Processes that cannot be ended: {sorted(process.pid for process in members)}")
        if overdue > 0:
            _signal(members, signal.SIGKILL)
        else:
            _signal(members - asked, signal.SIGTERM)
            asked |= members
        psutil.wait_procs(members, timeout=0.2)
    return len(known)


def are_running(leaders: Iterable[Leader]) -> bool:
    """Whether any process of some sessions is alive."""
    return bool(_members(tuple(leaders)))


def save_leaders(path: Path, leaders: Iterable[Leader]) -> None:
    """Keep on disk what runs, so that another program can end it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"boot": psutil.boot_time(), "leaders": [asdict(leader) for leader in leaders]}
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def load_leaders(path: Path) -> tuple[Leader, ...]:
    """What :func:`save_leaders` kept; nothing if there is no such file or the machine was started anew since."""
    if not path.exists():
        return ()
    content = json.loads(path.read_text(encoding="utf-8"))
    if abs(content["boot"] - psutil.boot_time()) > _BOOT_TOLERANCE:
        return ()
    return tuple(Leader(**leader) for leader in content["leaders"])


@contextmanager
def signals_as_exit() -> Iterator[None]:
    """Let a SIGTERM or a closed terminal clear up like a Ctrl-C."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_KILL_SECONDS = 10
_BOOT_TOLERANCE = 60  # seconds: the reported time of the start moves when the clock is set


def _members(leaders: Iterable[Leader]) -> set[psutil.Process]:
    """Living processes of the sessions, and their descendants in any other session."""
    sessions = {leader.pid for leader in leaders if _is_ours(leader)}
    parents: dict[psutil.Process, int] = {}
    members: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            parents[process] = process.ppid()
            if os.getsid(process.pid) in sessions:
                members[process.pid] = process
        except (psutil.Error, ProcessLookupError, PermissionError):
            continue
    while more := {p.pid: p for p, parent in parents.items() if parent in members and p.pid not in members}:
        members |= more
    return set(members.values())


def _is_ours(leader: Leader) -> bool:
    try:
        return abs(psutil.Process(leader.pid).create_time() - leader.created) < 1
    except psutil.NoSuchProcess:
        return True  # it ended; its number stays taken as long as its session has members


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


@contextmanager
def _unstoppable() -> Iterator[None]:
    """Let no second Ctrl-C break off the clearing up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
