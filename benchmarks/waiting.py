"""Waiting: thousands of pending resources in one process, against a deferrable ``HttpSensor`` for each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.children import Child
from benchmarks.data import uid
from benchmarks.figures import Figure, Target, WrongResultError, percentile
from benchmarks.pollers import PACE
from qure_provider.api.model import Route
from qure_provider.dicom.model import Identity, Instance, SelectedSeries, Series
from qure_provider.dicom.pack import pack_batches
from qure_provider.ledger.ledger import Ledger
from qure_provider.store import ledger_url

WAIT = 300.0
"""Simulated seconds."""
BATCHES = 16
_READY_SHARE = 0.2
_READY_BETWEEN = (20.0, 150.0)
_STATUS_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class _Ready:
    after: float  # real seconds
    is_urgent: bool


@dataclass(frozen=True, slots=True)
class Size:
    """How much is waited for, and how fast time runs.

    Attributes:
        resources: How many.
        ceiling: On requests a second, simulated.
        factor: How much faster than real time.
        sensors: How many HttpSensors there are.
    """

    resources: int
    ceiling: float
    factor: float
    sensors: int


def measure(folder: Path, *, fast: bool) -> Iterator[Figure]:
    """Measure it: 16 batches, of whose resources every fifth becomes ready and one of a hundred is urgent.

    After half of the time the triggerer is restarted: every trigger is cancelled and made anew from its row.

    Args:
        folder: For a ledger.
        fast: Whether to take few resources, and time that runs ten times as fast.

    Yields:
        The figures.

    Raises:
        WrongResultError: If a resource that became ready was in no event, or one was that is not ready.
    """
    size = Size(500, 10, 10, 50) if fast else Size(10_000, 200, 1, 500)
    with TemporaryDirectory(dir=folder) as scratch:
        plan = Path(scratch, "plan.json")
        store = Path(scratch, "store")
        keys, batches = _make_ledger(store, size.resources)
        ready = _plan(plan, keys, size.factor)
        with Child("results_server", str(plan)) as server:
            url = f"http://127.0.0.1:{server.hear()}"
            mine = _wait(server, url, plan, store, batches, size, len(ready))
            _check(mine, ready)
            http = _http(server, url, size, size.sensors, "404", WAIT / size.factor / 4)
            yield from _ours(mine, ready, http, size)
            for status, words in (("202", "still processing"), ("401", "wrong token"), ("409", "not computed")):
                said = _http(server, url, size, 1, status, _STATUS_SECONDS)
                does = "takes it for ready" if said["fired"] else "goes on"
                title = (
                    f"one HttpSensor, every {PACE['max_poll'] / size.factor:g} s, answered {status} ({words}): {does}"
                )
                yield Figure(f"{title}; its requests in {_STATUS_SECONDS:g} s", said["requests"], "requests")


def _ours(
    mine: Mapping[str, Any], ready: Mapping[int, _Ready], http: Mapping[str, Any], size: Size
) -> Iterator[Figure]:
    title = f"{size.resources:,} resources"
    against = f"against {size.sensors} HttpSensors"
    polls, their_polls = mine["requests"], http["requests"]
    yield Figure(
        f"{title}: requests in 5 minutes, against what the ceiling allows",
        polls,
        "requests",
        WAIT * size.ceiling,
        Target("ratio", "<=", 1),
    )
    yield Figure(
        f"{title}: requests in the busiest second, against the ceiling",
        mine["busiest_second"] / size.factor,
        "requests/s",
        size.ceiling,
        Target("ratio", "<=", 1.02),
    )
    cpu = 1e6 * mine["cpu"] / polls, "µs", 1e6 * http["cpu"] / their_polls, Target("ours", "<=", 300)
    yield Figure(f"{title}: CPU a poll, {against}", *cpu)
    grown = mine["grown"] / size.resources, "bytes", http["grown"] / size.sensors, Target("ours", "<=", 1024)
    yield Figure(f"{title}: memory a resource, {against}", *grown)
    blocked = 1e3 * mine["blocked"], "ms", 1e3 * http["blocked"], Target("ours", "<=", 100)
    yield Figure(f"{title}: the event loop blocked, at most, {against}", *blocked)
    for kind, words in (("done", "ready to the event"), ("urgent", "urgent to the event")):
        delays = [(at - mine["began"] - ready[int(key)].after) * size.factor for key, at in mine[kind].items()]
        yield Figure(f"{title}: from {words}, median", median(delays), "s, simulated")
        yield Figure(f"{title}: from {words}, 99th percentile", percentile(delays, 99), "s, simulated")
    lost = len(ready) - len(mine["done"])
    yield Figure(f"{title}: lost in a restart of the triggerer", lost, "resources", target=Target("ours", "<=", 0))


def _wait(
    server: Child, url: str, plan: Path, store: Path, batches: list[int], size: Size, ready: int
) -> dict[str, Any]:
    seconds = WAIT / size.factor
    job = {
        "connection": {
            "conn_type": "qure",
            "host": url,
            "password": "SIMULATED",
            "extra": {"source": "SIMULATED", "requests_per_second": size.ceiling * size.factor},
        },
        "plan": str(plan),
        "store": str(store),
        "batches": batches,
        "factor": size.factor,
        "seconds": seconds,
        "ready": ready,
    }
    with Child("pollers", "ours", json.dumps(job)) as poller:
        poller.hear()
        began = server.ask("begin")["began"]
        said = poller.ask(str(began))
        return {"began": began, **said, **server.ask(str(seconds))}


def _http(server: Child, url: str, size: Size, count: int, status: str, seconds: float) -> dict[str, Any]:
    job = {
        "connection": {"conn_type": "http", "host": url},
        "count": count,
        "status": status,
        "factor": size.factor,
        "seconds": seconds,
    }
    with Child("pollers", "http", json.dumps(job)) as poller:
        poller.hear()
        said = poller.ask(str(server.ask("begin")["began"]))
        return {**said, **server.ask(str(seconds))}


def _make_ledger(store: Path, count: int) -> tuple[list[tuple[int, str, Route]], list[int]]:
    """Make a ledger as a night's plan and uploads leave it; one of ten resources is a CT series.

    Returns:
        Key, UID and route of each resource, and the batches' ids.
    """
    selected = [_selected(number, Route.CT if number % 10 == 0 else Route.XRAY) for number in range(count)]
    with Ledger.open(ledger_url(str(store)), create=True) as ledger:
        run = ledger.begin_run(
            dag_id="bench",
            run_id="bench",
            group_id="",
            clear_number=0,
            night="2026-01-01",
            conn_id="bench",
            folder="runs/bench",
            deadline=0.0,
            completeness="SIMULATED",
        )
        entries = ledger.assess(selected)
        rows = {entry.selected.series.series_instance_uid: entry.rows for entry in entries}
        batches = pack_batches(selected, BATCHES)
        ids = ledger.replace_plan(
            run,
            batches_of_rows=[
                (
                    batch.route,
                    f"runs/bench/batch-{number:03d}.json",
                    [row for one in batch.series for row in rows[one.series.series_instance_uid]],
                )
                for number, batch in enumerate(batches)
            ],
            done=(),
            counts={},
        )
        everything = [row for group in rows.values() for row in group]
        ledger.mark_uploaded(row.id for row in everything)
        ledger.mark_computed(row.id for row in everything if row.route is Route.CT)
    return [(row.id, row.uid, row.route) for row in everything], ids


def _selected(number: int, route: Route) -> SelectedSeries:
    instance = Instance(f"{number}.dcm", 10_000, 0.0, uid(3, number), "", "")
    modality = "CT" if route is Route.CT else "DX"
    identity = Identity(uid(1, number), "SIMULATED")
    return SelectedSeries(Series(identity, uid(2, number), modality, (instance,)), route)


def _plan(path: Path, resources: list[tuple[int, str, Route]], factor: float) -> dict[int, _Ready]:
    """Decide what becomes ready when, and write it for the server; half of the CT series are urgent."""
    random = Random(0)
    chosen = random.sample(resources, int(_READY_SHARE * len(resources)))
    urgent = [key for key, _, route in chosen if route is Route.CT]
    ready = {key: _Ready(random.uniform(*_READY_BETWEEN) / factor, key in urgent[::2]) for key, _, _ in chosen}
    content = {
        uid: [ready[key].after, "Critical" if ready[key].is_urgent else "Routine"] if key in ready else None
        for key, uid, _ in resources
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return ready


def _check(mine: Mapping[str, Any], ready: Mapping[int, _Ready]) -> None:
    done = set(map(int, mine["done"]))
    urgent = {key for key, each in ready.items() if each.is_urgent}
    if lost := len(ready.keys() - done):
        raise WrongResultError(f"{lost} resources became ready and no event named them")
    if wrong := len(done - ready.keys()):
        raise WrongResultError(f"{wrong} resources are in an event though they are not ready")
    if missed := urgent ^ set(map(int, mine["urgent"])):
        raise WrongResultError(f"{len(missed)} resources are urgent and were not told of, or the other way round")
