"""Reports on a patient's record: an EHR that speaks FHIR."""

import json

import pytest
from support.fhir_server import Fault, running_fhir_server

from qure_provider.delivery.records import FhirDestination

SYSTEM = "urn:oid:1.2.36.146.595.217.0.1"


@pytest.fixture(scope="module")
def server():
    with running_fhir_server() as running:
        yield running


@pytest.fixture
def ehr(server, monkeypatch):
    """An EHR under the connection id ``ehr``, which knows both patients of the night."""
    server.forget_everything()
    for patient in ("SIM-1", "SIM-2"):
        server.admit(SYSTEM, patient, birthDate="1970-01-01", gender="female")
    settings = {"patient_identifier_system": SYSTEM, "connect_timeout": 2, "read_timeout": 2}
    fields = {"conn_type": "fhir", "host": server.url, "extra": settings}
    monkeypatch.setenv("AIRFLOW_CONN_EHR", json.dumps(fields))
    return server


def statuses(server):
    return sorted(report["status"] for report in server.resources("DiagnosticReport"))


def test_a_report_for_each_study_and_product_and_nothing_new_when_repeated(night, ehr):
    for _ in range(2):
        night.onward("ehr")
    assert night.states("ehr") == {"delivered": 2}
    assert statuses(ehr) == ["partial", "partial"]


def test_a_patient_that_the_ehr_does_not_know_is_held_and_not_made(night, ehr):
    ehr.forget_everything()
    ehr.admit(SYSTEM, "SIM-1", birthDate="1970-01-01", gender="female")
    night.onward("ehr")
    assert night.states("ehr") == {"held": 1, "delivered": 1}
    assert len(ehr.resources("Patient")) == 1


def test_a_held_one_goes_out_when_the_patient_is_there(night, ehr):
    ehr.forget_everything()
    night.onward("ehr")
    assert night.states("ehr") == {"held": 2}
    for patient in ("SIM-1", "SIM-2"):
        ehr.admit(SYSTEM, patient, birthDate="1970-01-01", gender="female")
    night.redeliver(states="held")
    assert night.states("ehr") == {"delivered": 2}


def test_what_is_in_doubt_is_asked_for_before_it_is_sent_again(night, ehr):
    ehr.faults.append(Fault("POST", "", times=100))  # the work is done, and no answer comes
    night.onward("ehr")
    assert night.states("ehr") == {"in doubt": 2}
    ehr.faults.clear()
    versions = ehr.versions("DiagnosticReport")
    night.redeliver(even_if_not_due=True)
    assert night.states("ehr") == {"delivered": 2}
    assert ehr.versions("DiagnosticReport") == versions == 2
    assert all("asked" in row.receipt["proof"] for row in night.deliveries("ehr"))


def test_what_had_not_arrived_is_sent(night, ehr):
    night.enqueue(["ehr"])
    night.sql("UPDATE deliveries SET state = 'in doubt'")
    night.deliver("ehr")
    assert statuses(ehr) == ["partial", "partial"]


def test_a_changed_report_takes_the_older_ones_place(night, ehr):
    night.onward("ehr")
    row = night.rows()[night.lateral]
    night.edit_result(row.store_path, report=night.result(row)["report"] | {"impression": "SIMULATED. Changed"})
    night.onward("ehr")
    assert len(ehr.resources("DiagnosticReport")) == 2
    assert [row.state.value for row in night.deliveries("ehr")] == ["delivered"] * 3


def test_what_is_withdrawn_is_entered_in_error(night, ehr):
    night.onward("ehr")
    with night.ledger() as ledger:
        found = ledger.deliveries.not_withdrawn(study_instance_uid=night.chest)
        ledger.deliveries.withdraw(found, by="Dr Simulated", why="SIMULATED")
    night.deliver("ehr")
    assert statuses(ehr) == ["entered-in-error", "partial"]


def test_what_would_be_put_there_is_shown_without_putting_it(night, ehr):
    night.summarize(deliver_to=["ehr"], show_only="deliver")
    shown = list(night.root.glob("runs/*/*/dry_run/ehr/*/bundle.json"))
    assert len(shown) == 2
    assert ehr.resources("DiagnosticReport") == []


def test_it_is_on_this_machine_only_by_its_address(monkeypatch):
    for url, is_here in (("http://127.0.0.1:1/fhir", True), ("https://ehr.example/fhir", False)):
        fields = {"conn_type": "fhir", "host": url, "extra": {"patient_identifier_system": SYSTEM}}
        monkeypatch.setenv("AIRFLOW_CONN_EHR", json.dumps(fields))
        destination = FhirDestination("ehr")
        assert destination.is_loopback is is_here
        destination.close()


def test_one_night_reaches_an_ehr_a_ris_and_a_folder(night, ehr, ris):
    night.onward("ehr", "ris", night.to_folder)
    assert night.states() == {"delivered": 7}
    assert len(ris.messages) == len(statuses(ehr)) == 2
