"""``python -m soak``: nights back to back in a real Airflow, 2 % of all requests faulty; nothing may grow.

After each night, when no task runs, every component's memory, file handles and threads are measured, the triggers that
are left, and by how much the databases grew. Databases keep history: what has to be flat is their growth a night.
"""

import argparse
import json
import random
import shutil
import sqlite3
import sys
import time
from collections import Counter
from contextlib import closing, suppress
from datetime import date, datetime, timedelta
from pathlib import Path

import psutil

from demo.airflow import AirflowStack
from demo.checks import read_run
from demo.export import make_export
from demo.processes import Processes, signals_as_exit
from demo.service import plan_findings, start_service
from qure_provider.emulator.model import Answer, At, Drip, Kind, Reset, Truncate
from soak.trend import Tolerance, Trend

ROOT = Path(__file__).resolve().parents[2]
FIRST = date(2026, 1, 1)
SHARE = 0.02
"""Of the requests of each kind that suffer a fault."""
WARM_UP = 0.25
"""Of the nights that are not judged: processes are still being started, modules loaded, caches filled."""
FEWEST = 4
"""Nights that are enough to draw a line through."""
LEAST = 6
"""Nights that are run however long they take."""

MEMORY = Tolerance(absolute=12 * 1024 * 1024, share=0.05)
FILES = Tolerance(absolute=4, share=0.05)
THREADS = Tolerance(absolute=2, share=0.05)
TRIGGERS = Tolerance(absolute=0, share=0)
BYTES_A_NIGHT = Tolerance(absolute=64 * 1024, share=0.15)
TOLERANCES = {
    "memory": MEMORY,
    "files": FILES,
    "threads": THREADS,
    "triggers": TRIGGERS,
    "bytes a night": BYTES_A_NIGHT,
}

DAG = """
from datetime import timedelta

from airflow.sdk import DAG

from qure_provider.task_groups.process_export import process_export

with DAG("soak", schedule=None, default_args={{"retries": 4, "retry_delay": timedelta(seconds=1)}}):
    process_export(
        export="{exports}/{{night}}",
        deliver_to=["file://{out}"],
        max_batches=2,
        wait_seconds=120,
        first_poll_seconds=4,
        max_poll_seconds=4,
        settle_seconds=4,
        least_share_of_usual=0,
    )
"""


def main():
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15, help="how long nights follow each other (15)")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "soak", help="folder for all of it (build/soak)")
    options = parser.parse_args()
    shutil.rmtree(options.build, ignore_errors=True)
    options.build.mkdir(parents=True)
    with signals_as_exit(), Processes(options.build / "logs") as processes:
        samples, problems = soaked(options.build, processes, options.minutes * 60)
    rows, grown = judged(samples, warm_up=int(len(samples) * WARM_UP))
    problems += grown
    show(rows, samples)
    summary = {"minutes": options.minutes, "nights": len(samples), "rows": rows, "problems": problems}
    (options.build / "summary.json").write_text(json.dumps({**summary, "samples": samples}, indent=1) + "\n")
    for problem in problems:
        print(f"Not as it should be: {problem}")
    print(
        "FAILED" if problems else f"{len(samples)} nights with faults at {SHARE:.0%}: nothing grows, nothing is lost."
    )
    return bool(problems)


def soaked(build, processes, seconds):
    """Run nights for so long.

    Returns:
        What was measured after each, and what went wrong.
    """
    service = start_service(processes, build / "service", processing_seconds=2)
    airflow = start_airflow(build, processes)
    service_port = int(service.url.rpartition(":")[2])
    airflow.api.add_connection(
        "qure_default",
        conn_type="qure",
        host=service.url,
        port=service_port,
        password=service.token,
        extra={"source": service.source},
    )
    samples, problems, began, sizes = [], [], time.monotonic(), database_sizes(build)
    while time.monotonic() - began < seconds or len(samples) < LEAST:
        night = str(FIRST + timedelta(days=len(samples)))
        facts = export(build / "exports" / night, night)
        plan_findings(service, facts.resources)
        inject(service.control, random.Random(night))
        run_id = airflow.api.trigger("soak", logical_date=datetime.fromisoformat(f"{night}T02:00:00+00:00"))
        problems += [f"night {night}: {problem}" for problem in wait(airflow, build, run_id, night, facts)]
        suffered = sum(bool(request.fault) for request in service.control.requests())
        sizes, before = database_sizes(build), sizes
        sample = {
            "at": time.monotonic() - began,
            "requests": len(service.control.requests()),
            "faults": suffered,
            "measures": {
                **measured(processes),
                "airflow triggers": triggers_left(build),
                **{f"{name} bytes a night": size - before[name] for name, size in sizes.items()},
            },
        }
        samples.append(sample)
        print(f"{sample['at']:6.0f} s  night {night}, {suffered} of {sample['requests']} requests faulty so far")
        service.control.forget_requests() if len(samples) % 50 == 0 else None
        shutil.rmtree(facts.folder)
    return samples, problems


def start_airflow(build, processes):
    dags = build / "dags"
    dags.mkdir()
    (dags / "soak.py").write_text(DAG.format(exports=build / "exports", out=build / "out"))
    airflow = AirflowStack(
        build / "airflow",
        dags_folder=dags,
        env={
            "AIRFLOW__QURE__STORE_ROOT": str(build / "store"),
            "AIRFLOW__QURE__IDENTITY_POLICY": "identified",
            "AIRFLOW__QURE__ALLOW_QUARANTINED": "True",
            "AIRFLOW__QURE__TIMEZONE": "UTC",
        },
        processes=processes,
    ).start()
    airflow.wait_ready(dag_ids=["soak"])
    return airflow


def export(folder, night):
    """A night of five X-rays and a head CT."""
    facts = make_export(folder, night=night, studies=3, small=True)
    for name in ("CD", "MR", "CT/CHEST"):
        shutil.rmtree(folder / name)
    return facts


def inject(control, rng):
    """Let every 50th request of each kind fail, at a place that the night decides."""
    control.clear_faults()
    for kind in Kind:
        for number in range(10):
            fault = rng.choice(
                [
                    Answer(kind=kind, status=503, headers={"Retry-After": "1"}),
                    Answer(kind=kind, status=500, at=At.ANSWER),
                    Answer(kind=kind, status=200, body="<html>a proxy</html>"),
                    Reset(kind=kind),
                    Reset(kind=kind, at=At.BODY, after_bytes=20),
                    Truncate(kind=kind),
                    Drip(kind=kind, chunk=1000, seconds=0.001),
                ]
            )
            control.inject(fault.model_copy(update={"skip": int(number / SHARE) + rng.randrange(int(1 / SHARE))}))


def wait(airflow, build, run_id, night, facts, seconds=300):
    """Wait for a run to end; yields what is wrong with it."""
    deadline = time.monotonic() + seconds
    while (state := airflow.api.run_state("soak", run_id)) not in {"success", "failed"}:
        airflow.check()
        if time.monotonic() > deadline:
            yield f"it took longer than {seconds} s"
            return
        time.sleep(0.5)
    run = read_run(build / "store", night)
    expected = sum((facts.folder / Path(*each.path.split("/"))).exists() for each in facts.files)
    if state != "success":
        yield f"the run is {state}: {'; '.join(run.problems)}"
    if run.sums["found"] != expected or set(run.outcomes) != {"ready"}:
        yield f"{run.sums['found']} of {expected} files found, outcomes {run.outcomes}"


def measured(processes):
    """Memory, file handles and threads of every component of Airflow, with all that it started."""
    totals = Counter()
    for leader in processes.leaders:
        if leader.name == "emulator":
            continue
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(leader.pid)
            for process in (first, *first.children(recursive=True)):
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    totals[f"{leader.name} memory"] += process.memory_full_info().pss
                    totals[f"{leader.name} files"] += process.num_fds()
                    totals[f"{leader.name} threads"] += process.num_threads()
    return dict(totals)


def triggers_left(build):
    with closing(sqlite3.connect(f"file:{build / 'airflow' / 'airflow.db'}?mode=ro", uri=True)) as database:
        return database.execute("SELECT count(*) FROM trigger").fetchone()[0]


def database_sizes(build):
    """Bytes that each database holds, the free pages left out."""
    sizes = {}
    for name, path in {
        "airflow": build / "airflow" / "airflow.db",
        "ledger": build / "store" / "ledger.sqlite3",
    }.items():
        sizes[name] = 0
        if path.exists():
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
                pages, free, size = (
                    database.execute(f"PRAGMA {what}").fetchone()[0]
                    for what in ("page_count", "freelist_count", "page_size")
                )
            sizes[name] = (pages - free) * size
    return sizes


def judged(samples, *, warm_up):
    """Draw a line through each measurement after the warm-up.

    Returns:
        A row for each, and what is wrong.
    """
    taken = samples[warm_up:]
    if len(taken) < FEWEST:
        return [], [f"only {len(taken)} nights were measured after the warm-up: let it run longer"]
    rows, problems = [], []
    for name in taken[0]["measures"]:
        tolerance = next(each for ending, each in TOLERANCES.items() if name.endswith(ending))
        trend = Trend.through([(sample["at"], sample["measures"].get(name, 0)) for sample in taken])
        rows.append(
            {"name": name, **vars(trend), "may_grow": tolerance.of(trend.mean), "flat": trend.is_flat(tolerance)}
        )
        if not rows[-1]["flat"]:
            problems.append(f"{name} grows: {trend.first:.0f} to {trend.last:.0f}, may grow {rows[-1]['may_grow']:.0f}")
    return rows, problems


def show(rows, samples):
    print(f"{'':32}{'first':>12}{'last':>12}{'an hour':>12}{'may grow':>12}")
    for row in rows:
        unit = 1024 * 1024 if row["name"].endswith("memory") else 1024 if "bytes" in row["name"] else 1
        label = f"{row['name']}{ {1: '', 1024: ' (KiB)'}.get(unit, ' (MiB)') }"
        values = "".join(f"{row[key] / unit:12.1f}" for key in ("first", "last", "per_hour", "may_grow"))
        print(f"{label:32}{values}  {'flat' if row['flat'] else 'GROWS'}")
    if samples:
        print(f"{samples[-1]['faults']} of {samples[-1]['requests']} requests suffered a fault")


if __name__ == "__main__":
    sys.exit(main())
