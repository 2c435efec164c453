import errno
import socket
import ssl

import pytest

from qure_provider.api.errors import QureSettingsError, QureTransientError
from qure_provider.hooks.failures import network_error


def wrapped(inner, *, how="cause"):
    """An error as a library would wrap it, with a URL in its text."""
    outer = RuntimeError("https://u:p@qure.example/results/1.2.3?X-Amz-Signature=abc")
    if how == "cause":
        outer.__cause__ = inner
    elif how == "context":
        outer.__context__ = inner
    elif how == "args":
        outer.args = ("text", inner)
    else:
        outer.reason = inner
    return outer


def certificate_error(code):
    error = ssl.SSLCertVerificationError(1, "certificate verify failed for qure.example")
    error.verify_code = code
    return error


@pytest.mark.parametrize("how", ["cause", "context", "args", "reason"])
def test_the_cause_is_found_wherever_a_library_keeps_it(how):
    error = network_error("Upload", wrapped(certificate_error(10), how=how))

    assert isinstance(error, QureSettingsError)
    assert "expired" in str(error)


@pytest.mark.parametrize(
    ("code", "said"),
    [(10, "expired"), (18, "itself"), (19, "not trusted"), (20, "not trusted"), (62, "another host"), (1, "verified")],
)
def test_a_certificate_that_does_not_verify_is_a_setting_to_mend(code, said):
    error = network_error("Upload", certificate_error(code))

    assert isinstance(error, QureSettingsError)
    assert said in str(error)
    assert "CA bundle" in str(error)


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        (socket.gaierror(socket.EAI_NONAME, "x"), "resolved"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), "ECONNREFUSED"),
        (ConnectionResetError(errno.ECONNRESET, "x"), "ECONNRESET"),
        (TimeoutError(), "silent"),
        (ssl.SSLEOFError(8, "EOF occurred"), "broke"),
        (ValueError("x"), "broke"),
    ],
)
def test_what_may_pass_is_transient(inner, said):
    error = network_error("Upload", wrapped(inner))

    assert isinstance(error, QureTransientError)
    assert said in str(error)


def test_nothing_of_the_exceptions_texts_is_repeated():
    for inner in (certificate_error(62), TimeoutError("1.2.3"), OSError(errno.EPIPE, "1.2.3"), ValueError("1.2.3")):
        text = str(network_error("Upload", wrapped(inner)))
        assert text.startswith("Upload failed: ")
        for secret in ("qure.example", "1.2.3", "Signature"):
            assert secret not in text


def test_a_proxy_that_wants_credentials_is_a_setting_to_mend():
    error = network_error("Upload", wrapped(OSError("Tunnel connection failed: 407 Proxy Authentication Required")))

    assert isinstance(error, QureSettingsError)
    assert "proxy" in str(error)


def test_exceptions_that_refer_to_each_other_end():
    first, second = ValueError(), ValueError()
    first.__context__, second.__context__ = second, first

    assert isinstance(network_error("Upload", first), QureTransientError)
