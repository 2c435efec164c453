"""A whole Airflow with everything around it, each a process of its own that can be killed.

The scheduler (LocalExecutor), the API server, the DAG processor and the triggerer are Airflow's own; the service is the
emulator as a program; the archive is Orthanc where it is installed. One Airflow serves all scenarios of this layer,
each with nights of its own.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from datetime import time as clock
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import psutil
import requests

from chaos.conservation import Books
from chaos.pager import PAGER_FILE
from chaos.place import UnexpectedError, expect
from chaos.receivers import AsPrograms
from chaos.truth import SourceFile, read_sources
from cluster.night import batch_label
from demo.airflow import AirflowStack
from demo.hospital import Hospital, start_hospital
from demo.processes import Processes
from demo.service import Service, start_service
from qure_provider.emulator.model import AnyFault
from qure_provider.ledger.ledger import Ledger
from qure_provider.store import ledger_url
from tests.integration.pipeline.pipeline_kit import image, slices

ROOT = Path(__file__).resolve().parent.parent
DAG_ID = "chaos_night"
GROUP = "process_export"
ZONE = ZoneInfo("Asia/Kolkata")
FIRST_NIGHT = date(2026, 1, 10)
MOST_PATIENTS = 200
NIGHT_SECONDS = 240
"""How long a night may take, with all that goes wrong in it."""
COMPONENTS: Mapping[str, Sequence[str]] = {
    "api-server": ("api-server", "--workers", "1"),
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
    "triggerer": ("triggerer", "--skip-serve-logs"),
}

Instance = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Export:
    """One night's export.

    Attributes:
        night: Its name.
        film: SOPInstanceUID of a chest film.
        head: SeriesInstanceUID of an urgent head CT.
        slices: How many slices that has.
    """

    night: str
    film: str
    head: str
    slices: int = 12


@dataclass(slots=True)
class Plant:
    """All of it, running.

    Attributes:
        folder: Its folder.
        airflow: Airflow.
        service: The emulator.
        hospital: The receivers.
        pager: What people were told.
        resent: How many files may come to the service again: a scenario says so.
        nights: The nights of the scenario.
        sources: What was exported in them.
    """

    folder: Path
    airflow: AirflowStack
    service: Service
    hospital: Hospital
    pager: Path
    resent: int = 0
    nights: list[str] = field(default_factory=list)
    sources: dict[tuple[str, str, str], SourceFile] = field(default_factory=dict)
    _days: int = 0
    _patients: int = 0
    _started: int = 0

    # What is exported

    def begin(self) -> None:
        """Begin another scenario."""
        self.resent = 0
        self.nights.clear()
        self.sources.clear()
        self.service.control.clear_faults()
        self.service.control.configure(processing_seconds=1)

    def next_night(self) -> str:
        """Name a night that has not been."""
        night = (FIRST_NIGHT + timedelta(days=self._days)).isoformat()
        self._days += 1
        self.nights.append(night)
        return night

    def usual(self) -> Export:
        """Export, as another night, a chest film and another patient's urgent head CT."""
        night = self.next_night()
        (film,) = self.put(night, "film", [image("CR", **self.patient())])
        head = slices(12, **self.patient())
        self.put(night, "head", head)
        self.service.control.plan(head[0].SeriesInstanceUID, findings=("intracranial_hemorrhage",))
        return Export(night, film.SOPInstanceUID, head[0].SeriesInstanceUID)

    def put(self, night: str, name: str, images: Sequence[Any]) -> Sequence[Any]:
        """Write images into a night's export."""
        for number, each in enumerate(images):
            path = self.exports / night / name / f"{number}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".part")
            each.save_as(unfinished)
            unfinished.rename(path)
        return images

    def patient(self) -> dict[str, str]:
        """Make a patient; returns what their images say."""
        self._patients += 1
        number = self._patients
        return {
            "PatientID": _patient_id(number),
            "PatientName": f"SIMULATED^{number:04}",
            "AccessionNumber": f"SIM-A{number}",
        }

    @property
    def exports(self) -> Path:
        """One folder a night."""
        return self.folder / "export"

    @property
    def store(self) -> Path:
        """Where results are kept."""
        return self.folder / "store"

    # The night

    def start(self, night: str, *, minute: int = 0) -> str:
        """Start a run of a night; returns its id."""
        when = datetime.combine(date.fromisoformat(night), clock(2, minute), ZONE)
        return self.airflow.api.trigger(DAG_ID, logical_date=when)

    def instances(self, run: str) -> list[dict[str, Any]]:
        """The task instances of a run; none while the API server does not answer."""
        try:
            return self.airflow.api.task_instances(DAG_ID, run)
        except requests.RequestException:
            return []

    def count(self, run: str, state: str) -> int:
        """How many tasks of a run are in a state."""
        return sum(each["state"] == state for each in self.instances(run))

    def clear(self, run: str) -> None:
        """Clear a whole run, as a person does in the UI."""
        body = {"dag_run_id": run, "dry_run": False, "only_failed": False, "reset_dag_runs": True}
        self.airflow.api.post(f"dags/{DAG_ID}/clearTaskInstances", body)

    def backfill(self, nights: Sequence[str]) -> list[str]:
        """Run some nights by a backfill; returns its runs."""
        began = [datetime.combine(date.fromisoformat(night), clock(2), ZONE).isoformat() for night in nights]
        body = {"dag_id": DAG_ID, "from_date": began[0], "to_date": began[-1], "max_active_runs": 2}
        backfill = self.airflow.api.post("backfills", body)["id"]

        def runs() -> list[str]:
            found = self.airflow.api.get(f"dags/{DAG_ID}/dagRuns", run_type="backfill", limit=100)["dag_runs"]
            first = datetime.fromisoformat(began[0])
            mine = [each["dag_run_id"] for each in found if datetime.fromisoformat(each["logical_date"]) >= first]
            return mine if len(mine) == len(nights) else []

        expect(backfill is not None, "there is no backfill")
        return list(self.wait_for(runs, "the backfill does not begin", seconds=60))

    def find(self, run: str, task: str, label: str = "") -> Instance | None:
        """A task of the group that runs now, of the batch of that label."""
        for each in self.instances(run):
            is_it = each["task_id"] == f"{GROUP}.{task}" and label in ("", each["rendered_map_index"])
            if is_it and each["state"] == "running" and each["pid"]:
                return each
        return None

    def ends(self, run: str, *, wanted: str = "success") -> None:
        """Wait until a run ends.

        Raises:
            UnexpectedError: It ends otherwise than it must, or not.
        """
        state = self.wait_for(lambda: self.ended(run), "the run does not end")
        expect(not self.service.control.pending_faults(), "a fault never struck")
        if state != wanted:
            ended = {f"{each['task_id']}[{each['map_index']}]": each["state"] for each in self.instances(run)}
            bad = {name: state for name, state in ended.items() if state not in ("success", "skipped")}
            raise UnexpectedError(f"the run is {state} instead of {wanted}: {bad}")

    def wait_for(self, what: Callable[[], Any], otherwise: str, *, seconds: float = NIGHT_SECONDS) -> Any:
        """Wait until something is so; returns what it is.

        Raises:
            UnexpectedError: It takes too long.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := what():
                return found
            time.sleep(0.2)
        raise UnexpectedError(otherwise)

    def strike(self, fault: AnyFault) -> Callable[[], bool]:
        """Switch a fault on; returns what tells whether it struck."""
        self.service.control.inject(fault)

        def has_struck() -> bool:
            left = self.service.control.pending_faults()
            return not any((each.kind, each.uid, each.effect) == (fault.kind, fault.uid, fault.effect) for each in left)

        return has_struck

    def label(self, export: Export, series: str) -> str:
        """The label of the batch that carries a series."""
        return batch_label(self.store, export.night, series)

    # What dies

    def kill_worker(self, instance: Instance) -> None:
        """Kill a task's process, and the worker that looks after it, with SIGKILL."""
        task = psutil.Process(instance["pid"])
        worker = task.parent()
        for process in (worker, task):
            if process is not None:
                process.kill()

    def kill(self, component: str) -> None:
        """Kill one of Airflow's components with SIGKILL; what it started lives on."""
        leader = next(each for each in reversed(self.airflow.processes.leaders) if each.name.startswith(component))
        process = psutil.Process(leader.pid)
        process.kill()
        process.wait(timeout=10)

    def kill_everything(self) -> None:
        """Kill all of Airflow's components and all of their tasks, as a power cut does."""
        sessions = {each.pid for each in self.airflow.processes.leaders if each.name.partition("~")[0] in COMPONENTS}
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) in sessions:
                    process.kill()
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue

    def restart(self, *components: str) -> None:
        """Start components again, as whatever watches over them would."""
        for component in components:
            self._started += 1
            command = [sys.executable, "-m", "airflow", *COMPONENTS[component]]
            name = f"{component}~{self._started}"
            self.airflow.processes.start(name, command, env=self.airflow.env, cwd=self.airflow.home)

    @contextmanager
    def ledger_locked(self) -> Iterator[None]:
        """Let nobody else use the ledger meanwhile."""
        connection = sqlite3.connect(self.store / "ledger.sqlite3", timeout=30, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")
        finally:
            connection.close()

    # What must have come of it

    def note_sources(self) -> None:
        """Note what is exported now."""
        for source in read_sources(self.exports):
            if source.night in self.nights:
                self.sources[source.night, source.path, source.sha256] = source

    def books(self) -> Books:
        """The accounts for the conservation check, of this scenario's nights."""
        self.note_sources()
        return Books(
            sources=list(self.sources.values()),
            control=self.service.control,
            ledger=ledger_url(str(self.store)),
            store=self.store,
            receivers=AsPrograms(self.hospital, self.pager),
            resent=self.resent,
        )

    def ended(self, run: str) -> str:
        """The state in which a run ended; empty while it has not."""
        try:
            state = self.airflow.api.run_state(DAG_ID, run)
        except requests.RequestException:
            return ""
        return state if state in ("success", "failed") else ""


@contextmanager
def open_plant(folder: Path) -> Iterator[Plant]:
    """Start all of it; it is ended afterwards.

    Args:
        folder: New folder for all of it.

    Yields:
        The plant, ready.
    """
    folder.mkdir(parents=True)
    pager = folder / "told"
    (folder / "export").mkdir()
    with Processes(folder / "logs") as processes:
        service = start_service(processes, folder / "service", processing_seconds=1)
        patients = [_patient_id(number) for number in range(1, MOST_PATIENTS + 1)]
        airflow = AirflowStack(
            folder / "airflow",
            dags_folder=ROOT / "chaos" / "dags",
            env={**_SETTINGS, **_places(folder), PAGER_FILE: str(pager)},
            parallelism=6,
            processes=processes,
        ).start()
        hospital = start_hospital(processes, folder / "hospital", patients)
        airflow.wait_ready(dag_ids=[DAG_ID])
        airflow.api.add_connection(
            "qure_default",
            conn_type="qure",
            host=service.url,
            port=urlsplit(service.url).port,
            password=service.token,
            # Several requests for a series: something of it is acknowledged when a worker dies.
            extra={"source": service.source, "max_request_bytes": 6000, "parallel_uploads": 1},
        )
        for conn_id, connection in hospital.connections.items():
            airflow.api.add_connection(conn_id, **connection)
        plant = Plant(folder, airflow, service, hospital, pager)
        with Ledger.open(ledger_url(str(plant.store)), create=True):
            yield plant


_SETTINGS: Mapping[str, str] = {
    "PYTHONPATH": str(ROOT),
    "AIRFLOW__QURE__IDENTITY_POLICY": "identified",
    "AIRFLOW__QURE__ALLOW_QUARANTINED": "True",
    "AIRFLOW__QURE__TIMEZONE": ZONE.key,
    "AIRFLOW__QURE__DELIVER_TO": "pacs ris ehr",
    "AIRFLOW__QURE__PSEUDONYM_KEY": "chaos",
    "AIRFLOW__QURE__FIRST_POLL_SECONDS": "4",
    "AIRFLOW__QURE__MAX_POLL_SECONDS": "4",
    "AIRFLOW__QURE__SETTLE_SECONDS": "4",
    # How soon a loss is noticed; where nothing is set it takes 300 s for a worker and 30 s for a triggerer.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "10",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
}


def _places(folder: Path) -> dict[str, str]:
    return {
        "AIRFLOW__QURE__EXPORT_ROOT": str(folder / "export"),
        "AIRFLOW__QURE__STORE_ROOT": str(folder / "store"),
    }


def _patient_id(number: int) -> str:
    return f"SIM-{number:04}"
