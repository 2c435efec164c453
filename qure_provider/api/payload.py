"""Read the JSON of an answer that nobody vouches for, and take out what must not be kept."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 64
"""Deeper nesting than this is no answer of the service."""

URL_REMOVED = "[URL removed]"

_URL_MARKS = ("://", ":\\/\\/", "%3a%2f%2f", "x-amz-", "signature=")
_URL_STARTS = ("//", "www.")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z ,.;:!'()/_-]{1,79}")
_VOCABULARY = """
a all already an anatomy and any are as at available be been being body by can cannot case cases channel chest complete
completed computation compute computed corrupt corrupted could couldn't created ct damaged data decoded denied
determine determined dicom dicoms did do does duplicate empty enough error exceeded exist exists expired fail failed
file files for format found frames from gateway get has have head header if image images implemented in incomplete info
information instance instances internal invalid is it its lateral license limit lung manufacturer matching maximum
metadata minimum missing modality more multiple needed no non not of on only or orientation origin other parse parsed
part pending permitted pixel please position prediction process processed processing product projection qct qer qmsk
queue queued qure qxr radiograph ray read ready register registered rejected report request required resource result
results retry scan scans series server service size skipped slice slices slow source started status store stored study
successfully such supported syntax tag tags than that the there thickness this time timeout to token too transfer type
unable under unexpected unknown unreadable unsupported until upload uploaded usable use used valid validity value view
was were while with workspace wrong x xray yet your
"""
_WORDS = frozenset(_VOCABULARY.split())
"""What remarks about images are made of. Any other word may be somebody's name."""


class NotUnderstoodError(ValueError):
    """The body is no JSON object, or not one that can be read within the limits."""


def decode_object(body: bytes, max_bytes: int) -> dict[str, Any]:
    """Read a body as a JSON object.

    Numbers that JSON does not know (NaN, infinities, also by overflow) become the text they were written as.

    Args:
        body: The body.
        max_bytes: Longer ones are refused unread.

    Returns:
        The object.

    Raises:
        NotUnderstoodError: If it is too long, no JSON, too deeply nested, or no object.
    """
    if len(body) > max_bytes:
        raise NotUnderstoodError("longer than the limit")
    try:
        payload = json.loads(body, parse_constant=str, parse_float=_finite)
    except (ValueError, RecursionError):
        raise NotUnderstoodError("no JSON") from None
    if not isinstance(payload, dict):
        raise NotUnderstoodError("no JSON object")
    return payload


def keepable(payload: dict[str, Any]) -> dict[str, Any]:
    """Copy an answer without what grants access and without what no store takes.

    Every text that looks like a URL is replaced by a mark, wherever it stands, keys included. What stands under a
    ``files`` key is replaced by counts. NUL and lone surrogates become U+FFFD. All else is as sent, which may include
    patient data (the legacy format names the patient).

    Args:
        payload: The answer.

    Returns:
        The copy.

    Raises:
        NotUnderstoodError: If it is nested more than ``MAX_DEPTH`` deep.
    """
    kept: dict[str, Any] = _keepable(payload, 0)
    return kept


def plain_text(value: object) -> str:
    """Let a short remark of the service through, if it is nothing but words.

    Args:
        value: What stands where the service writes its reason.

    Returns:
        The remark, stripped; empty if it is no text, is longer than 80 characters, or holds anything but plain
        punctuation and the words that such remarks are made of: digits may be a UID or a patient's number, and an
        unusual word a name.
    """
    text = value.strip() if isinstance(value, str) else ""
    if not _PLAIN.fullmatch(text) or any(map(_is_url, text.split())):
        return ""
    return text if _WORDS.issuperset(re.findall(r"[a-z']+", text.lower())) else ""


def success_flags(payload: Mapping[str, Any]) -> tuple[Any, ...]:
    """Give what an answer says of its own success.

    Args:
        payload: The answer.

    Returns:
        The values under ``success`` and, as the OpenAPI spells it in places, ``sucess``; empty where neither is there.
    """
    return tuple(payload[key] for key in ("success", "sucess") if key in payload)


def _finite(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else text


def _keepable(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise NotUnderstoodError("nested too deeply")
    if isinstance(value, str):
        return _keepable_text(value)
    if isinstance(value, list):
        return [_keepable(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {
            _keepable_text(key): _counts(item) if key.strip().lower() == "files" else _keepable(item, depth + 1)
            for key, item in value.items()
        }
    return value


def _keepable_text(text: str) -> str:
    text = _UNSTORABLE.sub("\ufffd", text)
    lowered = text.lower()
    if not any(mark in lowered for mark in (*_URL_MARKS, *_URL_STARTS)):
        return text
    return "".join(URL_REMOVED if _is_url(word) else word for word in re.split(r"(\s+)", text))


def _is_url(word: str) -> bool:
    lowered = word.lower()
    return lowered.startswith(_URL_STARTS) or any(mark in lowered for mark in _URL_MARKS)


def _counts(files: Any) -> Any:
    if isinstance(files, dict):
        return {_keepable_text(kind): _count(urls) for kind, urls in files.items()}
    return _count(files)


def _count(urls: Any) -> int:
    if isinstance(urls, list | dict):
        return len(urls)
    return 0 if urls is None else 1
