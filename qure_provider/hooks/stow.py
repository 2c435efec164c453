"""Store requests over DICOMweb (PS3.18, 10.5), as data: what goes out, and what the answer says of each object."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from qure_provider.hooks.multipart import PartsBody
from qure_provider.hooks.outgoing import OutgoingFile
from qure_provider.hooks.storing import OutgoingObject, StoreKind, StoreStatus, meaning

_STORED = "00081199"
_FAILED = "00081198"
_INSTANCE = "00081155"
_WARNING_REASON = "00081196"
_FAILURE_REASON = "00081197"
_ALREADY_THERE = 0x0111


def store_body(files: Sequence[OutgoingFile], before_block: Callable[[], None] = lambda: None) -> PartsBody:
    """Wrap files into one request.

    Args:
        files: What is sent.
        before_block: Called before each block is handed out.

    Returns:
        The body; it can be gone through again, from the start.
    """
    content_type = 'multipart/related; type="application/dicom"; boundary={}'
    return PartsBody(files, content_type, lambda _: b"Content-Type: application/dicom\r\n\r\n", before_block)


def part_size(file: OutgoingFile) -> int:
    """Tell how many bytes of a request a file takes."""
    return len(store_body([file])) - len(store_body([]))


def read_answer(body: bytes, sent: Sequence[OutgoingObject]) -> tuple[StoreStatus, ...] | None:
    """Read what became of each object.

    Args:
        body: Of an answer 200, 202 or 409.
        sent: What it is about.

    Returns:
        One status for each object, in their order. One that the answer does not mention is in doubt, and so is one that
        it contradicts itself about. None where the body is no store response at all.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    datasets = [each for each in (content if isinstance(content, list) else [content]) if isinstance(each, dict)]
    if not any(_STORED in each or _FAILED in each for each in datasets):
        return None
    said: dict[str, list[tuple[StoreKind, str, int | None]]] = {}
    for dataset in datasets:
        for item in _items(dataset, _STORED):
            said.setdefault(_text(item, _INSTANCE), []).append(_stored(_number(item, _WARNING_REASON)))
        for item in _items(dataset, _FAILED):
            said.setdefault(_text(item, _INSTANCE), []).append(_failed(_number(item, _FAILURE_REASON)))
    return tuple(_status(each, said.get(each.sop_instance_uid, [])) for each in sent)


def _status(sent: OutgoingObject, said: Sequence[tuple[StoreKind, str, int | None]]) -> StoreStatus:
    if not said:
        return StoreStatus(sent.sop_instance_uid, StoreKind.IN_DOUBT, None, "the archive's answer does not mention it")
    if len({kind for kind, _, _ in said}) > 1:
        return StoreStatus(
            sent.sop_instance_uid, StoreKind.IN_DOUBT, None, "the archive's answer says two things about it"
        )
    kind, reason, status = said[0]
    return StoreStatus(sent.sop_instance_uid, kind, status, reason)


def _stored(warning: int | None) -> tuple[StoreKind, str, int | None]:
    if not warning:
        return StoreKind.STORED, "", 0
    kind, reason = meaning(warning)
    return (kind if kind is StoreKind.WARNING else StoreKind.IN_DOUBT), reason, warning


def _failed(failure: int | None) -> tuple[StoreKind, str, int | None]:
    if failure is None:
        return StoreKind.UNAVAILABLE, "the archive did not store it and does not say why", None
    kind, reason = meaning(failure)
    # Archives have their own codes among the warnings for "already there" and "just being stored".
    is_contradiction = kind in (StoreKind.STORED, StoreKind.WARNING) and failure != _ALREADY_THERE
    return (StoreKind.IN_DOUBT if is_contradiction else kind), reason or "a failure without a code", failure


def _items(dataset: Mapping[str, Any], tag: str) -> Iterator[Mapping[str, Any]]:
    for item in _values(dataset, tag):
        if isinstance(item, dict):
            yield item


def _values(dataset: Mapping[str, Any], tag: str) -> list[Any]:
    element = dataset.get(tag)
    value = element.get("Value") if isinstance(element, dict) else None
    return value if isinstance(value, list) else []


def _text(dataset: Mapping[str, Any], tag: str) -> str:
    return next((str(value).strip(" \0") for value in _values(dataset, tag)), "")


def _number(dataset: Mapping[str, Any], tag: str) -> int | None:
    try:
        return next((int(value) for value in _values(dataset, tag)), None)
    except (TypeError, ValueError):
        return None
