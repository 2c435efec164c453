"""An Airflow of its own that does what its standard input says, a JSON object a line, and answers each with a line.

``{"connection": {...}}`` is kept in Airflow's database, ``{"dag", "date", "conf"}`` runs as ``dag.test()`` does, and
``{"command": [...]}`` is given to the ``airflow`` command.
"""

import contextlib
import importlib
import io
import json
import sys

import pendulum
from airflow.cli.cli_parser import get_parser
from airflow.models import Connection
from airflow.utils.db import initdb
from airflow.utils.session import create_session


def main():
    initdb()
    for line in sys.stdin:
        print(f"\nDONE {json.dumps(done(json.loads(line)))}", flush=True)  # noqa: T201


def done(step):
    if "connection" in step:
        with create_session() as session:
            session.add(Connection(**step["connection"]))
        return None
    if "command" in step:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            arguments = get_parser().parse_args(step["command"])
            arguments.func(arguments)
        return printed.getvalue()
    dag = importlib.import_module(step["dag"]).dag
    run = dag.test(logical_date=pendulum.parse(step["date"]), run_conf=step["conf"])
    return {
        "state": str(run.state),
        "tasks": {f"{ti.task_id}[{ti.map_index}]": str(ti.state) for ti in run.get_task_instances()},
    }


main()
