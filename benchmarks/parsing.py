"""DAG parsing: what our DAG files add to importing Airflow, and what the discovery of the provider imports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.children import Child
from benchmarks.figures import Figure, Target, WrongResultError
from benchmarks.importer import HEAVY

DAGS = Path(__file__).resolve().parent.parent / "dags"
BUDGET_MS = 150


def measure(folder: Path, *, fast: bool) -> Iterator[Figure]:
    """Measure it, each time in a process of its own.

    Args:
        folder: For an empty Airflow home.
        fast: Whether to take fewer rounds.

    Yields:
        The figures.

    Raises:
        WrongResultError: If a DAG file defines no DAG.
    """
    env = {"AIRFLOW_HOME": str(folder / "airflow-home"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    files = sorted(DAGS.glob("*.py"))
    _import("dag", str(files[0]), env=env)  # compiles, and writes Airflow's configuration
    said = {path: [_import("dag", str(path), env=env) for _ in range(2 if fast else 7)] for path in files}
    for path, runs in said.items():
        if not all(run["dags"] for run in runs):
            raise WrongResultError(f"{path.name} defines no DAG")
        ours, theirs = (1000 * median(run[name] for run in runs) for name in ("file", "airflow"))
        words = f"parsing {path.name}, against importing DAG, BaseSensorOperator and BaseTrigger before"
        yield Figure(words, ours, "ms", theirs, Target("ours", "<=", BUDGET_MS))
    names = ", ".join(HEAVY)
    heavy = {name for runs in said.values() for run in runs for name in run["heavy"]}
    yield Figure(f"of {names}: imported by our DAG files", len(heavy), "libraries", target=Target("ours", "<=", 0))
    found = _import("discovery", env=env)
    words = f"of {names}: imported by the provider's discovery"
    yield Figure(words, len(found["heavy"]), "libraries", target=Target("ours", "<=", 0))
    yield Figure("the provider's discovery", 1000 * found["seconds"], "ms")


def _import(*arguments: str, env: dict[str, str]) -> dict[str, Any]:
    with Child("importer", *arguments, env=env) as child:
        said: dict[str, Any] = child.hear()
    return said
