"""A night from export to results in a real Airflow, against a bare script and against the DAG one would write first.

The service is the emulator, on the same machine: what it needs for making a result, everybody waits for.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from datetime import time as clock
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Self
from zoneinfo import ZoneInfo

import psutil

from benchmarks.children import Child
from benchmarks.data import Image, uid, write_series
from benchmarks.figures import Figure, Target, WrongResultError, one_after_the_other
from demo import checks
from demo.airflow import AirflowStack
from demo.export import ExpectedResource, ExportedFile, ExportFacts, make_export
from demo.processes import Processes
from demo.service import plan_findings, start_service
from qure_provider.api.model import Route
from qure_provider.dicom.model import Fate

ROOT = Path(__file__).resolve().parent.parent
DAG_ID, NAIVE_DAG_ID = "qure_nightly", "naive_nightly"
ZONE = ZoneInfo("UTC")
PROCESSING_SECONDS = 5.0
REQUESTS_PER_SECOND = 100
"""What is configured for big nights: the default of 10 is for a service that nobody spoke with."""
TIMEOUT = 1800
SIZES = (100, 1_000)
BIGGEST = 3_000
NAIVE_SIZES = (10, 40)
"""A chain a series takes about two seconds of this machine for each: a line through two sizes says what 1,000 take."""
CT_SERIES, CT_SLICES = 40, 200
_FIRST = date(2026, 1, 1)
_MB = 1e6

Export = Callable[[Path, str], ExportFacts]
"""Makes the export of a night: into a folder, by the night's name."""


@dataclass(frozen=True, slots=True)
class Took:
    """What one night took.

    Attributes:
        seconds: From the trigger of the run to its end.
        cpu: Seconds of all processes together, those of Airflow and of the emulator among them.
        memory: Role of a process (a component, or a task) to the most memory that one such process had, in bytes.
        resources: How many results there had to be.
        rows: Of the ledger afterwards.
        ledger_bytes: Of its file.
        objects: In the store, the run's own among them.
    """

    seconds: float
    cpu: float
    memory: Mapping[str, int] = field(default_factory=dict)
    resources: int = 0
    rows: int = 0
    ledger_bytes: int = 0
    objects: int = 0


def measure(folder: Path, *, fast: bool) -> Iterator[Figure]:
    """Measure it: X-ray studies of one small image each, with what else lies in real exports, and CT series.

    Args:
        folder: For exports, results and an Airflow home; about 3 GB, a tenth of it where fast.
        fast: Whether to take one small night, without the DAG that takes minutes.

    Yields:
        The figures.

    Raises:
        WrongResultError: If a night did not end as it had to, down to the checksum of each file.
    """
    if fast:
        with _place(folder, _QUICK) as place:
            yield from measure_against_bare(place, "a night of 6 X-ray studies", xrays(6))
        return
    nights = _Nights()
    yield from one_after_the_other(
        *(_measure_size(folder, nights, studies) for studies in SIZES),
        _measure_ct(folder),
        _measure_naive(folder, nights),
        _measure_biggest(folder, nights),
    )


class _Nights(dict[int, "Took"]):
    """Number of studies to what they took."""

    def __missing__(self, studies: int) -> Took:
        raise WrongResultError(f"the night of {studies:,} X-ray studies was not measured")


def _measure_size(folder: Path, nights: _Nights, studies: int) -> Iterator[Figure]:
    with _place(folder) as place:
        nights[studies] = yield from measure_against_bare(
            place, f"a night of {studies:,} X-ray studies", xrays(studies), has_bound=studies == _REFERENCE
        )


def _measure_ct(folder: Path) -> Iterator[Figure]:
    with _place(folder) as place:
        title = f"a night of {CT_SERIES} CT series of {CT_SLICES} slices"
        took = yield from measure_against_bare(place, title, ct_series(CT_SERIES, CT_SLICES))
        chained = place.run_naive(ct_series(CT_SERIES, CT_SLICES))
        yield Figure(f"{title}: against a mapped chain a series", took.seconds, "s", chained.seconds)
        yield Figure(f"{title}: against a mapped chain a series", took.cpu, "s of CPU", chained.cpu)


def _measure_naive(folder: Path, nights: _Nights) -> Iterator[Figure]:
    with _place(folder) as place:
        naive = {studies: place.run_naive(xrays(studies)) for studies in NAIVE_SIZES}
        nights[NAIVE_SIZES[-1]] = place.run_ours(xrays(NAIVE_SIZES[-1]))
    yield from compare_naive(nights, naive)


def _measure_biggest(folder: Path, nights: _Nights) -> Iterator[Figure]:
    """Without the bare script: it grows with the results, as it does from 100 to 1,000."""
    with _place(folder) as place:
        nights[BIGGEST] = took = place.run_ours(xrays(BIGGEST))
    yield from _figures_of(f"a night of {BIGGEST:,} X-ray studies", took)
    yield from compare_sizes({studies: nights[studies] for studies in (*SIZES, BIGGEST)})


def measure_against_bare(
    place: Place, title: str, export: Export, *, has_bound: bool = False
) -> Generator[Figure, None, Took]:
    """Measure one night and the same with a bare script.

    Args:
        place: Where.
        title: What the night is, in words.
        export: Makes it.
        has_bound: Whether something is asked of the figure.

    Yields:
        The figure.

    Returns:
        What ours took.
    """
    took = place.run_ours(export)
    bare = place.run_bare(export)
    yield from _figures_of(title, took, bare, has_bound=has_bound)
    return took


def _figures_of(title: str, took: Took, bare: Took | None = None, *, has_bound: bool = False) -> Iterator[Figure]:
    bound = Target("ours", "<=", round(1.5 * bare.seconds + 60, 1)) if bare and has_bound else None
    words = "against a bare script with our hook, the limit"
    yield Figure(f"{title}: {words}", took.seconds, "s", bare.seconds if bare else None, bound)
    yield Figure(f"{title}: {words}", took.cpu, "s of CPU", bare.cpu if bare else None)
    yield Figure(f"{title}: the ledger, a result", took.ledger_bytes / took.resources, "bytes")
    yield Figure(f"{title}: the ledger, a result", took.rows / took.resources, "rows")
    yield Figure(f"{title}: the store, a result", took.objects / took.resources, "objects")


def compare_sizes(nights: Mapping[int, Took]) -> Iterator[Figure]:
    """Say how time and memory grow with the night.

    Args:
        nights: Number of studies to what they took.

    Yields:
        The figures.
    """
    smallest, *_, biggest = sorted(nights)
    words = f"{biggest:,} X-ray studies, against {_REFERENCE:,}"
    yield Figure(words, nights[biggest].seconds, "s", nights[_REFERENCE].seconds, Target("ratio", "<=", 3.3))
    yield Figure(words, nights[biggest].cpu, "s of CPU", nights[_REFERENCE].cpu)
    for role, most in sorted(nights[biggest].memory.items()):
        words = f"memory of one process at most, {role}: {biggest:,} X-ray studies, against {smallest:,}"
        target = None if role == "emulator" else Target("ratio", "<=", 1.25)
        yield Figure(words, most / _MB, "MB", nights[smallest].memory[role] / _MB, target)


def compare_naive(nights: Mapping[int, Took], naive: Mapping[int, Took]) -> Iterator[Figure]:
    """Compare with the DAG that one would write first, measured at two sizes and drawn on as a straight line.

    Args:
        nights: Number of studies to what they took.
        naive: Number of studies to what the other DAG took, two of them.

    Yields:
        The figures.
    """
    (fewer, before), (more, after) = sorted(naive.items())
    ours = nights[_REFERENCE]
    words = "X-ray studies: against a mapped chain a series"
    yield Figure(f"a night of {more:,} {words}", nights[more].seconds, "s", after.seconds)
    yield Figure(f"a night of {more:,} {words}", nights[more].cpu, "s of CPU", after.cpu)
    title = f"a night of {_REFERENCE:,} {words}, drawn on from {fewer} and {more}"
    reach = (_REFERENCE - more) / (more - fewer)
    seconds = after.seconds + reach * (after.seconds - before.seconds)
    cpu = after.cpu + reach * (after.cpu - before.cpu)
    yield Figure(title, ours.seconds, "s", seconds, Target("ratio", "<=", 0.2))
    yield Figure(title, ours.cpu, "s of CPU", cpu)


def xrays(studies: int) -> Export:
    """So many X-ray studies of one small image, and what else lies in real exports."""

    def make(folder: Path, night: str) -> ExportFacts:
        return make_export(folder, night=night, studies=studies, small=True)

    return make


def ct_series(count: int, slices: int) -> Export:
    """So many CT series of small slices."""

    def make(folder: Path, night: str) -> ExportFacts:
        day = (date.fromisoformat(night) - _FIRST).days
        files: list[ExportedFile] = []
        resources: list[ExpectedResource] = []
        for number in range(day * count, (day + 1) * count):
            paths = write_series(folder, Image("CT", 128), series=number, count=slices, first=number * slices)
            files += [ExportedFile(path.relative_to(folder).as_posix(), Fate.SELECTED, "a slice") for path in paths]
            study, series = uid(1, number), uid(2, number)
            resources.append(ExpectedResource(series, Route.CT, "qct", study, series, slices, None, "chest CT"))
        return ExportFacts(night, folder, tuple(files), tuple(resources))

    return make


_REFERENCE = 1_000
_QUICK = {"AIRFLOW__QURE__MAX_BATCHES": "4"}
"""Few tasks, where only the results matter."""


@contextmanager
def _place(folder: Path, settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[Place]:
    with TemporaryDirectory(dir=folder) as scratch, Place(Path(scratch), settings) as place:
        yield place


class Place:
    """The emulator and an Airflow, and one export after the other.

    Args:
        folder: New or empty.
        settings: Of Airflow, besides what is needed.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self._folder = folder
        self._settings = settings
        self._nights = 0
        self._processes = Processes(folder / "logs")
        self._store = folder / "store"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._processes.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.stop()

    def _start(self) -> None:
        self._service = start_service(self._processes, self._folder / "service", processing_seconds=PROCESSING_SECONDS)
        dags = self._folder / "dags"
        dags.mkdir()
        for path in (ROOT / "dags" / "qure_nightly.py", ROOT / "benchmarks" / "naive" / "naive_nightly.py"):
            shutil.copy(path, dags)
        settings = {
            "AIRFLOW__QURE__EXPORT_ROOT": str(self._folder / "export"),
            "AIRFLOW__QURE__STORE_ROOT": str(self._store),
            "AIRFLOW__QURE__IDENTITY_POLICY": "identified",
            "AIRFLOW__QURE__ALLOW_QUARANTINED": "True",
            # Results stay in the store, as those of the bare script do.
            "AIRFLOW__QURE__RULES": json.dumps([{"send": [], "to": [(self._folder / "nowhere").as_uri()]}]),
            "AIRFLOW__QURE__TIMEZONE": ZONE.key,
            **self._settings,
        }
        self._airflow = AirflowStack(
            self._folder / "airflow", dags_folder=dags, env=settings, processes=self._processes
        ).start()
        self._airflow.wait_ready(timeout=300, dag_ids=[DAG_ID, NAIVE_DAG_ID])
        self._airflow.api.add_connection(
            "qure_default",
            conn_type="qure",
            host=self._service.url,
            password=self._service.token,
            extra={"source": self._service.source, "requests_per_second": REQUESTS_PER_SECOND},
        )

    def run_ours(self, export: Export) -> Took:
        """Let the provider's own DAG have a night."""
        facts = self._export(export)
        took = self._run(DAG_ID, facts, {"quiet_seconds": 0})
        problems = [
            *checks.check_run(facts, checks.read_run(self._store, facts.night)),
            *checks.check_results(facts, checks.stored_results(self._store)),
            *checks.check_requests(facts, self._service.control),
        ]
        self._end(facts, problems)
        return replace(took, resources=len(facts.resources), **_kept(self._store))

    def run_bare(self, export: Export) -> Took:
        """Let the bare script have a night."""
        facts = self._export(export)
        store = self._folder / "bare-store"
        connection = {
            "conn_type": "qure",
            "host": self._service.url,
            "password": self._service.token,
            "extra": {"source": self._service.source},
        }
        job = {"connection": connection, "export": str(facts.folder), "store": str(store)}
        with Child("bare_night", json.dumps(job), env=self._airflow.env) as bare:
            bare.hear()
            before = self._service_cpu()
            said = bare.ask("go")
        self._end(facts, [*checks.check_results(facts, checks.stored_results(store))])
        return Took(said["seconds"], said["cpu"] + self._service_cpu() - before)

    def run_naive(self, export: Export) -> Took:
        """Let the DAG that one would write first have a night."""
        facts = self._export(export)
        target = self._folder / "naive"
        took = self._run(NAIVE_DAG_ID, facts, {"export": str(facts.folder), "target": str(target)})
        found = {path.parent.name for path in target.glob("*/result.json")}
        missing = sum(resource.uid not in found for resource in facts.resources)
        self._end(facts, [f"{missing} results are missing"] if missing else [])
        return took

    def _service_cpu(self) -> float:
        (leader,) = (leader for leader in self._processes.leaders if leader.name == "emulator")
        return cpu_of(psutil.Process(leader.pid))

    def _export(self, export: Export) -> ExportFacts:
        night = (_FIRST + timedelta(days=self._nights)).isoformat()
        self._nights += 1
        facts = export(self._folder / "export" / night, night)
        plan_findings(self._service, facts.resources)
        return facts

    def _run(self, dag_id: str, facts: ExportFacts, conf: Mapping[str, object]) -> Took:
        api = self._airflow.api
        began = datetime.combine(date.fromisoformat(facts.night), clock(2), ZONE)
        with _Watch(self._processes) as watch:
            begun = time.monotonic()
            run_id = api.trigger(dag_id, logical_date=began, conf=conf)
            while (state := api.run_state(dag_id, run_id)) in ("queued", "running"):
                self._airflow.check()
                if time.monotonic() - begun > TIMEOUT:
                    break
                time.sleep(1)
            seconds = time.monotonic() - begun
            cpu = watch.cpu()
        if state != "success":
            raise WrongResultError(f"{dag_id}: the run of {len(facts.resources):,} resources is {state}")
        return Took(seconds, cpu, watch.most)

    def _end(self, facts: ExportFacts, problems: list[str]) -> None:
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise WrongResultError(f"{len(facts.resources):,} resources: {'; '.join(problems[:3])}{more}")
        self._service.control.forget_everything()
        shutil.rmtree(facts.folder)


def _kept(store: Path) -> dict[str, int]:
    """Count what lies in a store that a night has filled."""
    ledger = store / "ledger.sqlite3"
    with closing(sqlite3.connect(ledger)) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = sum(database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in names)
    objects = sum(len(files) for folder, _, files in os.walk(store) if folder != str(store))
    return {"rows": rows, "ledger_bytes": ledger.stat().st_size, "objects": objects}


class _Watch:
    """Sees, once a second, how much memory each process has; and how much CPU all of them used since the beginning."""

    def __init__(self, processes: Processes) -> None:
        self.most: dict[str, int] = defaultdict(int)
        self._leaders = {leader.pid: leader.name for leader in processes.leaders}
        self._before = self._used()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def cpu(self) -> float:
        """Seconds of CPU until now."""
        return self._used() - self._before

    def _used(self) -> float:
        return sum(cpu_of(process) for process, _ in self._members())

    def _run(self) -> None:
        while not self._done.wait(1):
            for process, role in self._members():
                with suppress(psutil.Error):
                    self.most[role] = max(self.most[role], process.memory_info().rss)

    def _members(self) -> Iterator[tuple[psutil.Process, str]]:
        """Every process and its role: a component, or what the scheduler started, which are tasks."""
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                session = os.getsid(process.pid)
                name = self._leaders.get(session)
                if name:
                    yield process, name if process.pid == session or name != "scheduler" else "task"


def cpu_of(process: psutil.Process) -> float:
    """Seconds of CPU that a process has used, with its children that have ended."""
    try:
        return float(sum(process.cpu_times()[:4]))
    except psutil.Error:
        return 0.0
