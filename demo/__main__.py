"""``python -m demo``: a night's export of real images through the whole pipeline, in a real Airflow. See ``--help``."""

from __future__ import annotations

import argparse
import base64
import json
import secrets
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from datetime import time as clock
from pathlib import Path
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from rich.console import Console

from demo import checks
from demo.airflow import USER, AirflowStack
from demo.export import WHAT_IT_IS, ExportFacts, make_export
from demo.hospital import NOTIFIERS, Hospital, start_hospital
from demo.processes import Processes, are_running, end_sessions, load_leaders, signals_as_exit
from demo.report import Progress, make_console, make_rows, print_rows
from demo.service import Service, plan_findings, start_service
from qure_provider.dicom.model import Fate
from qure_provider.dicom.pseudonym import Pseudonymizer
from qure_provider.emulator.model import Kind

ROOT = Path(__file__).resolve().parent.parent
DAG_ID = "qure_nightly"
CONNECTION = "qure_default"
KEY_CONNECTION = "qure_deidentify_default"
ZONE = ZoneInfo("Asia/Kolkata")  # where 02:00 is still the day before in UTC
NIGHTLY = clock(2)
PROCESSING_SECONDS = 5.0
QUIET_SECONDS = 5
OK = 200


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the demo keeps things.

    Attributes:
        build: The folder for all of it.
    """

    build: Path

    @property
    def record(self) -> Path:
        """Says what runs."""
        return self.build / "running.json"

    @property
    def exports(self) -> Path:
        """One folder a night."""
        return self.build / "export"

    @property
    def store(self) -> Path:
        """Where results are kept."""
        return self.build / "store"

    @property
    def summary(self) -> Path:
        """What the demo found, for programs."""
        return self.build / "summary.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The command line's; None takes those of the process.

    Returns:
        The exit code: 0 if every expected report is there and the sums hold, 1 if not, 2 if it could not begin.
    """
    options = _options(arguments)
    layout = Layout(options.build.resolve())
    running = load_leaders(layout.record)
    if options.stop:
        ended = end_sessions(running)
        layout.record.unlink(missing_ok=True)
        print(f"{ended} processes ended." if ended else "Nothing was running.")
        return 0
    if are_running(running):
        print(f"It already runs (see {layout.record}). Stop it first: make down", file=sys.stderr)
        return 2
    try:
        make_empty(layout.build)
        with signals_as_exit(), _programs(layout, keep=options.keep) as processes:
            passed = _run(layout, processes, options)
    except KeyboardInterrupt:
        print("Interrupted; everything is stopped.", file=sys.stderr)
        return 130
    except (RuntimeError, FileExistsError) as error:
        print(error, file=sys.stderr)
        return 2
    print(layout.summary)
    return 0 if passed else 1


def make_empty(folder: Path) -> None:
    """Make a folder, new or emptied of an earlier demo.

    Raises:
        FileExistsError: Something else is in it.
    """
    mark = folder / ".made-by-demo"
    if folder.exists() and any(folder.iterdir()):
        if not mark.exists():
            raise FileExistsError(f"{folder} holds something that is not of a demo: choose another folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    yesterday = datetime.now(ZONE).date() - timedelta(days=1)
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="A night's export of real images through the whole pipeline, in a real Airflow on this machine. "
        "The Qure service is an emulator: everything it says is SIMULATED.",
    )
    parser.add_argument("--keep", action="store_true", help="leave everything running afterwards")
    parser.add_argument("--stop", action="store_true", help="end what --keep left running, and do nothing else")
    parser.add_argument("--night", type=date.fromisoformat, default=yesterday, help="its date, YYYY-MM-DD (yesterday)")
    parser.add_argument("--studies", type=int, default=3, help="single chest X-ray studies among it (3)")
    parser.add_argument("--identified", action="store_true", help="send studies as they are, not de-identified")
    parser.add_argument("--small", action="store_true", help="thin the images out")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "demo", help="folder for all of it (build/demo)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that the night may take (600)")
    return parser.parse_args(arguments)


@contextmanager
def _programs(layout: Layout, *, keep: bool) -> Iterator[Processes]:
    """The demo's programs; what ends in an error or a Ctrl-C is not kept."""
    processes = Processes(layout.build / "logs", record=layout.record)
    try:
        yield processes
    except BaseException:
        processes.stop()
        raise
    if not keep:
        processes.stop()


def _run(layout: Layout, processes: Processes, options: argparse.Namespace) -> bool:
    console = make_console()
    progress = Progress(console)
    night = options.night.isoformat()
    service = start_service(processes, layout.build / "service", processing_seconds=PROCESSING_SECONDS)
    progress.say(f"The emulator of the Qure service (SIMULATED) listens on {service.url}")
    airflow = AirflowStack(
        layout.build / "airflow",
        dags_folder=ROOT / "dags",
        env=_settings(layout, identified=options.identified),
        processes=processes,
    ).start()
    progress.say(f"Airflow starts, its logs are in {airflow.logs}")
    facts = make_export(layout.exports / night, night=night, studies=options.studies, small=options.small)
    progress.say(f"The night {night} is exported: {facts.found} files in {facts.folder}")
    progress.say(WHAT_IT_IS)
    key = secrets.token_bytes(32)
    known_as = str if options.identified else Pseudonymizer(key).uid
    plan_findings(service, facts.resources, known_as)
    hospital = start_hospital(processes, layout.build / "hospital", facts.patients)
    archive = "Orthanc" if hospital.orthanc_url else "a stand-in for an archive"
    progress.say(f"The SIMULATED hospital listens: {archive}, a RIS (HL7), an EHR (FHIR) and mail")
    airflow.wait_ready(dag_ids=[DAG_ID])
    progress.say(f"Airflow is ready: {airflow.url}, user {USER}, password {airflow.password}")
    airflow.api.add_connection(
        CONNECTION,
        conn_type="qure",
        host=service.url,
        port=urlsplit(service.url).port,
        password=service.token,
        extra={"source": service.source},
    )
    if not options.identified:
        encoded = base64.b64encode(key).decode()
        airflow.api.add_connection(KEY_CONNECTION, conn_type="qure_deidentify", port=1, password=encoded)
        progress.say(f"The connection {KEY_CONNECTION} holds a new secret key: every study is sent de-identified")
    for conn_id, connection in hospital.connections.items():
        airflow.api.add_connection(conn_id, **connection)
    began = datetime.combine(options.night, NIGHTLY, ZONE)
    run_id = airflow.api.trigger(DAG_ID, logical_date=began, conf={"quiet_seconds": QUIET_SECONDS})
    progress.say(f"The connection {CONNECTION} is created, the DAG {DAG_ID} runs")
    state = _follow(airflow, run_id, progress, timeout=options.timeout)
    progress.say(f"The run ended: {state}")
    console.print()
    sent = (
        checks.check_requests(facts, service.control)
        if options.identified
        else checks.check_deidentified_requests(facts, service.control, known_as)
    )
    computed = {request.uid: request.at for request in service.control.requests(Kind.COMPUTE) if request.status == OK}
    had = {
        each.uid: computed[known_as(each.uid)] + PROCESSING_SECONDS
        for each in facts.resources
        if known_as(each.uid) in computed
    }
    passed = _conclude(console, layout, facts, service, hospital, state, sent, had)
    if options.keep:
        for line in (
            f"Left running. Airflow's UI: {airflow.url} user: {USER} password: {airflow.password}",
            f"The emulator of the Qure service (SIMULATED): {service.url}",
            *([f"The archive (SIMULATED): {hospital.orthanc_url}"] if hospital.orthanc_url else []),
            "Stop it: make down",
        ):
            console.print(line, soft_wrap=True, markup=False)
    return passed


def _settings(layout: Layout, *, identified: bool) -> dict[str, str]:
    return {
        "AIRFLOW__QURE__EXPORT_ROOT": str(layout.exports),
        "AIRFLOW__QURE__STORE_ROOT": str(layout.store),
        "AIRFLOW__QURE__ALLOW_QUARANTINED": "True",
        "AIRFLOW__QURE__IDENTITY_POLICY": "identified" if identified else "deidentify",
        "AIRFLOW__QURE__TIMEZONE": ZONE.key,
        "AIRFLOW__QURE__DELIVER_TO": "pacs ris ehr",
        "AIRFLOW__QURE__NOTIFIERS": json.dumps(NOTIFIERS),
    }


def _follow(airflow: AirflowStack, run_id: str, progress: Progress, *, timeout: float) -> str:
    """Show the run's progress until it ends; returns its state, ``running`` if it takes longer than it may."""
    deadline = time.monotonic() + timeout
    while True:
        airflow.check()
        state = airflow.api.run_state(DAG_ID, run_id)
        progress.show(airflow.api.task_instances(DAG_ID, run_id))
        if state in ("success", "failed") or time.monotonic() > deadline:
            return state
        time.sleep(1)


def _conclude(
    console: Console,
    layout: Layout,
    facts: ExportFacts,
    service: Service,
    hospital: Hospital,
    state: str,
    sent: Iterable[str],
    had: Mapping[str, float],
) -> bool:
    """Print and write what came of the night; returns whether it is all that there should be.

    ``sent`` is what is wrong with what reached the service, and ``had`` when it had each result that is computed.
    """
    run = checks.read_run(layout.store, facts.night)
    results = checks.stored_results(layout.store)
    arrived, mails = hospital.arrived(), hospital.mails()
    alerts = checks.alert_times(results, run.keys, layout.store, had, mails)
    problems = [
        *([] if state == "success" else [f"the run is {state}"]),
        *checks.check_run(facts, run),
        *checks.check_results(facts, results),
        *sent,
        *checks.check_arrived(results, arrived),
        *checks.check_alerts(results, alerts, mails),
    ]
    rows = make_rows(facts, results, layout.store, run.keys, alerts)
    print_rows(console, rows)
    sums, slowest = run.sums, max(alerts.values(), default=0.0)
    outcomes = ", ".join(f"{number} {outcome}" for outcome, number in sorted(run.outcomes.items()))
    asked = {kind.value: service.control.count(kind) for kind in Kind}
    for line in (
        f"Files: {sums['found']} found = " + " + ".join(f"{sums[fate.value]} {fate.value}" for fate in Fate),
        f"Results: {len(facts.resources)} expected, {sum(run.outcomes.values())} accounted for: {outcomes}",
        "Requests that the emulator saw: " + ", ".join(f"{number} {kind}" for kind, number in asked.items()),
        "What arrived at the hospital: {pacs} DICOM objects, {ris} HL7 messages, {ehr} FHIR reports".format(**arrived),
        f"Urgent results that people got mail of: {len(alerts)}; the latest {slowest:.1f} s after the service had it",
        f"The store: {layout.store}",
        f"The night's page: {run.page}",
        *(f"Not as it should be: {problem}" for problem in problems),
        "FAILED" if problems else "Every expected report (SIMULATED) is there, and the sums hold.",
    ):
        console.print(line, soft_wrap=True, markup=False)
    content = {
        "simulated": True,
        "notice": WHAT_IT_IS,
        "night": facts.night,
        "passed": not problems,
        "problems": problems,
        "run": state,
        "sums": sums,
        "outcomes": run.outcomes,
        "requests": asked,
        "arrived": arrived,
        "alerts_after_seconds": sorted(alerts.values()),
        "results": [asdict(row) for row in rows],
        "store": str(layout.store),
        "page": str(run.page),
    }
    layout.summary.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return not problems


if __name__ == "__main__":
    sys.exit(main())
