"""What each HTTP status says on each step: the one table that every client and retry policy shares."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum

from qure_provider.api.errors import QureError, QureRejectedError, QureSettingsError, QureTransientError
from qure_provider.api.model import Outcome, ResultsVersion, Route

MAX_RETRY_AFTER = 3600.0
"""Seconds. A service that asks for a longer pause is asked again after this one."""


class Step(StrEnum):
    """What was being done when the answer came."""

    UPLOAD = "upload"
    COMPUTE = "compute"
    RESULTS_V2 = "results v2"
    """X-ray, current endpoint."""
    RESULTS = "results"
    """X-ray v1, qER and qCT."""
    DOWNLOAD = "download"
    """A file that a result names, usually at another host; with redirects followed as far as they were allowed."""


def results_step(route: Route, version: ResultsVersion) -> Step:
    """Tell which of the two results endpoints answers.

    Args:
        route: Of the resource.
        version: Which endpoint answers for X-rays.

    Returns:
        ``RESULTS_V2`` for X-rays asked by v2, else ``RESULTS``.
    """
    return Step.RESULTS_V2 if route is Route.XRAY and version is ResultsVersion.V2 else Step.RESULTS


@dataclass(frozen=True, slots=True)
class Rule:
    """What one status says on one step.

    Attributes:
        verdict: An outcome of the resource, or the kind of error; None where the status is a positive one and the
            rest is for the body to say.
        text: In fixed words: the reason, or what the reader should do.
    """

    verdict: Outcome | type[QureError] | None
    text: str


_POSITIVE = Rule(None, "answered")
_UNEXPECTED = Rule(QureTransientError, "the service is not documented to answer so; a proxy may have.")

RULES_OF_EVERY_STEP: Mapping[int, Rule] = {
    304: _UNEXPECTED,
    401: Rule(
        QureSettingsError,
        "the token is missing, wrong or withdrawn. Enter the token that Qure issued as the connection's password.",
    ),
    402: Rule(QureSettingsError, "the account has no valid license. Ask Qure to renew it."),
    407: Rule(QureSettingsError, "a proxy wants credentials. Put them into the addresses in the connection's proxies."),
    408: Rule(QureTransientError, "the service gave up waiting for the request."),
    425: Rule(QureTransientError, "the service was not ready for the request."),
    429: Rule(QureTransientError, "too many requests. If it goes on, lower the connection's requests_per_second."),
}
"""What a status says wherever the step's own rules do not speak of it."""

_SOURCE = Rule(
    QureSettingsError,
    "access denied: the Source is missing or wrong. Enter the Source that Qure issued as the connection's source.",
)
_NO_SUCH_PATH = Rule(
    QureSettingsError, "there is no such path at this host. Check the connection's base URL; Qure issued it."
)

_RESULTS = {
    200: _POSITIVE,
    202: Rule(Outcome.PENDING, "still being processed"),
    206: Rule(Outcome.INVALID, "the service judged the scan invalid"),
    400: Rule(Outcome.UNSUPPORTED, "no product of the account handles this scan"),
    403: _SOURCE,
    404: Rule(Outcome.NOT_UPLOADED, "the service holds no such image or series"),
    405: _NO_SUCH_PATH,
    409: Rule(Outcome.NOT_COMPUTED, "the series was never sent to compute"),
}

_FRESH_URL = Rule(
    QureTransientError,
    "the file's address is no longer good or not good yet. Ask for the result again for fresh addresses.",
)

RULES: Mapping[Step, Mapping[int, Rule]] = {
    Step.UPLOAD: {
        200: _POSITIVE,
        400: Rule(
            QureRejectedError,
            "the service found no DICOM file in the request, or no product for it. If it says so of every series, "
            "try the connection's other upload_dialect.",
        ),
        403: _SOURCE,
        404: _NO_SUCH_PATH,
        405: _NO_SUCH_PATH,
        413: Rule(
            QureRejectedError,
            "the request is larger than the service or a proxy takes. Lower the connection's max_request_bytes.",
        ),
        415: Rule(
            QureSettingsError,
            "the service does not take this kind of multipart. Try the connection's other upload_dialect.",
        ),
    },
    Step.COMPUTE: {
        200: _POSITIVE,
        304: _POSITIVE,
        403: _SOURCE,
        404: Rule(Outcome.NOT_UPLOADED, "the service does not hold the series yet"),
        405: _NO_SUCH_PATH,
    },
    Step.RESULTS: _RESULTS,
    Step.RESULTS_V2: _RESULTS
    | {403: Rule(Outcome.DENIED, "the image is not in the workspace of the Source, or the Source is wrong")},
    Step.DOWNLOAD: {200: _POSITIVE} | dict.fromkeys((301, 302, 303, 307, 308, 400, 401, 403, 404, 410), _FRESH_URL),
}
"""What a status says on one step: what the vendor documents, and what stores and proxies are known to send."""

_BY_HUNDRED: Mapping[int, Rule] = {
    3: Rule(
        QureSettingsError,
        "sent elsewhere, to a login page perhaps. Check the connection's base URL (https, host, path) and its token.",
    ),
    4: Rule(QureRejectedError, "the request was refused, and would be again."),
    5: Rule(QureTransientError, "the service, or a proxy before it, failed."),
}


def rule_for(step: Step, status: int) -> Rule:
    """Look up what a status says on a step.

    A refused download is put down to the file's address, which is pre-signed and expires (documentation.qure.ai,
    Fetching Results), not to the token: if the token is at fault too, asking for the result again says so.

    Args:
        step: What was being done.
        status: The HTTP status.

    Returns:
        The rule; a status that is not documented for the step has one too, and never a positive one.
    """
    return RULES[step].get(status) or RULES_OF_EVERY_STEP.get(status) or _BY_HUNDRED.get(status // 100, _UNEXPECTED)


def error_for_status(step: Step, status: int, retry_after: str | None = None) -> QureError | None:
    """Give the error that a status is on a step.

    Args:
        step: What was being done.
        status: The HTTP status.
        retry_after: The answer's ``Retry-After`` header.

    Returns:
        One of the three kinds, to be raised; None where the status is no error.
    """
    rule = rule_for(step, status)
    if rule.verdict is None or isinstance(rule.verdict, Outcome):
        return None
    message = _message(step, status, rule)
    if issubclass(rule.verdict, QureTransientError):
        return rule.verdict(message, retry_after=parse_retry_after(retry_after))
    return rule.verdict(message)


def token_error(step: Step, status: int) -> QureSettingsError:
    """Give the error for an answer whose body says that the token is at fault, whatever its status.

    Args:
        step: What was being done.
        status: The HTTP status.

    Returns:
        The error, to be raised.
    """
    return QureSettingsError(_message(step, status, RULES_OF_EVERY_STEP[401]))


def _message(step: Step, status: int, rule: Rule) -> str:
    return f"The {step} request was answered with {status}: {rule.text}"


def transient_error(step: Step, exception_class_name: str) -> QureTransientError:
    """Put into words that no whole answer came.

    Args:
        step: What was being done.
        exception_class_name: Name of the network library's exception; never its text, which may hold a URL.

    Returns:
        The error, to be raised.
    """
    return QureTransientError(
        f"The {step} request got no whole answer ({exception_class_name}): the service, the network or a proxy broke "
        "off or stayed silent."
    )


_SECONDS = re.compile(r"-?[0-9]{1,30}(?:\.[0-9]{1,30})?")


def parse_retry_after(text: str | None, *, now: float | None = None) -> float | None:
    """Read a ``Retry-After`` header (RFC 9110, 10.2.3), which the vendor documents nowhere but a proxy may send.

    Args:
        text: The header: seconds, or an HTTP date.
        now: Seconds since the epoch; the clock's where None.

    Returns:
        Seconds from now, from 0 to ``MAX_RETRY_AFTER``; None where absent or not understood.
    """
    if text is None:
        return None
    text = text.strip()
    if _SECONDS.fullmatch(text):
        seconds = float(text)
    else:
        try:
            moment = parsedate_to_datetime(text)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            seconds = moment.timestamp() - (time.time() if now is None else now)
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)
