"""A whole Airflow with a SIMULATED hospital around it, each part a process of its own that can be killed.

The scheduler (LocalExecutor), the API server, the DAG processor and the triggerer are Airflow's own; the service is the
emulator as a program; the archive is Orthanc where it is installed. All scenarios of this layer share them; each has
nights and patients of its own. What is killed, or ends by itself, is started anew at once, as whatever watches over it
would.
"""

from __future__ import annotations

import os
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
from chaos.truth import read_sources
from demo.airflow import AirflowError, AirflowStack
from demo.hospital import Hospital, start_hospital
from demo.processes import Processes
from demo.service import Service, start_service
from qure_provider.emulator.model import AnyFault
from qure_provider.store import ledger_url
from tests.integration.pipeline.pipeline_kit import image, slices

ROOT = Path(__file__).resolve().parent.parent
DAG_ID = "chaos_night"
ZONE = ZoneInfo("Asia/Kolkata")
FIRST_NIGHT = date(2026, 1, 10)
PATIENTS = 100
"""How many the EHR knows."""
SLICES = 10
NIGHT_SECONDS = 240
"""How long a night may take, with all that goes wrong in it."""


@dataclass(slots=True)
class AirflowPlace:
    """All of it, running.

    Attributes:
        folder: Its folder.
        airflow: Airflow.
        service: The emulator.
        hospital: The receivers.
        resent: How many files may come to the service again, because it lost an answer: a scenario says so.
        nights: The nights of the scenario that is played.
    """

    folder: Path
    airflow: AirflowStack
    service: Service
    hospital: Hospital
    resent: int = 0
    nights: list[str] = field(default_factory=list)
    _days: int = 0
    _patients: int = 0

    def begin(self) -> None:
        """Begin another scenario."""
        self.resent = 0
        self.nights.clear()
        self.service.control.clear_faults()
        self.service.control.configure(processing_seconds=1)

    # What is exported

    def next_night(self) -> str:
        """Name a night that has not been, and make its folder."""
        night = (FIRST_NIGHT + timedelta(days=self._days)).isoformat()
        self._days += 1
        self.nights.append(night)
        (self.exports / night).mkdir()
        return night

    def usual(self) -> tuple[str, str]:
        """Export, as another night, a chest film and another patient's urgent head CT.

        Returns:
            The night's name, and the UID by which the head is asked for.
        """
        night = self.next_night()
        image("CR", **self._patient()).save_as(self.exports / night / "film.dcm")
        return night, self.put(night, self.urgent_head())

    def urgent_head(self) -> list[Any]:
        """Make another patient's head CT, of which the result will be urgent."""
        head: list[Any] = slices(SLICES, **self._patient())
        self.service.control.plan(head[0].SeriesInstanceUID, findings=("intracranial_hemorrhage",))
        return head

    def put(self, night: str, images: Sequence[Any], *, pause: float = 0) -> str:
        """Write a series into a night's export, with a pause in seconds after each file; returns its UID."""
        for number, each in enumerate(images):
            each.save_as(self.exports / night / f"slice-{number}.dcm")
            time.sleep(pause)
        return str(images[0].SeriesInstanceUID)

    def _patient(self) -> dict[str, str]:
        self._patients += 1
        return {
            "PatientID": _patient_id(self._patients),
            "PatientName": f"SIMULATED^{self._patients:04}",
            "AccessionNumber": f"SIM-A{self._patients}",
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
        """Start a run of a night, due so many minutes after two; returns its id."""
        return self.airflow.api.trigger(DAG_ID, logical_date=_due(night, minute))

    def backfill(self, nights: Sequence[str]) -> list[str]:
        """Run some nights by a backfill; returns the ids of its runs."""
        first, last = (_due(night).isoformat() for night in (nights[0], nights[-1]))
        body = {"dag_id": DAG_ID, "from_date": first, "to_date": last, "max_active_runs": len(nights)}
        self.airflow.api.post("backfills", body)
        runs = self.airflow.api.get(f"dags/{DAG_ID}/dagRuns", run_type="backfill")["dag_runs"]
        expect(len(runs) == len(nights), f"the backfill has {len(runs)} runs for {len(nights)} nights")
        return [str(run["dag_run_id"]) for run in runs]

    def clear(self, run: str) -> None:
        """Clear a whole run, as a person does in the UI."""
        body = {"dag_run_id": run, "dry_run": False, "only_failed": False, "reset_dag_runs": True}
        self.airflow.api.post(f"dags/{DAG_ID}/clearTaskInstances", body)

    def instances(self, run: str, task: str) -> list[dict[str, Any]]:
        """The instances of one of a run's tasks; none while Airflow does not answer."""
        try:
            found = self.airflow.api.task_instances(DAG_ID, run)
        except (requests.RequestException, AirflowError):
            return []
        return [each for each in found if each["task_id"].endswith(task)]

    def states(self, run: str, task: str) -> list[str]:
        """The states of the instances of one of a run's tasks."""
        return [str(each["state"]) for each in self.instances(run, task)]

    def waiting(self, run: str) -> int:
        """How many of a run's tasks wait in a triggerer."""
        deferred = [each["trigger"] for each in self.instances(run, "") if each["state"] == "deferred"]
        return sum(bool(trigger and trigger["triggerer_id"]) for trigger in deferred)

    def state(self, run: str) -> str:
        """The state of a run; empty while Airflow does not answer."""
        try:
            return self.airflow.api.run_state(DAG_ID, run)
        except (requests.RequestException, AirflowError):
            return ""

    def ends_well(self, run: str) -> None:
        """Wait until a run has ended.

        Raises:
            UnexpectedError: It fails or does not end, or a fault that was to strike did not.
        """
        self.wait_for(lambda: self.state(run) in ("success", "failed"), "the run does not end")
        expect(not self.service.control.pending_faults(), "a fault never struck")
        ended = {f"{each['task_id']}[{each['map_index']}]": each["state"] for each in self.instances(run, "")}
        bad = {name: state for name, state in ended.items() if state not in ("success", "skipped", "removed")}
        expect(self.state(run) == "success" and not bad, f"the run is {self.state(run)}: {bad}")

    def wait_for(self, is_so: Callable[[], object], otherwise: str) -> None:
        """Wait until something is so; what of Airflow ends by itself meanwhile is started anew.

        Raises:
            UnexpectedError: It takes too long.
        """
        until = time.monotonic() + NIGHT_SECONDS
        while not is_so():
            if time.monotonic() > until:
                raise UnexpectedError(otherwise)
            self.airflow.revive()
            time.sleep(0.2)

    def strikes(self, fault: AnyFault) -> None:
        """Wait until a fault, just switched on and the only one, has struck."""
        self.wait_for(lambda: not self.service.control.pending_faults(), f"no {fault.kind} has a {fault.effect}")

    # What dies

    def process_of(self, run: str, task: str) -> psutil.Process:
        """The process of a run's only task of that name."""
        (instance,) = self.instances(run, task)
        process = psutil.Process(instance["pid"])
        expect(os.getsid(process.pid) in self._leaders(), f"{task} is no process of ours")
        return process

    def kill_worker(self, run: str, task: str) -> None:
        """Kill the process of a run's only task of that name, and the worker that looks after it, with SIGKILL."""
        process = self.process_of(run, task)
        worker = psutil.Process(process.ppid())
        expect(os.getsid(worker.pid) in self._leaders() - {worker.pid}, f"{task} has no worker")
        for each in (worker, process):
            each.kill()

    def _leaders(self) -> set[int]:
        return {leader.pid for leader in self.airflow.processes.leaders}

    # What must have come of it

    def books(self) -> Books:
        """The accounts for the conservation check, of this scenario's nights."""
        return Books(
            sources=[source for source in read_sources(self.exports) if source.night in self.nights],
            control=self.service.control,
            ledger=ledger_url(str(self.store)),
            store=self.store,
            receivers=AsPrograms(self.hospital, _pager(self.folder)),
            resent=self.resent,
        )


@contextmanager
def open_airflow_place(folder: Path) -> Iterator[AirflowPlace]:
    """Start all of it; it is ended afterwards.

    Args:
        folder: New folder for all of it.

    Yields:
        The place, ready.
    """
    (folder / "export").mkdir(parents=True)
    with Processes(folder / "logs") as processes:
        service = start_service(processes, folder / "service", processing_seconds=1)
        airflow = AirflowStack(
            folder / "airflow",
            dags_folder=ROOT / "chaos" / "dags",
            env={
                **_SETTINGS,
                "AIRFLOW__QURE__EXPORT_ROOT": str(folder / "export"),
                "AIRFLOW__QURE__STORE_ROOT": str(folder / "store"),
                PAGER_FILE: str(_pager(folder)),
            },
            parallelism=6,
            processes=processes,
        ).start()
        patients = [_patient_id(number) for number in range(1, PATIENTS + 1)]
        hospital = start_hospital(processes, folder / "hospital", patients)
        airflow.wait_ready(dag_ids=[DAG_ID])
        airflow.api.add_connection(
            "qure_default",
            conn_type="qure",
            host=service.url,
            port=urlsplit(service.url).port,
            password=service.token,
            # Several requests for a series: something of it is acknowledged when its upload is broken off.
            extra={"source": service.source, "max_request_bytes": 6000, "parallel_uploads": 1},
        )
        for conn_id, connection in hospital.connections.items():
            airflow.api.add_connection(conn_id, **connection)
        yield AirflowPlace(folder, airflow, service, hospital)


_SETTINGS: Mapping[str, str] = {
    "PYTHONPATH": str(ROOT),
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "AIRFLOW__QURE__IDENTITY_POLICY": "identified",
    "AIRFLOW__QURE__ALLOW_QUARANTINED": "True",
    "AIRFLOW__QURE__TIMEZONE": ZONE.key,
    "AIRFLOW__QURE__DELIVER_TO": "pacs ris ehr",
    "AIRFLOW__QURE__PSEUDONYM_KEY": "chaos",
    "AIRFLOW__QURE__FIRST_POLL_SECONDS": "1",
    "AIRFLOW__QURE__MAX_POLL_SECONDS": "1",
    "AIRFLOW__QURE__SETTLE_SECONDS": "2",
    # How soon a loss is noticed; where nothing is set it takes 300 s for a worker and 30 s for the others.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
}


def _due(night: str, minute: int = 0) -> datetime:
    return datetime.combine(date.fromisoformat(night), clock(2, minute), ZONE)


def _pager(folder: Path) -> Path:
    return folder / "told"


def _patient_id(number: int) -> str:
    return f"SIM-{number:04}"
