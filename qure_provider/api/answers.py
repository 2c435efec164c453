"""Turn each answer of the service into what it says: one named outcome, or one error of the three kinds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qure_provider.api.errors import QureTransientError
from qure_provider.api.model import ComputeAnswer, Outcome, ResultAnswer, ResultsVersion, Route, UploadAnswer
from qure_provider.api.payload import NotUnderstoodError, decode_object, keepable, plain_text, success_flags
from qure_provider.api.result_body import read_content, read_result
from qure_provider.api.statuses import Step, error_for_status, parse_retry_after, results_step, rule_for, token_error
from qure_provider.api.upload_body import read_upload

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""A longer answer is not read. An upload's describes every file, and one request may carry thousands."""

_VALIDITY = "validity not determined yet"
_INVALID_SCAN = re.compile(
    r"\binvalid (?:x-?ray|scan|image|study|series|ct)\b|\b(?:x-?ray|scan|image|study|series|ct) (?:is )?invalid\b"
)
_EXPLAINED = frozenset({202, 400})
"""Statuses of a result whose reason the service gives itself: as JSON, or as the text that X-ray v2 sends."""
_MAX_TEXT = 1000
_MEDIA_TYPES = frozenset(
    {"application/json", "application/octet-stream", "application/xml", "text/html", "text/plain", "text/xml"}
)


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """What came over the wire.

    Attributes:
        status: The HTTP status.
        content_type: The header's value; empty where absent. Used in wording only: the body is what it is.
        body: The whole body, left out of ``repr``.
        retry_after: The ``Retry-After`` header.
    """

    status: int
    content_type: str
    body: bytes = field(repr=False)
    retry_after: str | None = None


def parse_upload(answer: RawAnswer, *, max_bytes: int = MAX_ANSWER_BYTES) -> UploadAnswer:
    """Read the answer to an upload (OpenAPI, upload; documentation.qure.ai, Uploading the Dicoms).

    Args:
        answer: What came.
        max_bytes: Longer bodies are not read.

    Returns:
        What was acknowledged. A file without an entry was not.

    Raises:
        QureSettingsError: Token, Source, base URL or dialect are wrong.
        QureTransientError: Try later; also where a 200 is not understood or says that it failed.
        QureRejectedError: The request would be refused again.
    """
    payload = _open(Step.UPLOAD, answer, max_bytes)
    try:
        return read_upload(_required(payload))
    except NotUnderstoodError:
        raise _not_understood(Step.UPLOAD, answer) from None


def parse_compute(answer: RawAnswer, *, max_bytes: int = MAX_ANSWER_BYTES) -> ComputeAnswer:
    """Read the answer to a compute request (docs.qure.ai, Initiate Computation).

    Args:
        answer: What came. A 304 is documented with a body and comes without one by HTTP's rules: it needs none.
        max_bytes: Longer bodies are not read.

    Returns:
        Whether it was queued now, had been before (a 200 that words it so counts too), or is not uploaded (yet).

    Raises:
        QureSettingsError: Token, Source or base URL are wrong.
        QureTransientError: Try later; also where a 200 does not say that it succeeded.
        QureRejectedError: The request would be refused again.
    """
    payload = _open(Step.COMPUTE, answer, max_bytes) or {}
    if rule_for(Step.COMPUTE, answer.status).verdict is Outcome.NOT_UPLOADED:
        return ComputeAnswer(not_uploaded=True)
    if answer.status == 304:
        return ComputeAnswer(already_queued=True)
    flags = success_flags(payload)
    if not flags or any(flag is not True for flag in flags):
        raise _not_understood(Step.COMPUTE, answer)
    message = payload.get("message")
    is_known = isinstance(message, str) and "already" in message.lower()
    return ComputeAnswer(queued=not is_known, already_queued=is_known)


def parse_result(
    answer: RawAnswer, route: Route, version: ResultsVersion, *, max_bytes: int = MAX_ANSWER_BYTES
) -> ResultAnswer:
    """Read the answer to a request for a result (OpenAPI, results and results v2; docs.qure.ai, Data Format Changes).

    Only a 200 whose body has the shape of a result is ``READY``; whether it names all of its files already is not
    stated anywhere.

    Args:
        answer: What came.
        route: Of the resource that was asked for.
        version: Which results endpoint answers for X-rays; CT has but one.
        max_bytes: Longer bodies are not read.

    Returns:
        The outcome with all that the answer says.

    Raises:
        QureSettingsError: Token, Source or base URL are wrong.
        QureTransientError: Try later; also where the answer is not understood.
        QureRejectedError: The request would be refused again.
    """
    step = results_step(route, version)
    payload = _open(step, answer, max_bytes)
    rule = rule_for(step, answer.status)
    try:
        if not isinstance(rule.verdict, Outcome):
            return read_result(_required(payload), route, version)
        if rule.verdict in (Outcome.INVALID, Outcome.UNSUPPORTED) and _is_markup(answer.body):
            raise NotUnderstoodError("a page, which the service never sends")
        if rule.verdict is Outcome.INVALID:
            content = read_content(payload)[0] if payload else ResultAnswer(rule.verdict)
            return replace(content, outcome=rule.verdict, reason=rule.text)
        kept = keepable(payload) if payload else {}
    except NotUnderstoodError:
        raise _not_understood(step, answer) from None

    reasons = _reasons(answer, kept)
    outcome: Outcome = rule.verdict
    reason, stage = rule.text, ""
    if answer.status in _EXPLAINED:
        reason = next((text for text in map(plain_text, reasons) if text), rule.text)
    if outcome is Outcome.UNSUPPORTED:
        texts = [text.strip().lower() for text in (*reasons, kept.get("message")) if isinstance(text, str)]
        if step is Step.RESULTS and any(text.rstrip("!. ") == _VALIDITY for text in texts):
            outcome, stage = Outcome.PENDING, "validity"
        elif any(_INVALID_SCAN.search(text) for text in texts):
            outcome = Outcome.INVALID
    return ResultAnswer(
        outcome,
        reason=reason,
        content=kept,
        retry_after=None if outcome.is_final else parse_retry_after(answer.retry_after),
        stage=stage,
    )


def _open(step: Step, answer: RawAnswer, max_bytes: int) -> dict[str, Any] | None:
    try:
        payload = decode_object(answer.body, max_bytes)
    except NotUnderstoodError:
        payload = None
    # The OpenAPI's examples of 400 and 401 are swapped for the upload: this key tells, whatever the status.
    if payload and payload.get("authenticated") is False:
        raise token_error(step, answer.status)
    if error := error_for_status(step, answer.status, answer.retry_after):
        raise error
    if len(answer.body) > max_bytes:
        raise _not_understood(step, answer)
    return payload


def _required(payload: dict[str, Any] | None) -> dict[str, Any]:
    if payload is None:
        raise NotUnderstoodError("no JSON object")
    return payload


def _not_understood(step: Step, answer: RawAnswer) -> QureTransientError:
    media_type = answer.content_type.partition(";")[0].strip().lower()
    described = media_type if media_type in _MEDIA_TYPES else "another media type"
    return QureTransientError(
        f"The answer to the {step} request is not understood (status {answer.status}, {described}, {len(answer.body)} "
        "bytes): a proxy or a login page may have sent it, or the service changed. If it goes on, check the "
        "connection's base URL.",
        retry_after=parse_retry_after(answer.retry_after),
    )


def _is_markup(body: bytes) -> bool:
    return body[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def _reasons(answer: RawAnswer, kept: Mapping[str, Any]) -> list[str]:
    if not kept:
        return [answer.body[:_MAX_TEXT].decode("utf-8", errors="replace")]
    debug_info = kept.get("debug_info")
    reasons = (kept.get("reason"), debug_info.get("reason") if isinstance(debug_info, dict) else None)
    return [reason for reason in reasons if isinstance(reason, str)]
