import json
from types import SimpleNamespace

import pytest

from qure_provider.hooks.fhir_connection import FhirConnection, FhirMode
from qure_provider.hooks.receiver import ReceiverSettingsError
from qure_provider.hooks.web import Authentication
from qure_provider.reports.fhir import FhirOptions, ReportStatus

SYSTEM = "urn:oid:1.2.3.4"


def read(host="https://ehr.example/fhir", login=None, password=None, extra=None):
    text = extra if isinstance(extra, str) else json.dumps({"patient_identifier_system": SYSTEM, **(extra or {})})
    fields = {"conn_id": "ehr", "host": host, "schema": None, "port": None, "login": login, "password": password}
    return FhirConnection.from_airflow(SimpleNamespace(**fields, extra=text))


def refusal(**fields):
    with pytest.raises(ReceiverSettingsError) as caught:
        read(**fields)
    return str(caught.value)


def test_defaults_are_filled_in():
    connection = read()

    assert connection.web.base_url == "https://ehr.example/fhir/"
    assert connection.web.authentication is Authentication.NONE
    assert connection.web.verify is True
    assert (connection.web.connect_timeout, connection.web.read_timeout) == (10, 60)
    assert connection.mode is FhirMode.AUTO
    assert connection.options == FhirOptions(ReportStatus.PARTIAL, include_pdf=True, include_scores=False)


def test_everything_can_be_set_with_the_texts_that_a_uri_brings(tmp_path):
    bundle = tmp_path / "ca.pem"
    bundle.write_text("")

    connection = read(
        login="client",
        password="s3cret",
        extra={
            "auth": "oauth2",
            "token_url": "https://login.example/token",
            "scope": "system/*.write",
            "ca_bundle": str(bundle),
            "proxies": "http://proxy:3128",
            "connect_timeout": "3",
            "read_timeout": "30.5",
            "patient_identifier_systems": '{"HOSPITAL A": "urn:oid:1.2.3.5"}',
            "report_status": "preliminary",
            "include_pdf": "false",
            "include_scores": "true",
            "accession_system": "urn:oid:1.2.3.6",
            "mode": "single",
        },
    )

    assert connection.web.authentication is Authentication.OAUTH2
    assert (connection.web.login, connection.web.token_url) == ("client", "https://login.example/token")
    assert connection.web.scope == "system/*.write"
    assert connection.web.trust == str(bundle)
    assert connection.web.proxy_for("https://ehr.example/") == "http://proxy:3128"
    assert connection.patient_systems == {"HOSPITAL A": "urn:oid:1.2.3.5"}
    assert connection.mode is FhirMode.SINGLE
    assert connection.options == FhirOptions(
        ReportStatus.PRELIMINARY, include_pdf=False, include_scores=True, accession_system="urn:oid:1.2.3.6"
    )


def test_a_login_alone_means_basic():
    assert read(login="user", password="pass").web.authentication is Authentication.BASIC


@pytest.mark.parametrize(
    ("systems", "issuer", "system"),
    [
        ({}, "", SYSTEM),
        ({}, "ANY", SYSTEM),
        ({"A": "urn:oid:1"}, "A", "urn:oid:1"),
        ({"A": "urn:oid:1"}, "", SYSTEM),
        ({"A": "urn:oid:1"}, "B", ""),
    ],
)
def test_an_issuer_that_is_not_named_beside_others_has_no_system(systems, issuer, system):
    assert read(extra={"patient_identifier_systems": systems}).system_of(issuer) == system


def test_a_map_of_issuers_alone_is_enough():
    connection = read(extra={"patient_identifier_system": "", "patient_identifier_systems": {"A": "urn:oid:1"}})

    assert (connection.system_of("A"), connection.system_of("")) == ("urn:oid:1", "")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"host": ""}, "host"),
        ({"host": "http://ehr.example/fhir"}, "host"),
        ({"extra": {"patient_identifier_system": ""}}, "patient_identifier_system"),
        ({"extra": {"patient_identifier_system": "MRN"}}, "patient_identifier_system"),
        ({"extra": {"patient_identifier_system": "urn:oid:1 2"}}, "patient_identifier_system"),
        ({"extra": {"patient_identifier_systems": "{"}}, "patient_identifier_systems"),
        ({"extra": {"patient_identifier_systems": "[]"}}, "patient_identifier_systems"),
        ({"extra": {"patient_identifier_systems": {"A": ""}}}, "patient_identifier_systems"),
        ({"extra": {"patient_identifier_systems": {"A": 5}}}, "patient_identifier_systems"),
        ({"extra": {"accession_system": "ACC"}}, "accession_system"),
        ({"extra": {"report_status": "final"}}, "report_status"),
        ({"extra": {"mode": "batch"}}, "mode"),
        ({"extra": {"include_pdf": "perhaps"}}, "include_pdf"),
        ({"extra": {"auth": "digest"}}, "auth"),
        ({"extra": {"auth": "basic"}}, "login"),
        ({"login": "a:b", "password": "p"}, "login"),
        ({"login": "a"}, "password"),
        ({"password": "p"}, "auth"),
        ({"extra": {"auth": "bearer"}}, "password"),
        ({"password": "Bearer abc", "extra": {"auth": "bearer"}}, "password"),
        ({"password": "tökén", "extra": {"auth": "bearer"}}, "password"),
        ({"login": "c", "password": "p", "extra": {"auth": "oauth2"}}, "token_url"),
        ({"login": "c", "password": "p", "extra": {"auth": "oauth2", "token_url": "http://x.example/t"}}, "token_url"),
        ({"extra": "{"}, "extra"),
        ({"extra": {"ca_bundle": "/nowhere/ca.pem"}}, "ca_bundle"),
        ({"extra": {"read_timeout": 0}}, "read_timeout"),
    ],
)
def test_a_wrong_field_is_named(fields, named):
    message = refusal(**fields)

    assert f"Connection ehr, field {named}: " in message
    assert message.endswith(".")


def test_secrets_are_in_no_error_and_no_repr():
    assert "hunter2" not in refusal(host="https://user:hunter2@ehr.example")
    assert "hunter2" not in refusal(password="Bearer hunter2", extra={"auth": "bearer"})
    assert "hunter2" not in repr(read(login="user", password="hunter2"))
