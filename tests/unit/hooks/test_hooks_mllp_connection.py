"""The settings of an HL7 receiver: what may be left out, what must not, and what the error says."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qure_provider.hooks.mllp_answer import Answer, refusal
from qure_provider.hooks.mllp_connection import RETRIED, MllpConnection, NegativeCode
from qure_provider.hooks.receiver import (
    DeliveryInDoubtError,
    ReceiverRefusedError,
    ReceiverSettingsError,
    ReceiverUnavailableError,
)
from qure_provider.reports.hl7_fields import AcknowledgementMode, Hl7Version, ProcessingId, ResultStatus
from qure_provider.reports.hl7_syntax import CharacterSet


def connection(host="ris.example", port=None, password=None, extra=None, **fields):
    text = json.dumps({"processing_id": "T", **fields}) if extra is None else extra
    airflow = SimpleNamespace(conn_id="ris", host=host, schema=None, port=port, password=password, extra=text)
    return MllpConnection.from_airflow(airflow)


def test_host_and_processing_id_are_enough():
    settings = connection()

    assert (settings.host, settings.port, settings.tls) == ("ris.example", 2575, None)
    assert (settings.fields.processing_id, settings.fields.version) == (ProcessingId.TRAINING, Hl7Version.V2_5_1)
    assert settings.fields.acknowledgement is AcknowledgementMode.ORIGINAL
    assert (settings.fields.include_scores, settings.fields.include_pdf) == (False, False)


def test_everything_can_be_set_as_text():
    settings = connection(
        port=6661,
        version="2.3.1",
        sending_facility="SIMHOSP",
        acknowledgement="commit",
        character_set="8859/1",
        report_status="P",
        include_scores="true",
        include_pdf="yes",
        connect_timeout="2.5",
        response_timeout="5",
        retry_codes="ar, ce",
        places='{"OBR-19": "{accession_number}"}',
    )

    fields = settings.fields
    assert (settings.port, settings.connect_timeout, settings.response_timeout) == (6661, 2.5, 5.0)
    assert (fields.version, fields.character_set, fields.report_status) == (
        "2.3.1",
        CharacterSet.LATIN_1,
        ResultStatus.PRELIMINARY,
    )
    assert (fields.include_scores, fields.include_pdf, fields.places) == (True, True, {"OBR-19": "{accession_number}"})
    assert settings.retry_codes == {NegativeCode.AR, NegativeCode.CE}


def test_nothing_need_be_retried():
    assert connection(retry_codes="none").retry_codes == frozenset()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"processing_id": None}, "field processing_id: is not set. Enter P"),
        ({"processing_id": "D"}, "field processing_id: must be one of P, T"),
        ({"host": " "}, "field host: is empty"),
        ({"host": "mllp://ris"}, "field host: must be a host name"),
        ({"port": 70000}, "field port"),
        ({"report_status": "F"}, "field report_status: must be one of R, P"),
        ({"version": "2.7"}, "field version: must be one of 2.3.1, 2.4, 2.5.1"),
        ({"character_set": "BIG-5"}, "field character_set: must be one of"),
        ({"places": {"OBR-25": "F"}}, "field places: OBR-25 is not to be chosen"),
        ({"places": "{"}, "field places: is no JSON"),
        ({"places": ["OBR-19"]}, "field places: must be a JSON object"),
        ({"places": {"OBR-19": 1}}, "field places: the content of OBR-19 must be a text"),
        ({"receiving_application": "A|B"}, "field receiving_application"),
        ({"retry_codes": "AA"}, "field retry_codes: must hold some of AE AR CE CR"),
        ({"response_timeout": 0}, "field response_timeout: must be a number from"),
        ({"include_scores": "perhaps"}, "field include_scores: must be true or false"),
        ({"sending_facility": 7}, "field sending_facility: must be a text"),
        ({"ca_bundle": __file__}, "field ca_bundle: has no use while TLS is off"),
        ({"tls": True, "ca_bundle": "/nowhere.pem"}, "field ca_bundle: there is no such file"),
        ({"tls": True, "ca_bundle": __file__, "verify": False}, "field ca_bundle: a CA bundle has no use"),
        ({"tls": True, "client_key": __file__}, "field client_key: has no use without"),
        ({"extra": "[]"}, "field extra: must be a JSON object"),
        ({"extra": "{"}, "field extra: must be a JSON object"),
    ],
)
def test_what_is_wrong_is_named(given, said):
    with pytest.raises(ReceiverSettingsError, match=f"^Connection ris, {said}"):
        connection(**given)


# What a refusal means


def refused(code, tail="", retry_codes=RETRIED):
    block = f"MSH|^~\\&|RIS||QURE-AI||20260101||ACK|1|T|2.5.1\rMSA|{code}|Q1|DOE JANE unknown\r{tail}".encode()
    return refusal(Answer.of(block), retry_codes)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("AE", ReceiverUnavailableError),
        ("CE", ReceiverUnavailableError),
        ("AR", ReceiverRefusedError),
        ("CR", ReceiverRefusedError),
        ("ZZ", DeliveryInDoubtError),
        ("", DeliveryInDoubtError),
    ],
)
def test_without_a_condition_the_code_decides(code, kind):
    assert type(refused(code)) is kind


def test_which_codes_are_retried_is_a_setting():
    assert type(refused("AE", retry_codes=frozenset({NegativeCode.AR}))) is ReceiverRefusedError
    assert type(refused("AR", retry_codes=frozenset({NegativeCode.AR}))) is ReceiverUnavailableError


@pytest.mark.parametrize(
    ("tail", "kind", "said"),
    [
        ("ERR||PID^1^3|204^Unknown key^HL70357|E\r", ReceiverRefusedError, "(AE, condition 204, PID-3)"),
        ("ERR||OBR^1|101|E\r", ReceiverRefusedError, "(AE, condition 101, OBR)"),
        ("ERR|||207^Internal error|E\r", ReceiverUnavailableError, "(AE, condition 207)"),
        ("ERR|||202|E\r", ReceiverSettingsError, "change processing_id"),
        ("ERR|||203|E\r", ReceiverSettingsError, "change version"),
        ("ERR|OBX^2^5^102&Data type error&HL70357\r", ReceiverRefusedError, "(AE, condition 102, OBX-5)"),
        ("ERR||DOE JANE^1^3|DOE|E\r", ReceiverUnavailableError, "(AE): its own log says why, under control ID Q1"),
        ("ERR|||0|I\r", ReceiverUnavailableError, "(AE):"),
    ],
)
def test_a_condition_decides_before_the_code(tail, kind, said):
    error = refused("AE", tail)

    assert type(error) is kind
    assert said in str(error)
    assert "DOE" not in str(error)


def test_a_condition_of_older_versions_is_read():
    block = b"MSH|^~\\&|RIS||QURE-AI||20260101||ACK|1|T|2.3.1\rMSA|AR|Q1||||207^Internal error^HL70357\r"

    assert type(refusal(Answer.of(block), RETRIED)) is ReceiverUnavailableError


@given(st.binary(max_size=60) | st.text("MSHAER|^~\\&\r1", max_size=60).map(lambda text: f"MSH{text}".encode()))
@settings(max_examples=500, deadline=None)
def test_no_answer_breaks_the_reader(block):
    try:
        answer = Answer.of(block)
    except DeliveryInDoubtError:
        return
    assert "DOE" not in str(refusal(answer, RETRIED))
