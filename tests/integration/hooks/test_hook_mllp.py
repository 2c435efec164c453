"""Messages to an HL7 receiver on a real socket, whatever it does with them."""

import json
import logging
import socket
import ssl
import sys
import threading
import time
from datetime import UTC, datetime

import pytest
from support import hl7_receiver as receivers
from support.hl7_receiver import Hl7Receiver

from qure_provider.api.model import Meaning, Outcome, Report, Route
from qure_provider.dicom.model import Identity, StudyFacts
from qure_provider.hooks.mllp import MllpHook
from qure_provider.hooks.receiver import (
    DeliveryInDoubtError,
    ReceiverRefusedError,
    ReceiverSettingsError,
    ReceiverUnavailableError,
)
from qure_provider.reports.hl7 import build_oru, message_control_id
from qure_provider.reports.hl7_fields import AcknowledgementMode
from qure_provider.reports.result import Result
from qure_provider.reports.study_report import StudyReport


@pytest.fixture
def receiver():
    with Hl7Receiver() as receiver:
        yield receiver


@pytest.fixture
def hook_to(monkeypatch):
    def make(port, host="127.0.0.1", **extra):
        extra = {"processing_id": "T", "connect_timeout": 2, "response_timeout": 2, **extra}
        fields = {"conn_type": "mllp", "host": host, "port": port, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_MLLP_DEFAULT", json.dumps(fields))
        return MllpHook()

    return make


@pytest.fixture
def hook(hook_to, receiver):
    return hook_to(receiver.port)


def study_report(text="Opacity, right", **changes):
    result = Result(
        uid="1.2.840.99999.1.1.1",
        route=Route.XRAY,
        revision=1,
        study_instance_uid="1.2.840.99999.1",
        series_instance_uid="1.2.840.99999.1.1",
        outcome=Outcome.READY,
        usecase="qxr",
        triage="Critical",
        meaning=Meaning.ABNORMAL,
        report=Report(findings=text),
    )
    values = {
        "identity": Identity("1.2.840.99999.1", patient_id="SIM-0042", patient_name="SIMULATED^ANNA"),
        "facts": StudyFacts(),
        "product": "qxr",
        "revision": 1,
        "results": (result,),
        "issued": datetime(2026, 1, 31, tzinfo=UTC),
    }
    return StudyReport(**values | changes)


def send(hook, report=None, **more):
    return hook.send(build_oru(report or study_report(), hook.connection.fields, **more))


# Taken


def test_a_report_arrives_and_is_acknowledged(hook, receiver):
    acknowledgement = send(hook)

    (message,) = receiver.messages
    assert message["PID"].values(3)[0] == "SIM-0042"
    assert (acknowledgement.code, acknowledgement.mode) == ("AA", AcknowledgementMode.ORIGINAL)
    assert acknowledgement.control_id == message.control_id == message_control_id(study_report())


def test_a_revision_replaces_and_a_repeat_is_recognised(hook, receiver):
    send(hook)
    send(hook)
    send(hook, study_report("No opacity", revision=2))
    send(hook, study_report("No opacity", revision=2), withdrawn=True)

    assert len(receiver.reports) == 1
    ids = [message.control_id for message in receiver.messages]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    (shown,) = receiver.reports.values()
    assert {item[11] for item in shown.all("OBX")} == {"W"}


def test_a_report_with_a_pdf_of_megabytes_arrives_whole(hook_to, receiver, tmp_path):
    content = b"%PDF-1.7" + bytes(4_000_000)
    (tmp_path / "report.pdf").write_bytes(content)

    hook = hook_to(receiver.port, include_pdf=True, response_timeout=30)
    send(hook, study_report(pdf=tmp_path / "report.pdf"))

    assert len(receiver.messages[0].raw) > len(content) * 4 / 3


@pytest.mark.parametrize("size", [1, 7, 64])
def test_an_acknowledgement_may_come_in_any_number_of_packets(hook, receiver, size):
    receiver.actions = [receivers.in_pieces(size, pause=0.001)]

    assert send(hook).code == "AA"


def test_an_acknowledgement_may_lack_the_last_carriage_return_and_follow_noise(hook, receiver):
    receiver.actions = [lambda wire, message: wire.sendall(b"\r\n\x0b" + receivers.ack(message, "AA") + b"\x1c")]

    assert send(hook).code == "AA"


def test_an_acknowledgement_may_take_its_time(hook, receiver):
    receiver.actions = [receivers.late(0.5)]

    assert send(hook).code == "AA"


# Two acknowledgements


def test_enhanced_mode_waits_for_both(hook_to, receiver):
    receiver.actions = [receivers.answers("CA", "AA", pause=0.05)]

    acknowledgement = send(hook_to(receiver.port, acknowledgement="enhanced"))

    header = receiver.messages[0]["MSH"]
    assert (header[15], header[16]) == ("AL", "AL")
    assert acknowledgement.code == "AA"


def test_both_may_come_in_one_packet(hook_to, receiver):
    receiver.actions = [
        lambda wire, message: wire.sendall(
            b"".join(receivers.frame(receivers.ack(message, code)) for code in ("CA", "AA"))
        )
    ]

    assert send(hook_to(receiver.port, acknowledgement="enhanced")).code == "AA"


def test_a_receiver_of_the_original_mode_is_understood_in_enhanced_mode(hook_to, receiver):
    assert send(hook_to(receiver.port, acknowledgement="enhanced")).code == "AA"


def test_a_commit_suffices_where_only_that_is_asked_for(hook_to, receiver):
    receiver.actions = [receivers.answer("CA")]

    acknowledgement = send(hook_to(receiver.port, acknowledgement="commit"))

    assert (acknowledgement.code, acknowledgement.mode) == ("CA", AcknowledgementMode.ENHANCED)
    assert receiver.messages[0]["MSH"][16] == "NE"


def test_an_application_that_refuses_what_was_stored_has_refused(hook_to, receiver):
    receiver.actions = [receivers.answers("CA", "AR")]

    with pytest.raises(ReceiverRefusedError, match="AR"):
        send(hook_to(receiver.port, acknowledgement="enhanced"))


@pytest.mark.parametrize("act", [receivers.answer("CA"), receivers.answers("CA", pause=2)])
def test_stored_without_a_word_of_the_application_is_in_doubt(hook_to, receiver, act):
    receiver.actions = [act]

    with pytest.raises(DeliveryInDoubtError, match=r"stored the message.*set acknowledgement to commit"):
        send(hook_to(receiver.port, acknowledgement="enhanced", response_timeout=0.3))


# Not taken


@pytest.mark.parametrize(
    ("code", "errors", "kind"),
    [
        ("AE", "", ReceiverUnavailableError),
        ("AR", "", ReceiverRefusedError),
        ("CE", "", ReceiverUnavailableError),
        ("CR", "", ReceiverRefusedError),
        ("AE", "ERR||PID^1^3|204|E\r", ReceiverRefusedError),
        ("AR", "ERR|||207|E\r", ReceiverUnavailableError),
        ("AR", "ERR|||203|E\r", ReceiverSettingsError),
    ],
)
def test_a_refusal_says_which_kind_it_is_and_nothing_of_the_patient(hook, receiver, code, errors, kind):
    receiver.actions = [receivers.answer(code, text="ANNA SIMULATED is unknown", errors=errors)]

    with pytest.raises(kind) as raised:
        send(hook)

    assert code in str(raised.value)
    assert "SIMULATED" not in str(raised.value)


def test_after_a_refusal_the_same_message_can_be_sent_again(hook, receiver):
    receiver.actions = [receivers.answer("AE")]
    with pytest.raises(ReceiverUnavailableError):
        send(hook)

    assert send(hook).code == "AA"
    assert receiver.messages[0].raw == receiver.messages[1].raw


# In doubt


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (receivers.drop, "closed the connection"),
        (receivers.half, "in the middle of its acknowledgement"),
        (receivers.silent(1), "0.3 seconds passed"),
        (receivers.answer("AA", control_id="Q0000000000000000000"), "of another message"),
        (receivers.answer("AR", control_id=""), "of another message"),
        (receivers.answer("??"), "none of table 0008"),
        (receivers.raw(receivers.frame(b"HTTP/1.1 400 Bad Request")), "no acknowledgement that can be read"),
        (receivers.raw(receivers.frame(b"MSH|^~\\&|RIS\r")), "no acknowledgement that can be read"),
        (receivers.raw(b"\x0bMSH" + b"A" * 1_100_000), "too long"),
    ],
)
def test_sent_without_a_whole_acknowledgement_of_ours_is_in_doubt(hook_to, receiver, act, said):
    receiver.actions = [act]

    with pytest.raises(DeliveryInDoubtError, match=said):
        send(hook_to(receiver.port, response_timeout=0.3))

    assert len(receiver.messages) == 1


def test_bytes_that_keep_dripping_do_not_prolong_the_wait(hook_to, receiver):
    receiver.actions = [receivers.in_pieces(1, pause=0.05)]
    begin = time.monotonic()

    with pytest.raises(DeliveryInDoubtError, match="seconds passed"):
        send(hook_to(receiver.port, response_timeout=0.3))

    assert time.monotonic() - begin < 2


def test_an_acknowledgement_that_comes_too_late_is_not_the_next_messages(hook_to, receiver):
    receiver.actions = [receivers.late(0.5)]
    hook = hook_to(receiver.port, response_timeout=0.3)
    with pytest.raises(DeliveryInDoubtError):
        send(hook)

    assert send(hook, study_report(revision=2)).control_id == receiver.messages[1].control_id


def test_a_connection_reset_while_sending_is_in_doubt(hook_to, tmp_path):
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7" + bytes(8_000_000))
    with socket.create_server(("127.0.0.1", 0)) as server:

        def reset():
            connection, _ = server.accept()
            connection.recv(1000)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()

        threading.Thread(target=reset, daemon=True).start()
        hook = hook_to(server.getsockname()[1], include_pdf=True)

        with pytest.raises(DeliveryInDoubtError, match="connection broke"):
            send(hook, study_report(pdf=tmp_path / "report.pdf"))


def test_a_receiver_that_stops_reading_is_in_doubt(hook_to, tmp_path):
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7" + bytes(16_000_000))
    with socket.create_server(("127.0.0.1", 0)) as server:
        hook = hook_to(server.getsockname()[1], include_pdf=True, response_timeout=0.3)

        with pytest.raises(DeliveryInDoubtError, match="seconds passed"):
            send(hook, study_report(pdf=tmp_path / "report.pdf"))


# Nothing sent


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_nobody_there_is_unavailable(hook_to):
    hook = hook_to(free_port())

    with pytest.raises(ReceiverUnavailableError, match="Nothing listens"):
        send(hook)
    assert hook.test_connection() == (False, "Nothing listens at the receiver's host and port.")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70])
def test_an_unknown_host_is_unavailable(hook_to, host):
    with pytest.raises(ReceiverUnavailableError):
        send(hook_to(1, host=host))


def test_what_is_no_message_is_never_sent(hook, receiver):
    for message in (b"", b"PID|1\r", b"MSH|^~\\&|A\r", build_oru(study_report(), hook.connection.fields) + b"\x1c\r"):
        with pytest.raises(ValueError, match="message"):
            hook.send(message)

    assert receiver.messages == []


def test_without_the_library_nothing_is_sent(hook, receiver, monkeypatch):
    monkeypatch.setitem(sys.modules, "hl7", None)
    monkeypatch.setattr("qure_provider.hooks.mllp.find_spec", lambda name: None)

    with pytest.raises(ReceiverSettingsError, match="Install"):
        send(hook)

    assert receiver.messages == []


# TLS


@pytest.fixture
def secure_receiver(certificates):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates[1], certificates[2])
    with Hl7Receiver(context) as receiver:
        yield receiver


@pytest.fixture
def strict_receiver(certificates):
    """It wants a certificate of its authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates[0])
    context.load_cert_chain(certificates[1], certificates[2])
    context.verify_mode = ssl.CERT_REQUIRED
    with Hl7Receiver(context) as receiver:
        yield receiver


def test_a_report_goes_through_tls(hook_to, secure_receiver, certificates):
    hook = hook_to(secure_receiver.port, tls=True, ca_bundle=str(certificates[0]))

    assert send(hook).code == "AA"
    assert hook.test_connection()[0]


def test_a_certificate_of_nobody_we_trust_is_a_matter_of_settings(hook_to, secure_receiver):
    hook = hook_to(secure_receiver.port, tls=True)

    with pytest.raises(ReceiverSettingsError, match=r"certificate is not trusted.*ca_bundle"):
        send(hook)
    assert send(hook_to(secure_receiver.port, tls=True, verify=False)).code == "AA"


def test_a_certificate_of_another_host_is_a_matter_of_settings(hook_to, secure_receiver, certificates, monkeypatch):
    real = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: real(("127.0.0.1", address[1]), timeout))
    hook = hook_to(secure_receiver.port, host="ris.example", tls=True, ca_bundle=str(certificates[0]))

    with pytest.raises(ReceiverSettingsError, match="not trusted"):
        send(hook)
    assert secure_receiver.messages == []


def test_a_client_certificate_is_shown(hook_to, strict_receiver, certificates):
    authority, certificate, key = map(str, certificates)
    shown = {"client_certificate": certificate, "client_key": key}

    assert send(hook_to(strict_receiver.port, tls=True, ca_bundle=authority, **shown)).code == "AA"


def test_a_receiver_that_wants_a_certificate_is_recognised_by_the_test(hook_to, strict_receiver, certificates):
    is_well, said = hook_to(strict_receiver.port, tls=True, ca_bundle=str(certificates[0])).test_connection()

    assert not is_well
    assert "client_certificate" in said


def test_without_the_certificate_it_wants_the_receiver_takes_nothing(hook_to, strict_receiver, certificates):
    with pytest.raises((ReceiverSettingsError, DeliveryInDoubtError)):
        send(hook_to(strict_receiver.port, tls=True, ca_bundle=str(certificates[0])))

    assert strict_receiver.messages == []


def test_a_port_without_tls_is_told(hook_to, receiver):
    begin = time.monotonic()

    with pytest.raises(ReceiverUnavailableError, match="TLS"):
        send(hook_to(receiver.port, tls=True, connect_timeout=0.3))

    assert time.monotonic() - begin < 2
    assert receiver.messages == []


def test_files_that_are_no_certificates_are_a_matter_of_settings(hook_to, secure_receiver, tmp_path):
    (tmp_path / "no.pem").write_text("SIMULATED")
    path = str(tmp_path / "no.pem")

    with pytest.raises(ReceiverSettingsError, match="ca_bundle"):
        send(hook_to(secure_receiver.port, tls=True, ca_bundle=path))
    with pytest.raises(ReceiverSettingsError, match="client_certificate"):
        send(hook_to(secure_receiver.port, tls=True, verify=False, client_certificate=path))


# The Test button


def test_the_test_sends_nothing(hook, receiver):
    is_well, said = hook.test_connection()

    assert is_well
    assert "without TLS" in said
    assert "Nothing was sent" in said
    assert receiver.messages == []


def test_a_receiver_that_lets_nobody_in_is_told(hook_to):
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()

        is_well, said = hook_to(server.getsockname()[1]).test_connection()

    assert not is_well
    assert "lets this machine in" in said


def test_wrong_settings_are_told(hook_to):
    is_well, said = hook_to(1, processing_id=None).test_connection()

    assert not is_well
    assert said.startswith("Field processing_id: is not set. Enter P for production")


def test_nothing_of_the_patient_is_logged(hook, receiver, caplog):
    receiver.actions = [receivers.answer("AR", text="SIMULATED")]
    with caplog.at_level(logging.DEBUG), pytest.raises(ReceiverRefusedError):
        send(hook)

    assert not [text for text in ("SIM-0042", "SIMULATED", "1.2.840.99999") if text in caplog.text]
