"""Starts a project's services in the order of their dependencies, watches their health, and ends them all."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

import psutil

from cluster.compose import Condition, HealthCheck, Service, load_project
from cluster.images import check_programs, command_of, environment_of, take_away
from cluster.places import LOOPBACK, Places
from demo.processes import Leader, Processes, end_sessions


class ClusterError(RuntimeError):
    """A service did not start or did not stay; the message says where to look."""


class Cluster:
    """The services of a Compose file as processes of this machine.

    It restarts nothing: what is killed stays dead, as if its machine were lost. Health is watched until a service is
    healthy for the first time.

    Args:
        compose_file: The file.
        root: Folder for logs, volumes and whatever else the services keep.
        variables: What ``.env`` would hold.
        profiles: Which profiles are wanted.
        overrides: Further environment variables of Airflow's services, as a ``docker-compose.override.yaml`` would
            give them.
        processes: What starts and ends the services; None for an own one.

    Attributes:
        services: The services by name.
        processes: What runs.
    """

    def __init__(
        self,
        compose_file: Path,
        root: Path,
        *,
        variables: Mapping[str, str],
        profiles: Iterable[str] = (),
        overrides: Mapping[str, str] | None = None,
        processes: Processes | None = None,
    ) -> None:
        project = load_project(compose_file, variables, profiles=profiles)
        self.services = {
            name: replace(service, environment={**service.environment, **(overrides or {})})
            if "AIRFLOW_HOME" in service.environment
            else service
            for name, service in project.services.items()
        }
        self._places = Places(project, root)
        self.processes = processes or Processes(root / "logs")
        self._started: dict[str, Leader] = {}
        self._healthy: set[str] = set()
        self._ill: dict[str, str] = {}
        self._killed: set[str] = set()
        self._stopping = threading.Event()

    def url(self, service: str, port: int) -> str:
        """Where a service's port is reached, as an HTTP address."""
        return f"http://{LOOPBACK}:{self._places.port(service, port)}"

    def address(self, service: str, text: str) -> str:
        """A text such as a database's URL, with this machine's addresses, as a service sees it."""
        return self._places.text(self.services[service], text)

    def volume(self, name: str) -> Path:
        """The folder that stands for a volume."""
        return self._places.volume(name)

    def start(self, timeout: float = 300) -> Self:
        """Start everything.

        Args:
            timeout: Seconds until all of it has to be healthy.

        Returns:
            Itself, when every service that has a health check is healthy.

        Raises:
            ClusterError: A service ended, is ill, or it took too long.
            ImageError: A program is missing.
        """
        check_programs([service.image for service in self.services.values()])
        deadline = time.monotonic() + timeout
        try:
            while waiting := self._waiting():
                self.check()
                for service in waiting:
                    if service.name not in self._started and self._may_start(service):
                        self._start(service)
                if time.monotonic() > deadline:
                    names = ", ".join(service.name for service in waiting)
                    raise ClusterError(f"Not ready after {timeout:g} s: {names}; see {self.processes.logs}")
                time.sleep(0.2)
        except BaseException:
            self.stop()
            raise
        return self

    def check(self) -> None:
        """Look whether everything that was started still runs.

        Raises:
            ClusterError: Something ended by itself, or is ill.
        """
        ended = {name: code for name, code in self.processes.ended().items() if code or not self._is_finite(name)}
        for name in ended.keys() - self._killed:
            raise ClusterError(f"{name} ended with {ended[name]}; see {self.processes.logs / name}.log")
        for name, said in self._ill.items():
            raise ClusterError(f"{name} is ill: {said}; see {self.processes.logs / name}.log")

    def kill(self, service: str) -> None:
        """End a service as a power cut would: all of its processes at once, none can say or tidy anything."""
        leader = self._started[service]
        self._killed.add(service)
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(leader.pid)
            first.suspend()  # so that nobody sees another die
            for process in first.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
        end_sessions([leader], grace=0)

    def stop(self) -> None:
        """End everything."""
        self._stopping.set()
        self.processes.stop(grace=10)
        take_away(self._places)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _waiting(self) -> list[Service]:
        """The services that have not come as far as they shall: started, healthy, or through."""
        return [service for service in self.services.values() if not self._is(service.name, self._goal(service))]

    def _goal(self, service: Service) -> Condition:
        if self._is_finite(service.name):
            return Condition.COMPLETED
        return Condition.HEALTHY if service.health else Condition.STARTED

    def _is_finite(self, name: str) -> bool:
        return any(other.depends_on.get(name) is Condition.COMPLETED for other in self.services.values())

    def _is(self, name: str, condition: Condition) -> bool:
        match condition:
            case Condition.STARTED:
                return name in self._started
            case Condition.HEALTHY:
                return name in self._healthy
            case Condition.COMPLETED:
                return self.processes.ended().get(name) == 0

    def _may_start(self, service: Service) -> bool:
        return all(self._is(name, condition) for name, condition in service.depends_on.items())

    def _start(self, service: Service) -> None:
        self._places.prepare(service)
        environment = environment_of(service, self._places)
        folder = self._places.path(service, service.working_dir) if service.working_dir else self._places.own(service)
        command = command_of(service, self._places)
        self._started[service.name] = self.processes.start(service.name, command, env=environment, cwd=folder)
        if service.health:
            probe = threading.Thread(target=self._watch, args=(service, service.health, environment), daemon=True)
            probe.start()

    def _watch(self, service: Service, health: HealthCheck, environment: Mapping[str, str]) -> None:
        """Check a service's health until it is healthy, or was ill for too long."""
        command = [self._places.text(service, part) for part in health.command]
        began = time.monotonic()
        failures = 0
        while not self._stopping.is_set():
            said = _failure(command, environment, health.timeout)
            if said is None:
                self._healthy.add(service.name)
                return
            is_starting = time.monotonic() - began < health.start_period
            failures += not is_starting
            if failures >= health.retries:
                self._ill[service.name] = said
                return
            self._stopping.wait(health.start_interval if is_starting else health.interval)


def _failure(command: list[str], environment: Mapping[str, str], timeout: float) -> str | None:
    """Run a health check; returns what it said if it failed."""
    try:
        done = subprocess.run(
            command, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {timeout:g} s"
    return None if done.returncode == 0 else (done.stdout + done.stderr).strip()[-500:]
