"""Connecting to an HL7 receiver, and MLLP's blocks on that connection."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

from qure_provider.hooks.mllp_connection import MllpConnection, Tls
from qure_provider.hooks.receiver import (
    DeliveryInDoubtError,
    ReceiverError,
    ReceiverSettingsError,
    ReceiverUnavailableError,
)

START_BLOCK = b"\x0b"
END_BLOCK = b"\x1c"
CARRIAGE_RETURN = b"\x0d"

MAX_ACKNOWLEDGEMENT = 1024 * 1024
"""Bytes of an acknowledgement that are read at most."""

_TLS_REFUSALS = frozenset(
    {
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
        "TLSV1_ALERT_ACCESS_DENIED",
        "TLSV1_ALERT_DECRYPT_ERROR",
        "TLSV1_ALERT_UNKNOWN_CA",
    }
)
"""How a receiver says that it does not accept our certificate, or wants one. In TLS 1.3 it says so only after our side
holds the connection for made; nothing sent until then reaches the application."""

_NO_COMMON_GROUND = frozenset(
    {
        "NO_PROTOCOLS_AVAILABLE",
        "SSLV3_ALERT_HANDSHAKE_FAILURE",
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "UNSUPPORTED_PROTOCOL",
        "WRONG_VERSION_NUMBER",
    }
)


def connect(connection: MllpConnection, timeout: float) -> socket.socket:
    """Connect to a receiver, with TLS where its connection says so.

    Args:
        connection: The settings.
        timeout: Seconds to wait for the connection, and again for TLS.

    Returns:
        The connected socket; the caller closes it.

    Raises:
        ReceiverSettingsError: TLS cannot be agreed on, or its files cannot be used.
        ReceiverUnavailableError: The receiver cannot be reached now.
    """
    context = _tls_context(connection.tls) if connection.tls else None
    try:
        stream = socket.create_connection((connection.host, connection.port), timeout)
    except socket.gaierror:
        raise ReceiverUnavailableError("The receiver's host name could not be resolved.") from None
    except ConnectionRefusedError:
        raise ReceiverUnavailableError("Nothing listens at the receiver's host and port.") from None
    except TimeoutError:
        raise ReceiverUnavailableError("The receiver could not be reached in time.") from None
    except (OSError, UnicodeError) as error:
        raise ReceiverUnavailableError(f"The receiver could not be reached ({type(error).__name__}).") from None
    if context is None:
        return stream
    try:
        return context.wrap_socket(stream, server_hostname=connection.host)
    except BaseException as error:
        stream.close()
        if isinstance(error, OSError):
            raise _tls_error(error) from None
        raise


def _tls_context(tls: Tls) -> ssl.SSLContext:
    try:
        is_folder = Path(tls.ca_bundle).is_dir()
        context = ssl.create_default_context(
            cafile=None if is_folder else tls.ca_bundle or None, capath=tls.ca_bundle if is_folder else None
        )
    except OSError:
        raise ReceiverSettingsError("The connection's ca_bundle holds no certificates in PEM.") from None
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.client_certificate:
        try:
            context.load_cert_chain(tls.client_certificate, tls.client_key or None, lambda: tls.client_key_password)
        except OSError:
            raise ReceiverSettingsError(
                "The connection's client_certificate cannot be used with its client_key and password."
            ) from None
    return context


def _tls_error(error: OSError) -> ReceiverError:
    reason = getattr(error, "reason", None)  # which OpenSSL does not always set
    if isinstance(error, ssl.SSLCertVerificationError):
        problem = error.verify_message.split(",")[0]
        return ReceiverSettingsError(
            f"The receiver's certificate is not trusted ({problem}). Check host and ca_bundle."
        )
    if is_tls_refusal(error):
        return tls_refused()
    if isinstance(error, ssl.SSLError) and reason in _NO_COMMON_GROUND:
        return ReceiverSettingsError(f"No TLS could be agreed on with that port ({reason}). Check port and tls.")
    if isinstance(error, TimeoutError):
        return ReceiverUnavailableError("The receiver did not agree on TLS in time. Does that port speak TLS at all?")
    return ReceiverUnavailableError(f"The connection broke while TLS was agreed on ({type(error).__name__}).")


def is_tls_refusal(error: OSError) -> bool:
    """Tell whether the receiver ended TLS because of our certificate, so that it has read nothing of what was sent."""
    return isinstance(error, ssl.SSLError) and getattr(error, "reason", None) in _TLS_REFUSALS


def tls_refused() -> ReceiverSettingsError:
    """Return the error for ``is_tls_refusal``, to be raised."""
    return ReceiverSettingsError(
        "The receiver does not accept our certificate, or wants one. Check client_certificate and client_key."
    )


def blocks(stream: socket.socket, give_up: float) -> Iterator[bytes]:
    """Read one MLLP block after the other, however many packets they come in, until the connection is closed.

    The end block alone ends one, for the carriage return behind it is left out by some receivers.

    Args:
        stream: The connection.
        give_up: When to stop waiting, by the monotonic clock.

    Yields:
        What stands in a block.

    Raises:
        DeliveryInDoubtError: If the connection is closed in the middle of one, or it is too long.
        OSError: If nothing more came in time, or the connection broke.
    """
    received = b""
    while True:
        block, end, rest = received.partition(END_BLOCK)
        if end:
            received = rest
            yield block.rpartition(START_BLOCK)[2]
            continue
        if len(received) > MAX_ACKNOWLEDGEMENT:
            raise DeliveryInDoubtError("The receiver's answer is too long for an acknowledgement.")
        remaining = give_up - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        stream.settimeout(remaining)
        data = stream.recv(65536)
        if not data:
            if received.strip():
                raise DeliveryInDoubtError("The receiver closed the connection in the middle of its acknowledgement.")
            return
        received += data
