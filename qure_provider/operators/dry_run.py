"""Showing what would leave the hospital, or reach its systems, without sending anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from qure_provider import settings
from qure_provider.operators.sending import files_of

if TYPE_CHECKING:
    from qure_provider.hooks.outgoing import OutgoingFile
    from qure_provider.ledger.ledger import ResourceRow
    from qure_provider.operators.work import BatchWork


class ShowOnly(StrEnum):
    """What is only shown."""

    NO = ""
    """Nothing: it is done."""
    UPLOAD = "upload"
    """What would leave the hospital; nothing is sent to the service."""
    DELIVER = "deliver"
    """What would reach the hospital's systems: all is done but the sending."""


def show_only_of(value: str | None) -> ShowOnly:
    """Read the argument.

    Raises:
        ValueError: If it is none of the three.
    """
    try:
        return ShowOnly(value or "")
    except ValueError:
        raise ValueError("a dry run takes 'upload', 'deliver', or nothing") from None


def show_upload(work: BatchWork, rows: Iterable[ResourceRow], policy: settings.IdentityPolicy) -> str:
    """Write what would be sent of each resource: how many files and bytes, and what becomes of each tag of the first.

    Args:
        work: The open batch.
        rows: What would be sent.
        policy: Whether it would be de-identified.

    Returns:
        Where it was written, relative to the store's root.
    """
    lines = []
    explain = _as_it_is if policy is settings.IdentityPolicy.IDENTIFIED else _explainer()
    for row in rows:
        outgoing = [file for _, file in files_of(work, row)]
        lines.append(
            {
                "study_instance_uid": row.identity.study_instance_uid,
                "resource": row.uid,
                "route": row.route.value,
                "identity_policy": policy.value,
                "files": len(outgoing),
                "bytes": sum(file.size for file in outgoing),
                "tags": _explained(explain, outgoing[0]) if outgoing else [],
            }
        )
    path = f"{work.run.folder}/dry_run/upload-{work.batch_id}.jsonl"
    work.store.write_text(path, "".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def _explained(explain: Callable[[OutgoingFile], list[dict[str, Any]]], file: OutgoingFile) -> list[dict[str, Any]]:
    from qure_provider.hooks.outgoing import ChangedError

    try:
        return explain(file)
    except (ChangedError, OSError):
        return [_nothing("the file was changed or removed since it was planned")]


def _nothing(why: str) -> dict[str, Any]:
    return {"tag": "", "keyword": "", "action": f"nothing is sent: {why}"}


def _as_it_is(file: OutgoingFile) -> list[dict[str, Any]]:
    import pydicom

    with file.open() as stream:
        header = pydicom.dcmread(stream, stop_before_pixels=True)
    return [{"tag": str(element.tag), "keyword": element.keyword, "action": "sent as it is"} for element in header]


def _explainer() -> Callable[[OutgoingFile], list[dict[str, Any]]]:
    from pydicom.datadict import keyword_for_tag
    from pydicom.tag import Tag

    from qure_provider.dicom.reader import UnfitError
    from qure_provider.dicom.refusal import DeidentifyError
    from qure_provider.hooks.deidentify import DeidentifyHook

    deidentifier = DeidentifyHook(settings.deidentify_conn_id()).get_conn()

    def explain(file: OutgoingFile) -> list[dict[str, Any]]:
        with file.open() as stream:
            try:
                changes = deidentifier.explain(_Opened(stream, file.size))
            except (DeidentifyError, UnfitError) as error:
                return [_nothing(str(error))]
        return [
            {
                "tag": " ".join(str(Tag(tag)) for tag in change.tags),
                "keyword": ".".join(keyword_for_tag(tag) or "(private)" for tag in change.tags),
                "action": change.action.value,
            }
            for change in changes
        ]

    return explain


class _Opened:
    """An open file as de-identification reads it."""

    def __init__(self, stream: Any, size: int) -> None:
        self._stream = stream
        self.size = size
        self.page = 64 * 1024

    def read(self, offset: int, length: int) -> bytes:
        self._stream.seek(offset)
        pieces = []
        while length and (piece := self._stream.read(length)):
            pieces.append(piece)
            length -= len(piece)
        return b"".join(pieces)
