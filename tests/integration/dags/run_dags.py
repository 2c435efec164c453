"""Runs DAGs as ``dag.test()`` does, in an Airflow of its own; a program, so that all it writes can be looked at.

Its argument is a JSON list of runs: ``{"dag", "date", "conf", "env"}``. After each it prints the run's state.
"""

import importlib
import json
import os
import sys

import pendulum
from airflow.utils.db import initdb


def main():
    initdb()
    for number, run in enumerate(json.loads(sys.argv[1])):
        os.environ.update(run.get("env", {}))
        dag = importlib.import_module(run["dag"]).dag
        done = dag.test(logical_date=pendulum.parse(run["date"]), run_conf=run["conf"])
        states = {f"{ti.task_id}[{ti.map_index}]": str(ti.state) for ti in done.get_task_instances()}
        print(f"\nRUN {number} {json.dumps({'state': str(done.state), 'tasks': states})}", flush=True)  # noqa: T201


main()
