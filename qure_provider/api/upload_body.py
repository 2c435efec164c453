"""Read the body of an upload's answer: which files, and which series, the service says it took."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from qure_provider.api.model import FileAcknowledgement, UploadAnswer
from qure_provider.api.payload import NotUnderstoodError, plain_text, success_flags
from qure_provider.api.routes import is_uid

_FAILED = frozenset({"error", "fail", "failed", "failure"})
_REFUSAL = re.compile(r"\bnot\b|n't\b|\bunsuccess|\bfail|\berror|\binvalid|\breject|\bdenied")
_SUCCESS = re.compile(r"\bsuccess|\balready\b|\bregistered\b|\bexists\b")
_DIGITS = re.compile(r"[0-9]{1,9}")


def read_upload(payload: dict[str, Any]) -> UploadAnswer:
    """Read the body of a 200.

    A file counts as accepted where the service flags it ``created`` or says that it is registered. What
    ``created: false`` means is not stated anywhere: beside a message of success it is taken as "known before". Whether
    the keys of ``messages`` are the form's is not stated either: they are given as sent.

    Args:
        payload: The JSON object.

    Returns:
        What was acknowledged. A file without an entry was not.

    Raises:
        NotUnderstoodError: If it is of no known shape, or says itself that it failed.
    """
    messages = payload.get("messages")
    uids = payload.get("series_instance_uids")
    if _says_failed(payload):
        raise NotUnderstoodError("says that it failed")
    if not isinstance(messages, dict | None) or not (isinstance(messages, dict) or isinstance(uids, list)):
        raise NotUnderstoodError("no acknowledgement in it")
    return UploadAnswer(
        files={key: _acknowledgement(key, entry) for key, entry in (messages or {}).items()},
        series_instance_uids=tuple(uid for uid in _listed(uids) if isinstance(uid, str) and is_uid(uid)),
        series_counts=_series_counts(_listed(payload.get("detailed_info"))),
    )


def _says_failed(payload: dict[str, Any]) -> bool:
    status = payload.get("status")
    if isinstance(status, str) and status.strip().lower() in _FAILED:
        return True
    return any(flag is False for flag in success_flags(payload))


def _acknowledgement(key: str, entry: Any) -> FileAcknowledgement:
    fields = entry if isinstance(entry, dict) else {"message": entry}
    created = fields.get("created")
    message = fields.get("message")
    remark = _read_remark(message if isinstance(message, str) else "")
    return FileAcknowledgement(
        key=key,
        accepted=not remark.refuses and (created is True or remark.confirms),
        created=created if isinstance(created, bool) else None,
        license_expired=fields.get("license_expired") is True,
        message=remark.plain,
    )


@dataclass(frozen=True, slots=True)
class _Remark:
    refuses: bool
    confirms: bool
    plain: str


@lru_cache(maxsize=64)  # one answer says the same of thousands of files
def _read_remark(message: str) -> _Remark:
    text = message.lower()
    return _Remark(_REFUSAL.search(text) is not None, _SUCCESS.search(text) is not None, plain_text(message))


def _series_counts(details: list[Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for detail in details:
        if not isinstance(detail, dict):
            continue
        uid = detail.get("SeriesInstanceUID")
        count = _count(detail.get("NumberOfSeriesRelatedInstances"))
        if isinstance(uid, str) and is_uid(uid) and count is not None:
            # Of two counts of one series the smaller is believed: what is not acknowledged is sent again.
            counts[uid] = min(count, counts.get(uid, count))
    return counts


def _count(value: Any) -> int | None:
    if isinstance(value, str):
        return int(value) if _DIGITS.fullmatch(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
        return None
    return int(value)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
