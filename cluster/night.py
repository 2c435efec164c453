"""One night on a cluster: begun, followed, and judged by what lies in the store, the ledger and the emulator."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from datetime import time as clock
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, func, select

from cluster.cluster import Cluster
from cluster.trial import USER, ZONE
from demo import checks
from demo.airflow import AirflowApi
from demo.export import ExportFacts
from demo.report import Progress
from demo.service import Service, plan_findings
from qure_provider.dicom.model import Fate
from qure_provider.emulator.control import EmulatorControl
from qure_provider.emulator.model import Kind
from qure_provider.ledger.schema import acknowledged, resources

DAG_ID = "qure_nightly"
QUIET_SECONDS = 5
_NIGHTLY = clock(2)

Instances = Sequence[Mapping[str, Any]]


@dataclass(slots=True)
class Workplace:
    """A running cluster and how to speak to its parts.

    Attributes:
        cluster: The services.
        api: Airflow's REST API.
        service: The emulator.
        ledger: The ledger's database.
        progress: Where to say what happens.
    """

    cluster: Cluster
    api: AirflowApi
    service: Service
    ledger: Engine
    progress: Progress

    @classmethod
    def of(cls, cluster: Cluster, variables: Mapping[str, str], progress: Progress) -> Workplace:
        """Connect to a running cluster."""
        url = cluster.url("emulator", 8080)
        ledger = f"postgresql+psycopg2://qure:{variables['LEDGER_PASSWORD']}@postgres:5432/qure"
        return cls(
            cluster=cluster,
            api=AirflowApi(cluster.url("api-server", 8080), USER, variables["ADMIN_PASSWORD"]),
            service=Service(url, variables["QURE_TOKEN"], variables["QURE_SOURCE"], EmulatorControl(url)),
            ledger=create_engine(cluster.address("postgres", ledger)),
            progress=progress,
        )

    def prepare(self, facts: ExportFacts) -> None:
        """Let the emulator begin afresh, with what it is to find in a night's images."""
        self.service.control.forget_everything()
        plan_findings(self.service, facts.resources)

    @property
    def store(self) -> Path:
        """Where results are kept."""
        return self.cluster.volume("store")

    def hosts(self, job_type: str) -> dict[int, str]:
        """Key to host name of every job of a kind that ever ran."""
        jobs = self.api.get("jobs", limit=100, job_type=job_type)["jobs"]
        return {job["id"]: job["hostname"] for job in jobs}


@dataclass(frozen=True, slots=True)
class NightRecord:
    """How a night went.

    Attributes:
        night: Its name.
        state: Of the run.
        seconds: From its start to its end.
        tasks: Number of task instances.
        tries: How often one of them was begun.
        places: Pool and queue to the number of tasks that took a slot of them.
        workers: Worker to the number of tasks that ended there.
        triggerers: Triggerer to the number of waits that were seen there.
        results: Number of results that there should be.
        requests: Kind of request to how many the emulator saw.
        problems: What is wrong, in words.
    """

    night: str
    state: str
    seconds: float
    tasks: int
    tries: int
    places: Mapping[str, int]
    workers: Mapping[str, int]
    triggerers: Mapping[str, int]
    results: int
    requests: Mapping[str, int]
    problems: tuple[str, ...]


@dataclass(slots=True)
class _Seen:
    waits: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))

    def look(self, instances: Instances) -> None:
        for instance in instances:
            trigger = instance["trigger"]
            if trigger and trigger["triggerer_id"]:
                self.waits[trigger["triggerer_id"]].add(trigger["id"])


def run_night(
    work: Workplace,
    facts: ExportFacts,
    *,
    timeout: float,
    meanwhile: Callable[[Instances], None] = lambda _instances: None,
) -> NightRecord:
    """Run the nightly DAG for an export and wait for its end.

    Args:
        work: Where.
        facts: What was exported.
        timeout: Seconds that it may take.
        meanwhile: Called about every second with the run's task instances.

    Returns:
        How it went.

    Raises:
        ClusterError: A service ended by itself.
    """
    logical_date = datetime.combine(date.fromisoformat(facts.night), _NIGHTLY, ZONE)
    began = time.monotonic()
    run_id = work.api.trigger(DAG_ID, logical_date=logical_date, conf={"quiet_seconds": QUIET_SECONDS})
    seen = _Seen()
    while True:
        work.cluster.check()
        state = work.api.run_state(DAG_ID, run_id)
        instances = work.api.task_instances(DAG_ID, run_id)
        seen.look(instances)
        work.progress.show(instances)
        meanwhile(instances)
        if state in ("success", "failed") or time.monotonic() - began > timeout:
            break
        time.sleep(1)
    triggerers = work.hosts("TriggererJob")
    return NightRecord(
        night=facts.night,
        state=state,
        seconds=round(time.monotonic() - began, 1),
        tasks=len(instances),
        tries=sum(instance["try_number"] for instance in instances),
        places=_counted(f"{instance['pool']}/{instance['queue']}" for instance in instances),
        workers=_counted(instance["hostname"] for instance in instances if instance["hostname"]),
        triggerers={triggerers[key]: len(waits) for key, waits in sorted(seen.waits.items())},
        results=len(facts.resources),
        requests={kind.value: work.service.control.count(kind) for kind in Kind},
        problems=tuple(_problems(work, facts, state)),
    )


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _problems(work: Workplace, facts: ExportFacts, state: str) -> Iterator[str]:
    if state != "success":
        yield f"the run is {state}"
    expected = {resource.uid for resource in facts.resources}
    results = [result for result in checks.stored_results(work.store) if result.uid in expected]
    yield from checks.check_run(facts, checks.read_run(work.store, facts.night))
    yield from checks.check_results(facts, results)
    yield from checks.check_requests(facts, work.service.control)
    yield from check_ledger(work.ledger, facts)


def check_ledger(ledger: Engine, facts: ExportFacts) -> Iterator[str]:
    """Compare what the ledger's database holds with what was exported.

    Args:
        ledger: The database.
        facts: What was exported.

    Yields:
        What is wrong, in words.
    """
    expected = {resource.uid: resource for resource in facts.resources}
    with ledger.connect() as connection:
        rows = connection.execute(select(resources).where(resources.c.uid.in_(expected))).mappings().all()
        counted = connection.execute(
            select(resources.c.uid, func.count())
            .join(acknowledged, acknowledged.c.resource_id == resources.c.id)
            .where(resources.c.uid.in_(expected))
            .group_by(resources.c.uid)
        )
        held = {uid: int(number) for uid, number in counted}
    if len(rows) != len(expected):
        yield f"the ledger has {len(rows)} rows for {len(expected)} resources"
    if unfinished := [row for row in rows if row["outcome"] != "ready" or row["settled_at"] is None]:
        yield f"the ledger has {len(unfinished)} resources that are not ready and settled"
    wrong = [uid for uid, resource in expected.items() if held.get(uid, 0) != resource.files]
    if wrong:
        yield f"the ledger has another number of acknowledged files than were exported for {len(wrong)} resources"
    selected = sum(file.fate is Fate.SELECTED for file in facts.files)
    if sum(held.values()) != selected:
        yield f"the ledger has {sum(held.values())} acknowledged files, {selected} were exported"


def batch_label(store: Path, night: str, series_instance_uid: str) -> str:
    """The label of the batch that carries a series, as the plan wrote it down.

    Args:
        store: The store's root.
        night: The night's name.
        series_instance_uid: The series.

    Returns:
        Such as ``ct-003``; empty while there is none.
    """
    for path in store.glob(f"runs/{night}/*/batch-*.json"):
        text = path.read_text(encoding="utf-8")
        if series_instance_uid in text:
            return f"{json.loads(text)['batch']['route']}-{path.stem.split('-')[1]}"
    return ""
