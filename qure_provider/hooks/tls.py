"""Connecting to a receiver over TCP, with TLS or without, and what it means where that fails."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from qure_provider.hooks.connection import Fields, verification
from qure_provider.hooks.receiver import ReceiverError, ReceiverSettingsError, ReceiverUnavailableError

_REFUSALS = frozenset(
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


@dataclass(frozen=True, slots=True)
class Tls:
    """How a connection is encrypted.

    Attributes:
        verify: Whether the receiver's certificate is checked.
        ca_bundle: PEM file or folder of the authorities to trust; empty for those of the system.
        check_hostname: Whether the certificate must name the host.
        client_certificate: PEM file of the certificate to show, with those between it and its authority; empty for
            none.
        client_key: PEM file of its key; empty where the key lies with the certificate.
        client_key_password: What opens the key; empty where it is not encrypted.
    """

    verify: bool = True
    ca_bundle: str = ""
    check_hostname: bool = True
    client_certificate: str = ""
    client_key: str = ""
    client_key_password: str = field(default="", repr=False)

    @classmethod
    def of(cls, fields: Fields, client_key_password: str) -> Tls | None:
        """Read it from a connection.

        Args:
            fields: Of the connection; ``tls`` and the names of the attributes are read.
            client_key_password: What opens the client key; may be empty.

        Returns:
            The settings; None where ``tls`` is off.

        Raises:
            ReceiverSettingsError: A field is wrong or contradicts another.
        """
        if not fields.boolean("tls", default=False):
            for name in ("ca_bundle", "client_certificate", "client_key"):
                if fields.raw(name) is not None:
                    raise fields.error(name, "has no use while TLS is off. Switch TLS on, or remove it")
            return None
        verify, ca_bundle = verification(fields)
        certificate, key = _file(fields, "client_certificate"), _file(fields, "client_key")
        if key and not certificate:
            raise fields.error("client_key", "has no use without a client certificate. Enter that too")
        check_hostname = fields.boolean("check_hostname", default=True)
        return cls(verify, ca_bundle, check_hostname, certificate, key, client_key_password)

    def context(self) -> ssl.SSLContext:
        """Make what connections are wrapped with.

        Raises:
            ReceiverSettingsError: One of its files cannot be used.
        """
        try:
            is_folder = Path(self.ca_bundle).is_dir()
            context = ssl.create_default_context(
                cafile=None if is_folder else self.ca_bundle or None, capath=self.ca_bundle if is_folder else None
            )
        except OSError:
            raise ReceiverSettingsError("The connection's ca_bundle holds no certificates in PEM.") from None
        context.check_hostname = self.verify and self.check_hostname
        if not self.verify:
            context.verify_mode = ssl.CERT_NONE
        if self.client_certificate:
            try:
                context.load_cert_chain(
                    self.client_certificate, self.client_key or None, lambda: self.client_key_password
                )
            except OSError:
                raise ReceiverSettingsError(
                    "The connection's client_certificate cannot be used with its client_key and password."
                ) from None
        return context


def connect(host: str, port: int, tls: Tls | None, timeout: float) -> socket.socket:
    """Connect to a receiver.

    Args:
        host: Name or address.
        port: TCP port.
        tls: How it is encrypted; None where it is not.
        timeout: Seconds to wait for the connection, and again for TLS.

    Returns:
        The connected socket; the caller closes it.

    Raises:
        ReceiverSettingsError: TLS cannot be agreed on, or its files cannot be used.
        ReceiverUnavailableError: The receiver cannot be reached now.
    """
    context = tls.context() if tls else None
    try:
        stream = socket.create_connection((host, port), timeout)
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
        return context.wrap_socket(stream, server_hostname=host)
    except BaseException as error:
        stream.close()
        if isinstance(error, OSError):
            raise tls_error(error) from None
        raise


def tls_error(error: OSError) -> ReceiverError:
    """Turn what agreeing on TLS raised into the error that it means.

    Args:
        error: What was raised.

    Returns:
        The error, to be raised ``from None``.
    """
    reason = getattr(error, "reason", None)  # which OpenSSL does not always set
    if isinstance(error, ssl.SSLCertVerificationError):
        problem = error.verify_message.split(",")[0]
        return ReceiverSettingsError(
            f"The receiver's certificate is not trusted ({problem}). Check host and ca_bundle."
        )
    if is_refusal(error):
        return refused()
    if isinstance(error, ssl.SSLError) and reason in _NO_COMMON_GROUND:
        return ReceiverSettingsError(f"No TLS could be agreed on with that port ({reason}). Check port and tls.")
    if isinstance(error, TimeoutError):
        return ReceiverUnavailableError("The receiver did not agree on TLS in time. Does that port speak TLS at all?")
    return ReceiverUnavailableError(f"The connection broke while TLS was agreed on ({type(error).__name__}).")


def is_refusal(error: OSError) -> bool:
    """Tell whether the receiver ended TLS because of our certificate, so that it has read nothing of what was sent."""
    return isinstance(error, ssl.SSLError) and getattr(error, "reason", None) in _REFUSALS


def refused() -> ReceiverSettingsError:
    """Return the error for ``is_refusal``, to be raised."""
    return ReceiverSettingsError(
        "The receiver does not accept our certificate, or wants one. Check client_certificate and client_key."
    )


def _file(fields: Fields, name: str) -> str:
    path = fields.text(name)
    if path and not Path(path).is_file():
        raise fields.error(name, "there is no such file on this machine. Every worker needs it")
    return path
