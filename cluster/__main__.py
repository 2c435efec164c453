"""``python -m cluster``: ``docker-compose.yaml`` without Docker, and two nights on it. See ``--help``."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from cluster.cluster import Cluster, ClusterError
from cluster.compose import ComposeError
from cluster.images import ROOT, ImageError
from cluster.losses import Losses
from cluster.night import NightRecord, Workplace, run_night
from cluster.trial import OVERRIDES, USER, make_variables
from demo.__main__ import make_empty
from demo.airflow import AirflowError
from demo.export import WHAT_IT_IS, make_export
from demo.processes import signals_as_exit
from demo.report import Progress, make_console

NIGHTS = ("2026-01-15", "2026-01-16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The command line's; None takes those of the process.

    Returns:
        The exit code: 0 if both nights are as they should be, 1 if not, 2 if it could not begin.
    """
    options = _options(arguments)
    build = options.build.resolve()
    try:
        make_empty(build)
        with signals_as_exit():
            passed = _run(build, options)
    except KeyboardInterrupt:
        print("Everything is stopped.", file=sys.stderr)
        return 130
    except (ClusterError, ComposeError, ImageError, AirflowError, FileExistsError) as error:
        print(error, file=sys.stderr)
        return 2
    print(build / "summary.json")
    return 0 if passed else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m cluster",
        description="docker-compose.yaml as processes on this machine, and two nights on it; in the second a worker is "
        "lost in the middle of an upload, and a triggerer in the middle of waiting. "
        "The Qure service is an emulator: everything it says is SIMULATED.",
    )
    parser.add_argument("--studies", type=int, default=6, help="single chest X-ray studies in each night (6)")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "cluster", help="its folder (build/cluster)")
    parser.add_argument("--timeout", type=float, default=300, help="seconds that a night may take (300)")
    parser.add_argument("--keep", action="store_true", help="then leave it running until Ctrl-C, to look at")
    return parser.parse_args(arguments)


def _run(build: Path, options: argparse.Namespace) -> bool:
    console = make_console()
    progress = Progress(console)
    variables = make_variables(build / "export")
    nights = [
        make_export(build / "export" / night, night=night, studies=options.studies, small=True) for night in NIGHTS
    ]
    began = time.monotonic()
    cluster = Cluster(ROOT / "docker-compose.yaml", build, variables=variables, profiles=["try"], overrides=OVERRIDES)
    with cluster:
        started = round(time.monotonic() - began, 1)
        progress.say(f"{len(cluster.services)} services are healthy after {started} s, their logs: {build / 'logs'}")
        work = Workplace.of(cluster, variables, progress)
        records = []
        work.prepare(nights[0])
        records.append(run_night(work, nights[0], timeout=options.timeout))
        work.prepare(nights[1])
        losses = Losses(work, nights[1])
        records.append(run_night(work, nights[1], timeout=options.timeout, meanwhile=losses.look))
        problems = [*(problem for record in records for problem in record.problems), *losses.problems]
        _print(console, records, losses, problems)
        summary = {
            "simulated": True,
            "notice": WHAT_IT_IS,
            "passed": not problems,
            "problems": problems,
            "services": sorted(cluster.services),
            "start_seconds": started,
            "nights": [asdict(record) for record in records],
            "recovery_seconds": losses.recovery,
        }
        (build / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        if options.keep:
            url, password = cluster.url("api-server", 8080), variables["ADMIN_PASSWORD"]
            console.print(f"Airflow's UI: {url} user: {USER} password: {password}  Ctrl-C ends it", soft_wrap=True)
            signal.pause()
    return not problems


def _print(console: Console, records: Sequence[NightRecord], losses: Losses, problems: Sequence[str]) -> None:
    table = Table(title="Nights on the cluster (SIMULATED)", box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("night", "run", "seconds", "results", "tasks", "tries", "tasks by worker", "waits by triggerer"):
        table.add_column(heading, overflow="fold")
    for record in records:
        places = (_in_words(record.workers), _in_words(record.triggerers))
        numbers = (record.seconds, record.results, record.tasks, record.tries)
        table.add_row(record.night, record.state, *map(str, numbers), *places)
    console.print(table)
    for name, seconds in losses.recovery.items():
        console.print(f"{name} was lost and made up for after {seconds} s", markup=False)
    for line in (
        *(f"Not as it should be: {problem}" for problem in problems),
        "FAILED" if problems else "Every file was sent and every result is there, exactly once.",
    ):
        console.print(line, soft_wrap=True, markup=False)


def _in_words(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items())


if __name__ == "__main__":
    sys.exit(main())
