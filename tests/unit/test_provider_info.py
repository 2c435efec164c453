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
from qure_provider.hooks.connection import Fields, QureConnection
from qure_provider.hooks.dicom_connection import DicomConnection
from qure_provider.hooks.dicomweb import DicomWebConnection
from qure_provider.hooks.fhir_connection import FhirConnection
from qure_provider.hooks.mllp_connection import MllpConnection

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


READERS = {
    "qure": (QureConnection, {"host": "https://qure.example"}, {}),
    "dicom": (DicomConnection, {"host": "pacs.example"}, {"called_ae_title": "ARCHIVE"}),
    "dicomweb": (DicomWebConnection, {"host": "https://pacs.example/dicom-web"}, {}),
    "mllp": (MllpConnection, {"host": "ris.example"}, {"processing_id": "T"}),
    "fhir": (FhirConnection, {"host": "https://ehr.example/fhir"}, {"patient_identifier_system": "urn:x"}),
}
"""What reads each connection, and what it cannot be without."""


@pytest.mark.parametrize("kind", READERS)
def test_a_form_offers_no_default_that_the_connection_would_refuse(kind):
    (entry,) = [entry for entry in INFO["connection-types"] if entry["connection-type"] == kind]
    reader, needed, extra = READERS[kind]
    defaults = {name: field["schema"].get("default") for name, field in entry["conn-fields"].items()}
    bare = {"conn_id": "q", "schema": None, "port": None, "login": None, "password": "", **needed}
    bare |= {"password": "t"} if kind == "qure" else {}
    filled = reader.from_airflow(SimpleNamespace(**bare, extra=json.dumps(defaults | extra)))
    assert filled == reader.from_airflow(SimpleNamespace(**bare, extra=json.dumps(extra)))


@pytest.mark.parametrize("kind", READERS)
def test_a_form_has_every_setting_that_the_connection_reads_and_no_other(kind, monkeypatch):
    (entry,) = [entry for entry in INFO["connection-types"] if entry["connection-type"] == kind]
    reader, needed, extra = READERS[kind]
    extra = extra | ({"tls": True} if "tls" in entry["conn-fields"] else {})
    insecure = {"allow_plain_http": True} if "allow_plain_http" in entry["conn-fields"] else {}
    read = set()
    raw = Fields.raw
    monkeypatch.setattr(Fields, "raw", lambda fields, name: read.add(name) or raw(fields, name))
    bare = {"conn_id": "q", "schema": None, "port": None, "login": "me", "password": "t", **needed}
    for more in ({}, {"auth": "oauth2", "token_url": "https://login.example/token"}):
        if not more or "auth" in entry["conn-fields"]:
            plain = needed if "://" not in needed["host"] else {"host": needed["host"].replace("https", "http")}
            for values in ({}, {**plain, "more": insecure}):
                own = {**bare, **{name: value for name, value in values.items() if name != "more"}}
                both = extra | more | values.get("more", {})
                reader.from_airflow(SimpleNamespace(**own, extra=json.dumps(both)))
    assert read - DESTINATIONS_OWN == set(entry["conn-fields"]) - DESTINATIONS_OWN
    assert (set(entry["conn-fields"]) >= DESTINATIONS_OWN) == (kind in ("dicom", "dicomweb"))


@pytest.mark.parametrize("kind", READERS)
def test_a_misspelt_field_is_named_with_those_that_there_are(kind):
    reader, needed, extra = READERS[kind]
    bare = {"conn_id": "q", "schema": None, "port": None, "login": None, "password": "t", **needed}
    with pytest.raises(Exception, match=r"field extra: there is no 'verfiy'\. There are .*verify"):
        reader.from_airflow(SimpleNamespace(**bare, extra=json.dumps(extra | {"verfiy": True})))


DESTINATIONS_OWN = {"ask_first", "prove"}
"""Which the destination reads, not the hook."""


def test_it_imports_nothing_but_the_standard_library():
    code = (
        "import sys; from qure_provider.get_provider_info import get_provider_info; get_provider_info(); "
        "print(sorted({n.split('.')[0] for n in sys.modules} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert {name for name in json.loads(done.stdout.replace("'", '"')) if not name.startswith("_")} <= {"qure_provider"}
