"""The DAG files as Airflow sees them: what they import, whether they parse, and how the tasks hang together."""

import json
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pendulum
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization
from airflow.task.trigger_rule import TriggerRule

from qure_provider.retries import QureRetryPolicy
from qure_provider.task_groups.process_export import process_export

DAGS = Path(__file__).parents[2] / "dags"
HEAVY = (
    *("pydicom", "requests", "requests_toolbelt", "aiohttp", "numpy", "pynetdicom", "hl7", "fhir"),
    *("alembic", "urllib3", "tenacity", "fastapi", "highdicom"),
)
WITH_AIRFLOW = """
import importlib, json, pathlib, sys, time
from airflow.sdk import DAG, BaseSensorOperator
from airflow.triggers.base import BaseTrigger
before, begun = set(sys.modules), time.process_time()
sys.path.insert(0, sys.argv[1])
for path in pathlib.Path(sys.argv[1]).glob("*.py"):
    importlib.import_module(path.stem)
print(json.dumps([sorted(set(sys.modules) - before), time.process_time() - begun]))
"""


def imported():
    done = subprocess.run(
        [sys.executable, "-c", WITH_AIRFLOW, str(DAGS)], capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


class TestParsing:
    def test_imports_nothing_heavy(self):
        names, _ = imported()
        assert "qure_nightly" in names
        assert {name.split(".")[0] for name in names} & set(HEAVY) == set()
        assert not any(name.startswith(("qure_provider.emulator", "qure_provider.dicom.scan")) for name in names)

    @pytest.fixture(scope="class")
    def bag(self):
        return DagBag(str(DAGS))

    def test_finds_each_without_an_error(self, bag):
        assert bag.import_errors == {}
        assert set(bag.dags) == {path.stem for path in DAGS.glob("*.py")} >= {"qure_nightly", "qure_on_demand"}

    def test_what_is_stored_of_them_can_be_read_again(self, bag):
        for dag in bag.dags.values():
            stored = json.loads(json.dumps(DagSerialization.to_dict(dag)))
            again = DagSerialization.from_dict(stored)
            assert set(again.task_dict) == set(dag.task_dict)

    def test_every_parameter_of_a_form_is_described_and_its_default_is_valid(self, bag):
        for dag in bag.dags.values():
            for name in dag.params:
                param = dag.params.get_param(name)
                assert param.description, name
                assert param.schema["title"], name
                if name != "export" or dag.dag_id == "qure_nightly":  # whoever starts a run by hand names the folder
                    param.resolve()

    def test_the_night_waits_for_its_export_and_ends_before_the_next(self, bag):
        dag = bag.dags["qure_nightly"]
        assert dag.max_active_runs == 1
        assert dag.catchup is False
        assert dag.get_task("process_export.plan").upstream_task_ids == {"export_is_complete"}
        limit = dag.get_task("export_is_complete").limit_seconds
        assert limit + dag.get_task("process_export.plan").wait_seconds < 24 * 3600


class TestTheGroup:
    @pytest.fixture
    def dag(self):
        with DAG("some_dag", start_date=pendulum.datetime(2026, 1, 1), schedule=None) as dag:
            process_export(export="/exports/{night}", group_id="qure", parallel_uploads=3)
        return dag

    def test_runs_the_steps_in_order_whatever_became_of_those_before(self, dag):
        for route, steps in {"ct": ["upload", "compute", "collect"], "xray": ["upload", "collect"]}.items():
            for before, after in pairwise(steps):
                task = dag.get_task(f"qure.{route}.{after}")
                assert f"qure.{route}.{before}" in task.upstream_task_ids
                assert task.trigger_rule == TriggerRule.ALL_DONE
            assert f"qure.{route}.collect" in dag.get_task("qure.summarize").upstream_task_ids
        assert dag.get_task("qure.summarize").trigger_rule == TriggerRule.ALL_DONE
        assert not dag.has_task("qure.xray.compute")

    def test_ends_in_the_summary_alone_so_that_it_decides_the_runs_colour(self, dag):
        assert [task.task_id for task in dag.leaves] == ["qure.summarize"]

    def test_keeps_slots_free_of_uploads_for_those_that_are_resumed(self, dag):
        for route in ("ct", "xray"):
            assert dag.get_task(f"qure.{route}.upload").max_active_tis_per_dagrun == 3

    def test_retries_by_the_kind_of_the_error(self, dag):
        for task in dag.tasks:
            if task.task_id.endswith(("plan", "upload", "compute", "collect", "summarize")):
                assert isinstance(task.retry_policy, QureRetryPolicy)
                assert task.retries >= 2

    def test_can_be_put_twice_into_one_dag(self):
        with DAG("some_dag", start_date=pendulum.datetime(2026, 1, 1), schedule=None) as dag:
            process_export(export="/a", group_id="a")
            process_export(export="/b", group_id="b")
        assert dag.get_task("a.plan").run_group == "a"
        assert dag.get_task("b.summarize").run_group == "b"

    def test_tells_a_wrong_argument_when_the_dag_is_parsed(self):
        with (
            DAG("some_dag", start_date=pendulum.datetime(2026, 1, 1), schedule=None),
            pytest.raises(ValueError, match="triage meaning"),
        ):
            process_export(export="/a", page_on=["terrible"])

    @pytest.mark.parametrize(
        ("name", "value", "says"),
        [
            ("DELIVERTO", "pacs", r"\[qure\] has no option 'deliverto'. Its options are .*deliver_to"),
            ("PAGE_ON", "urgant", "no triage meaning 'urgant'. It takes urgent"),
            ("PAGE_FINDINGS", '["sdh"]', "is no finding's key"),
            ("SELECTION", '["CT"]', "selection must be a JSON object"),
            ("SELECTION", '{"modality": ["CT"]}', "unknown selection rule modality; the rules are body_parts"),
            ("RULES", '[{"when": {"produkt": ["qxr"]}, "to": ["pacs"]}]', "Rule 1: 'when' does not take 'produkt'"),
        ],
    )
    def test_a_misspelt_setting_is_named_when_the_dag_is_parsed(self, monkeypatch, name, value, says):
        monkeypatch.setenv(f"AIRFLOW__QURE__{name}", value)
        with pytest.raises(ValueError, match=says):
            runpy.run_path(str(DAGS / "qure_nightly.py"))

    def test_a_site_sets_once_what_is_sent(self, monkeypatch):
        monkeypatch.setenv("AIRFLOW__QURE__SELECTION", '{"minimum_slices": 20}')
        nightly, by_hand = (
            runpy.run_path(str(DAGS / f"{name}.py"))["dag"] for name in ("qure_nightly", "qure_on_demand")
        )
        assert nightly.get_task("process_export.plan").selection == {"minimum_slices": 20}
        assert by_hand.params["selection"] == {"minimum_slices": 20}

    def test_a_setting_can_come_from_a_command_or_a_secrets_backend(self, monkeypatch):
        monkeypatch.setenv("AIRFLOW__QURE__PSEUDONYM_KEY_CMD", "echo key")
        runpy.run_path(str(DAGS / "qure_nightly.py"))
