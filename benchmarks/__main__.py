"""``python -m benchmarks``. See ``--help``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from rich.console import Console

from benchmarks.figures import Figure, Lines, WrongResultError, one_after_the_other, print_table
from demo.processes import signals_as_exit

ROOT = Path(__file__).resolve().parent.parent
PARTS: Mapping[str, str] = {
    "upload": "Upload to a service that reads and discards, on the loopback interface",
    "scan": "Scan of an export",
    "waiting": "Waiting for results in one triggerer process, 5 simulated minutes",
    "night": "A night from export to results in a real Airflow",
    "parsing": "DAG parsing and provider discovery",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write one JSON line a figure; what goes wrong in one part costs the figures of no other.

    Returns:
        0, or 1 where something was lost, counted wrongly or ended in an error. A missed target is no failure: a number
        says more than a colour.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--fast", action="store_true", help="smaller loads, fewer rounds: less than 4 minutes")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="folder for data and figures (build)")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    console = Console(width=None if sys.stdout.isatty() else 160)
    folder = (options.build / "bench").resolve()
    parts = options.parts or list(PARTS)
    lines = Lines(options.build / "bench.jsonl", parts)
    passed = True
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with signals_as_exit():
            for part in parts:
                passed &= _run(part, folder, lines, console, fast=options.fast)
    finally:
        shutil.rmtree(folder)
    console.print(str(lines.path), markup=False)
    return int(not passed)


def _run(part: str, folder: Path, lines: Lines, console: Console, *, fast: bool) -> bool:
    """Measure one part and print it; returns whether nothing was lost."""
    begun, load = time.monotonic(), os.getloadavg()[0]
    figures: list[Figure] = []
    problem = None
    try:
        for figure in one_after_the_other(_measure(part)(folder, fast=fast)):
            figures.append(figure)
            lines.write(part, figure)
    except WrongResultError as error:
        problem = error
    took = time.monotonic() - begun
    print_table(figures, f"{PARTS[part]} ({took:.0f} s; load of {os.cpu_count()} cores before: {load:.1f})", console)
    if problem:
        console.print(f"WRONG: {problem}", markup=False, style="bold red")
    return problem is None


def _measure(part: str) -> Callable[..., Iterator[Figure]]:
    measure: Callable[..., Iterator[Figure]] = import_module(f"benchmarks.{part}").measure
    return measure


if __name__ == "__main__":
    sys.exit(main())
