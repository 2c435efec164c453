"""A SIMULATED hospital for one scenario: the steps of a night as their tasks run them, real servers on both sides.

The service, the archive, the RIS and the EHR are servers on the loopback interface; the ledger and the store lie on
disk. Of Airflow there is only what it would decide here: whether a step that failed is tried again, which its own retry
policy is asked. Pauses between tries are left out, and what is waited for minutes is waited for seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tenacity import wait_none

from chaos.conservation import Books
from chaos.receivers import InProcess
from chaos.truth import SourceFile, read_sources
from qure_provider.emulator.server import RunningEmulator
from qure_provider.hooks import retry
from qure_provider.operators.redeliver import QureRedeliverOperator
from qure_provider.retries import QureRetryPolicy
from qure_provider.store import ledger_url
from qure_provider.triggers import alerts
from qure_provider.triggers import results as results_trigger
from tests.integration.pipeline.pipeline_kit import Hospital, Pager
from tests.support.dicom_archive import DicomArchive, match
from tests.support.fhir_server import running_fhir_server
from tests.support.hl7_receiver import Hl7Receiver

ROOT = Path(__file__).resolve().parent.parent
DESTINATIONS = ("pacs", "ris", "ehr")
TRIES = 4
"""As often as our operators are tried."""
WORKERS = 4
"""How many batches are under way at once."""
PATIENTS = "urn:simulated:patients"
_WAITS: dict[str, Any] = {"connect_timeout": 10, "response_timeout": 10}

Batch = Mapping[str, Any]


class UnexpectedError(Exception):
    """A scenario did not come out as it must; the message says what is different."""


class NotPossibleError(Exception):
    """A scenario cannot be played on this machine; the message says why."""


def expect(is_so: object, what: str) -> None:
    """Raise unless something is so.

    Raises:
        UnexpectedError: It is not.
    """
    if not is_so:
        raise UnexpectedError(what)


class Place(Hospital):
    """The hospital.

    Args:
        folder: New folder for all of it.
        emulator: The running service.
        archive: The archive.
        ris: The RIS.
        ehr: The EHR.
        stack: What ends with the hospital.

    Attributes:
        pager: Who is told of urgent results.
        receivers: The three of them.
        red: Why the last night's run was red; empty where it was green.
        gave_up: How many steps of the last night were given up.
        resent: How many files may come to the service again, because it lost an answer: a scenario says so.
        recomputed: How often a series may be computed once more, for the same reason.
        repeated: How many objects, messages and pages may come to a receiver again under the same id; idem.
        sources: The exported files that were noted.
        pace: Arguments of collect, where the usual haste would pass over what is to be shown.
    """

    def __init__(
        self,
        folder: Path,
        emulator: RunningEmulator,
        archive: DicomArchive,
        ris: Hl7Receiver,
        ehr: Any,
        stack: ExitStack,
    ) -> None:
        super().__init__(folder, emulator)
        self.receivers = InProcess(archive, ris, ehr, [])
        self.archive, self.ris, self.ehr = archive, ris, ehr
        self.red = ""
        self.gave_up = 0
        self.resent = 0
        self.recomputed = 0
        self.repeated = 0
        self.sources: dict[tuple[str, str, str], SourceFile] = {}
        self.pace: dict[str, float] = {}
        self.pager = Pager.callback()
        self.stack = stack
        self._runs = 0

    # What is exported

    def admit(self, number: int) -> dict[str, str]:
        """Make a patient whom the EHR knows; returns what their images say."""
        patient = {
            "PatientID": f"SIM-{number}",
            "PatientName": f"SIMULATED^{number:04}",
            "AccessionNumber": f"SIM-A{number}",
        }
        self.ehr.admit(PATIENTS, patient["PatientID"])
        return patient

    def usual(self) -> tuple[str, str, str]:
        """Export a chest study of two images (one abnormal), a chest film, and an urgent head CT, of three patients.

        Returns:
            The UIDs by which the abnormal image, the other film and the head are asked for.
        """
        frontal, _ = self.xray("chest", 2, **self.admit(1))
        (film,) = self.xray("film", **self.admit(2))
        head = self.ct("head", **self.admit(3))[0].SeriesInstanceUID
        self.control.plan(frontal.SOPInstanceUID, findings=("nodule",))
        self.control.plan(head, findings=("intracranial_hemorrhage",))
        return str(frontal.SOPInstanceUID), str(film.SOPInstanceUID), str(head)

    def note_sources(self) -> None:
        """Note what is exported now; what vanishes later is still asked for."""
        for source in read_sources(self.export.parent):
            self.sources[source.night, source.path, source.sha256] = source

    def noted(self) -> list[SourceFile]:
        """Every file that was exported so far."""
        self.note_sources()
        return list(self.sources.values())

    # Where connections lead

    def move_ledger(self, port: int) -> None:
        """Keep the ledger in a PostgreSQL server."""
        os.environ["AIRFLOW__QURE__LEDGER_CONN_ID"] = "ledger"
        os.environ["AIRFLOW_CONN_LEDGER"] = f"postgres://ledger@127.0.0.1:{port}/postgres"

    def connect_archive(self, **settings: Any) -> None:
        """Make the connection to the archive."""
        connect(
            "pacs",
            "dicom",
            port=self.archive.port,
            called_ae_title="ARCHIVE",
            association_timeout=10,
            **_WAITS,
            **settings,
        )

    def connect_ris(self, **settings: Any) -> None:
        """Make the connection to the RIS."""
        connect("ris", "mllp", port=self.ris.port, processing_id="T", **{**_WAITS, **settings})

    def connect_receivers(self) -> None:
        """Make the connections to all three receivers."""
        self.connect_archive()
        self.connect_ris()
        connect("ehr", "fhir", host=self.ehr.url, patient_identifier_system=PATIENTS)

    def must_have_struck(self) -> None:
        """Raise unless every fault that was to strike so many times did: what never went wrong shows nothing.

        Raises:
            UnexpectedError: One did not.
        """
        left = [fault for fault in self.control.pending_faults() if fault.times is not None]
        expect(not left, f"{len(left)} faults never struck, such as {left[0] if left else ''}")

    # The night, each step with as many tries as Airflow would give it

    def night(self, *, look: bool = True, **arguments: Any) -> None:
        """Run a whole night, as a run of its own.

        Args:
            look: Whether the sources are noted before.
            arguments: Of the plan.
        """
        self.begin(look=look)
        batches = self.planned(**arguments)
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(self.process_batch, batches or ()))
        self.end()

    def begin(self, *, look: bool = True) -> None:
        """Begin another run of the same night."""
        if look:
            self.note_sources()
        self._runs += 1
        self.gave_up = 0
        self.new_run(f"chaos__{self._runs}")

    def planned(self, **arguments: Any) -> list[Batch] | None:
        """Plan, with retries; returns the batches, None where it was given up."""
        found: list[list[Batch]] = []
        self.attempt(lambda: found.append(self.plan(**{"wait_seconds": 60, **arguments})))
        return found[0] if found else None

    def process_batch(self, batch: Batch) -> None:
        """Upload, compute and collect a batch, with retries; a step that is given up does not stop the next."""
        self.attempt(lambda: self.upload(batch))
        if batch["route"] == "ct":
            self.attempt(lambda: self.compute(batch))
        self.attempt(lambda: self.collect_onward(batch))

    def collect_onward(self, batch: Batch) -> None:
        """Run one try of a batch's collect, deliveries and alerts included."""
        self.collect(batch, deliver_to=DESTINATIONS, notifiers=[self.pager], **self.pace)

    def end(self) -> None:
        """Summarize; keeps why the run is red."""
        try:
            self.summarize(deliver_to=DESTINATIONS, notifiers=[self.pager])
        except Exception as error:  # as a task that failed
            self.red = f"{type(error).__name__}: {error}"
        else:
            self.red = ""

    def attempt(self, step: Callable[[], object]) -> bool:
        """Try a step as often as its retry policy and Airflow would; returns whether it succeeded."""
        policy = QureRetryPolicy()
        for number in range(1, TRIES + 1):
            try:
                step()
            except Exception as error:  # what Airflow does with a task
                self.problem = f"{type(error).__name__}: {error}"
                decision = policy.evaluate(error, number, TRIES - 1)
                if decision.action.name == "FAIL":
                    break
            else:
                return True
        self.gave_up += 1
        return False

    @contextmanager
    def in_process(self, step: str, batch: Batch | None = None) -> Iterator[Any]:
        """Run one try of a step in a process of its own; it is over when the block ends."""
        order = {"step": step, "run": self.run.run_id, "root": str(self.root), "export": str(self.export)}
        command = [sys.executable, "-m", "chaos.worker", json.dumps({**order, "batch": batch})]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def a_quarter_of_an_hour_passes(self) -> None:
        """Let run out what was claimed by those who could not say any more what became of it."""
        self.sql("UPDATE deliveries SET lease_until = 0, due_at = 0")
        self.sql("UPDATE alerts SET claimed_until = 0")

    def redelivered(self, **arguments: Any) -> None:
        """Run ``qure_redeliver``, whether its time has come or not."""
        arguments = {"even_if_not_due": True, **arguments}
        operator = QureRedeliverOperator(task_id="redeliver", store_root=str(self.root), **arguments)
        operator.execute(self.context())

    # What must have come of it

    def books(self) -> Books:
        """The accounts for the conservation check."""
        self.note_sources()
        told = self.root.with_name("told")
        self.receivers.pages = [study for _, study in Pager.told]
        self.receivers.pages += told.read_text(encoding="utf-8").split() if told.exists() else []
        return Books(
            sources=list(self.sources.values()),
            control=self.control,
            ledger=ledger_url(str(self.root)),
            store=self.root,
            receivers=self.receivers,
            resent=self.resent,
            recomputed=self.recomputed,
            repeated=self.repeated,
        )

    def outcomes(self) -> dict[str, int]:
        """How many resources of the run have which outcome."""
        counted: dict[str, int] = {}
        for row in self.rows().values():
            name = row.outcome.value if row.outcome else "none"
            counted[name] = counted.get(name, 0) + 1
        return counted

    def owed(self, destination: str) -> dict[str, int]:
        """How many deliveries to a destination are in which state, over all runs."""
        with self.ledger() as ledger:
            uids = {row.identity.study_instance_uid for run in ledger.all_runs() for row in ledger.rows_of_run(run.id)}
            states = [
                row.state.value
                for uid in sorted(uids)
                for row in ledger.deliveries.of_study(uid)
                if row.destination == destination
            ]
        return {state: states.count(state) for state in sorted(set(states))}

    def must_be_whole(self, resources: int = 4, *, but: str = "") -> None:
        """Raise unless everything that was sent is ready and delivered, and the run green.

        Args:
            resources: How many there are.
            but: What the run is red for, where something must not be sent.

        Raises:
            UnexpectedError: It is not.
        """
        expect(self.outcomes() == {"ready": resources}, f"outcomes are {self.outcomes()}")
        expect(but in self.red if but else not self.red, f"the run is red for: {self.red or 'nothing'}")
        for destination in DESTINATIONS:
            states = self.owed(destination)
            expect(set(states) <= {"delivered", "superseded"}, f"deliveries to {destination} are {states}")


@contextmanager
def open_place(folder: Path, emulator: RunningEmulator, **extra: Any) -> Iterator[Place]:
    """Open a hospital whose connections lead to its own servers.

    Args:
        folder: New folder for all of it.
        emulator: The running service, which begins afresh.
        extra: Further settings of the connection to the service.

    Yields:
        The hospital.
    """
    emulator.control.forget_everything()
    emulator.control.configure(processing_seconds=0, abnormal_share=0)
    with ExitStack() as stack:
        archive = stack.enter_context(DicomArchive())
        archive.answers = lambda identifier: match(*archive.received)(identifier)
        ris = stack.enter_context(Hl7Receiver())
        ehr = stack.enter_context(running_fhir_server())
        stack.enter_context(mock.patch.dict(os.environ))
        stack.enter_context(mock.patch.object(retry, "BACKOFF", wait_none()))
        stack.enter_context(mock.patch.object(alerts, "PAUSES_SECONDS", (0.0, 0.01, 0.01)))
        stack.enter_context(mock.patch.object(results_trigger, "GRACE_SECONDS", 3.0))
        stack.enter_context(mock.patch.object(results_trigger, "HOLD_SECONDS", 3.0))
        stack.enter_context(mock.patch("qure_provider.triggers.results.random.uniform", lambda low, _high: low))
        Pager.reset()
        os.environ["AIRFLOW__QURE__IDENTITY_POLICY"] = "identified"
        os.environ["AIRFLOW__QURE__ALLOW_QUARANTINED"] = "True"
        connect_service(emulator, **extra)
        place = Place(folder, emulator, archive, ris, ehr, stack)
        place.connect_receivers()
        yield place


def connect(conn_id: str, conn_type: str, *, host: str = "127.0.0.1", port: int | None = None, **extra: Any) -> None:
    """Make a connection, in the environment."""
    fields = {"conn_type": conn_type, "host": host, "port": port, "extra": extra}
    os.environ[f"AIRFLOW_CONN_{conn_id.upper()}"] = json.dumps(fields)


def connect_service(emulator: RunningEmulator, **extra: Any) -> None:
    """Make the connection to the service."""
    settings = {"source": emulator.source, "requests_per_second": 1000, **extra}
    fields = {"conn_type": "qure", "host": emulator.base_url, "password": emulator.token, "extra": settings}
    os.environ["AIRFLOW_CONN_QURE_DEFAULT"] = json.dumps(fields)
