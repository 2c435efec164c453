"""Who delivers in the task group, and after whom."""

import pendulum
import pytest
from airflow.sdk import DAG, TaskGroup

from qure_provider.task_groups.process_export import process_export

EVERYTHING = {"rules": [{"to": ["ris"]}]}
TEMPLATE = {"deliver_to": "{{ params.deliver_to or '' }}"}


def dag_of(**arguments):
    with DAG("night", schedule=None, start_date=pendulum.datetime(2026, 1, 1)) as dag, TaskGroup("hospital"):
        process_export(export="/exports/{night}", **arguments)
    return {task.task_id.removeprefix("hospital.process_export."): task for task in dag.tasks}


@pytest.mark.parametrize("onward", [EVERYTHING, TEMPLATE])
def test_one_task_delivers_until_the_last_collect_is_over_and_before_the_summary(onward):
    tasks = dag_of(**onward)
    collects = {tasks["ct.collect"], tasks["xray.collect"]}
    assert set(tasks["deliver"].bringers) == {task.task_id for task in collects}
    assert tasks["deliver"].upstream_list == [tasks["plan"]]
    assert set(tasks["summarize"].upstream_list) == {*collects, tasks["deliver"]}
    assert all(task.only_urgent for task in collects)


def test_where_nothing_goes_onward_no_task_waits_to_deliver():
    tasks = dag_of()
    assert "deliver" not in tasks
    assert not tasks["ct.collect"].only_urgent
