"""The archive and the EHR over HTTPS: whose certificates are trusted, and what goes in clear."""

import json

import pytest

from qure_provider.hooks.dicomweb import DicomWebHook
from qure_provider.hooks.fhir import FhirHook

HOOKS = {"dicomweb": DicomWebHook, "fhir": FhirHook}


@pytest.fixture(params=HOOKS)
def said(request, monkeypatch):
    """Test a connection of that type, and give what the button would show."""

    def test(url, **extra):
        fields = {"conn_type": request.param, "host": url, "login": "integration", "password": "s3cret"}
        needed = {"patient_identifier_system": "urn:simulated:patients"} if request.param == "fhir" else {}
        fields["extra"] = {**needed, **extra}
        monkeypatch.setenv("AIRFLOW_CONN_RECEIVER", json.dumps(fields))
        return HOOKS[request.param]("receiver").test_connection()[1]

    return test


def test_R6_a_certificate_of_no_known_authority_is_refused(said, tls_wire):
    assert "authority that is not trusted" in said(tls_wire.url)
    assert tls_wire.requests == []


def test_R6_another_host_name_is_refused(said, misnamed_tls_wire, certificates):
    assert "belongs to another" in said(misnamed_tls_wire.url, ca_bundle=str(certificates[0]))
    assert misnamed_tls_wire.requests == []


def test_an_authority_of_ones_own_is_trusted(said, tls_wire, certificates):
    assert "certificate" not in said(tls_wire.url, ca_bundle=str(certificates[0]))
    assert tls_wire.requests


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_verification_can_be_switched_off_and_that_is_logged(said, tls_wire, caplog):
    said(tls_wire.url, verify=False)

    assert tls_wire.requests
    assert "TLS verification is off: connection=receiver" in caplog.text


def test_R6_plain_http_to_another_machine_needs_to_be_allowed(said):
    assert "allow_plain_http" in said("http://192.0.2.1:9")


def test_and_is_logged_where_it_is(said, caplog):
    said("http://receiver.invalid", allow_plain_http=True)

    assert "travel without TLS: connection=receiver" in caplog.text
    assert "s3cret" not in caplog.text


def test_R6_no_redirect_is_followed_and_no_credential_goes_elsewhere(said, wire, second_wire):
    wire.answer = lambda handler: handler.reply(307, Location=second_wire.url + "/steal")

    said(wire.url)

    assert wire.requests
    assert second_wire.requests == []
