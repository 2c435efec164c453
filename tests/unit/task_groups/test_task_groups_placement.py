"""Where the steps' tasks run: pools and queues by argument or by configuration."""

import pendulum
import pytest
from airflow.sdk import DAG

from qure_provider import settings
from qure_provider.task_groups.process_export import process_export

EACH_STEP = {
    "upload": {"process_export.ct.upload", "process_export.xray.upload"},
    "compute": {"process_export.ct.compute"},
    "collect": {"process_export.ct.collect", "process_export.xray.collect"},
    "deliver": {"process_export.deliver"},
    "plan": {"process_export.plan"},
    "summarize": {"process_export.summarize"},
}


def places(attribute, **arguments):
    with DAG("night", schedule=None, start_date=pendulum.datetime(2026, 1, 1)) as dag:
        process_export(export="/exports/{night}", deliver_to="pacs", **arguments)
    return {task.task_id: getattr(task, attribute) for task in dag.tasks}


@pytest.mark.parametrize("step", sorted(EACH_STEP))
@pytest.mark.parametrize(("attribute", "argument"), [("pool", "pools"), ("queue", "queues")])
def test_each_step_can_have_its_own(step, attribute, argument):
    found = places(attribute, **{argument: {step: "own"}})
    assert {task for task, place in found.items() if place == "own"} == EACH_STEP[step]


@pytest.mark.parametrize(("attribute", "default"), [("pool", "default_pool"), ("queue", "default")])
def test_nothing_chosen_leaves_it_to_airflow(attribute, default):
    assert set(places(attribute).values()) == {default}


def test_the_configuration_decides_where_the_dag_does_not(monkeypatch):
    monkeypatch.setenv("AIRFLOW__QURE__POOLS", '{"upload": "configured", "redeliver": "late"}')
    monkeypatch.setenv("AIRFLOW__QURE__QUEUES", '{"collect": "near"}')
    assert places("pool")["process_export.ct.upload"] == "configured"
    assert places("queue")["process_export.xray.collect"] == "near"
    assert places("pool", pools={})["process_export.ct.upload"] == "default_pool"
    assert settings.placement("redeliver") == {"pool": "late"}


@pytest.mark.parametrize("wrong", [{"uploads": "x"}, {"upload": "x", "delivery": "y"}])
def test_what_is_no_step_is_refused_when_the_dag_is_parsed(wrong):
    with pytest.raises(ValueError, match="pools must be a mapping of steps"):
        places("pool", pools=wrong)


@pytest.mark.parametrize("wrong", ['["upload"]', '{"uplod": "x"}', '"upload"'])
def test_a_wrong_configuration_is_refused_too(monkeypatch, wrong):
    monkeypatch.setenv("AIRFLOW__QURE__QUEUES", wrong)
    with pytest.raises(ValueError, match="queues must be a mapping of steps"):
        places("queue")
