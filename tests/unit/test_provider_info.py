import importlib
import inspect
import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import airflow
import jsonschema
import pytest
from airflow.providers_manager import ProvidersManager
from airflow.sdk import BaseHook, BaseOperator
from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime
from airflow.triggers.base import BaseTrigger

import qure_provider
from qure_provider.get_provider_info import get_provider_info
from qure_provider.hooks.connection import QureConnection

INFO = get_provider_info()
SCHEMAS = Path(airflow.__file__).parent


def schema(name):
    return json.loads((SCHEMAS / name).read_text(encoding="utf-8"))


def test_it_fits_airflows_schema_of_provider_info():
    jsonschema.validate(INFO, schema("provider_info.schema.json"))


@pytest.mark.parametrize("part", sorted({*INFO} - {"package-name"}))
def test_each_part_fits_the_strict_schema_of_airflows_own_providers(part):
    strict = schema("provider.yaml.schema.json")
    assert part in strict["properties"]
    jsonschema.validate(INFO[part], strict["properties"][part] | {"definitions": strict.get("definitions", {})})


def modules(part):
    return [module for entry in INFO.get(part, []) for module in entry["python-modules"]]


@pytest.mark.parametrize(
    ("part", "base"),
    [("operators", BaseOperator), ("sensors", BaseOperator), ("hooks", BaseHook), ("triggers", BaseTrigger)],
)
def test_every_module_named_can_be_imported_and_holds_what_it_is_named_for(part, base):
    assert modules(part)
    for name in modules(part):
        module = importlib.import_module(name)
        own = [each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == name]
        assert any(issubclass(each, base) for each in own), name


def test_every_public_operator_sensor_hook_and_trigger_is_named():
    root = Path(qure_provider.__file__).parent
    for part, base in (("operators", BaseOperator), ("sensors", BaseOperator), ("triggers", BaseTrigger)):
        for path in (root / part).glob("[!_]*.py"):
            name = f"qure_provider.{part}.{path.stem}"
            module = importlib.import_module(name)
            own = [each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == name]
            if path.stem != "base" and any(issubclass(each, base) for each in own):
                assert name in modules(part)


def test_every_class_named_can_be_imported():
    names = [entry["hook-class-name"] for entry in INFO["connection-types"]]
    names += INFO.get("extra-links", []) + INFO.get("notifications", [])
    assert names
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert inspect.isclass(getattr(importlib.import_module(module), attribute))


def test_airflow_finds_the_provider_and_its_connection_form():
    (point,) = [point for point in entry_points(group="apache_airflow_provider") if "qure" in point.value]
    assert point.load()() == INFO
    assert ProvidersManager().providers["airflow-provider-qure"].data["name"] == "Qure.ai"
    assert ProvidersManagerTaskRuntime().hooks["qure"].hook_name == "Qure.ai"


def test_the_form_offers_no_default_that_the_connection_would_refuse():
    (entry,) = [entry for entry in INFO["connection-types"] if entry["connection-type"] == "qure"]
    defaults = {name: field["schema"].get("default") for name, field in entry["conn-fields"].items()}
    bare = {"conn_id": "q", "host": "https://qure.example", "schema": None, "port": None, "password": "t"}
    filled = QureConnection.from_airflow(SimpleNamespace(**bare, extra=json.dumps(defaults)))
    assert filled == QureConnection.from_airflow(SimpleNamespace(**bare, extra=None))


def test_it_imports_nothing_but_the_standard_library():
    code = (
        "import sys; from qure_provider.get_provider_info import get_provider_info; get_provider_info(); "
        "print(sorted({n.split('.')[0] for n in sys.modules} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert {name for name in json.loads(done.stdout.replace("'", '"')) if not name.startswith("_")} <= {"qure_provider"}
