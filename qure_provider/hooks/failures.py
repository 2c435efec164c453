"""What a failure of the network is: the one place that turns exceptions into the three kinds of errors.

It reads the exceptions that Python itself raises beneath those of requests, urllib3 and aiohttp, so that both clients
come to the same verdict. Nothing of an exception's text is repeated, for it may hold a URL.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections.abc import Iterator

from qure_provider.api.errors import QureError, QureSettingsError, QureTransientError

_CERTIFICATE_PROBLEMS = {
    10: "has expired",
    18: "is signed by itself alone",
    19: "ends in an authority that is not trusted here",
    20: "is signed by an authority that is not trusted here",
    21: "came without the certificates between it and its authority",
    62: "belongs to another host name",
    64: "belongs to another address",
}
"""By OpenSSL's X509_V_ERR codes."""

_NO_COMMON_GROUND = frozenset(
    {
        "HTTP_REQUEST",
        "NO_PROTOCOLS_AVAILABLE",
        "SSLV3_ALERT_HANDSHAKE_FAILURE",
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "UNSUPPORTED_PROTOCOL",
        "WRONG_VERSION_NUMBER",
    }
)

_UNUSABLE_URL = frozenset(
    {"InvalidURL", "InvalidSchema", "MissingSchema", "InvalidUrlClientError", "LocationParseError"}
)
_PROXY_REFUSAL = re.compile(r"Tunnel connection failed: 407\b")


def network_error(what: str, error: BaseException) -> QureError:
    """Turn an exception of requests or aiohttp into one of ours.

    A certificate that does not verify, a port that speaks no TLS and a proxy that wants credentials stay as they are
    until a person mends the settings. All else may pass: names that do not resolve, refused and reset connections,
    timeouts, bodies that end too soon.

    Args:
        what: What was being done, in fixed words to begin the message with (``"Upload"``).
        error: What was raised.

    Returns:
        The error, to be raised ``from None``.
    """
    causes = list(_causes(error))
    codes = [getattr(cause, "verify_code", 0) for cause in causes if isinstance(cause, ssl.SSLCertVerificationError)]
    if codes:
        problem = _CERTIFICATE_PROBLEMS.get(max(codes), "could not be verified")
        return QureSettingsError(
            f"{what} failed: the server's certificate {problem}. Check the base URL; for an authority of your own, set "
            "the connection's CA bundle."
        )
    for cause in causes:
        reason = getattr(cause, "reason", None)  # which OpenSSL does not always set
        if isinstance(cause, ssl.SSLError) and reason in _NO_COMMON_GROUND:
            return QureSettingsError(
                f"{what} failed: no TLS could be agreed on with that port ({reason}). Check scheme and port of "
                "the connection's base URL."
            )
        if getattr(cause, "status", None) == 407 or _PROXY_REFUSAL.search(str(cause)):
            return QureSettingsError(
                f"{what} failed: a proxy wants credentials. Put them into the connection's proxy addresses."
            )
    return QureTransientError(f"{what} failed: {_reason(causes)}.")


def _reason(causes: list[BaseException]) -> str:
    names = [type(cause).__name__ for cause in causes]
    if not _UNUSABLE_URL.isdisjoint(names):
        return "it was sent to an address that cannot be used"
    where = "the proxy" if any("Proxy" in name for name in names) else "the service"
    if any(isinstance(cause, socket.gaierror) for cause in causes) or "ClientConnectorDNSError" in names:
        return f"the host name of {where} could not be resolved"
    if any("ConnectTimeout" in name or "ConnectionTimeout" in name for name in names):
        return f"{where} could not be reached in time"
    if any(isinstance(cause, TimeoutError) or "Timeout" in type(cause).__name__ for cause in causes):
        return f"{where} stayed silent for too long"
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            return f"the TLS connection to {where} broke ({type(cause).__name__})"
        if isinstance(cause, OSError) and (code := errno.errorcode.get(cause.errno or 0)):
            return f"no connection to {where}, or it broke ({code})"
    return f"the connection to {where} broke ({names[0]})"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Go through an exception and all that it was made from; libraries keep that in several places."""
    waiting, seen = [error], set[int]()
    while waiting:
        cause = waiting.pop(0)
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        inner = (cause.__cause__, cause.__context__, *cause.args, vars(cause).get("reason"))
        waiting += [each for each in inner if isinstance(each, BaseException)]
