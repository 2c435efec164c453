"""Imports something in a process of its own and says what that took.

``python -m benchmarks.importer dag FILE`` or ``python -m benchmarks.importer discovery``.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from importlib.metadata import entry_points

from benchmarks.children import say

HEAVY = ("pydicom", "aiohttp", "sqlalchemy", "requests")
GROUP, NAME = "apache_airflow_provider", "provider_info"


def dag(path: str) -> dict[str, object]:
    """Parse a DAG file as Airflow does, after Airflow's own classes that it needs anyhow."""
    begun = time.perf_counter()
    from airflow.sdk import DAG, BaseSensorOperator  # noqa: F401
    from airflow.triggers.base import BaseTrigger  # noqa: F401

    loaded = time.perf_counter()
    known = set(sys.modules)
    spec = importlib.util.spec_from_file_location("parsed_dag", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parsed = time.perf_counter()
    dags = [value for value in vars(module).values() if isinstance(value, DAG)]
    heavy = [name for name in HEAVY if name in sys.modules and name not in known]
    return {"airflow": loaded - begun, "file": parsed - loaded, "dags": len(dags), "heavy": heavy}


def discovery() -> dict[str, object]:
    """Learn what the provider is, as Airflow does when it looks for providers."""
    known = set(sys.modules)
    begun = time.perf_counter()
    (entry,) = (point for point in entry_points(group=GROUP, name=NAME) if point.value.startswith("qure_provider."))
    info = entry.load()()
    seconds = time.perf_counter() - begun
    heavy = [name for name in HEAVY if name in sys.modules and name not in known]
    return {"seconds": seconds, "heavy": heavy, "name": info["package-name"]}


def main() -> None:
    """Do it once."""
    what, *arguments = sys.argv[1:]
    say(dag(*arguments) if what == "dag" else discovery())


if __name__ == "__main__":
    main()
