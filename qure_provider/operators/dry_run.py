"""Showing what would leave the hospital, or reach its systems, without sending anything."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qure_provider.hooks.outgoing import OutgoingFile
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


def show_upload(work: BatchWork, files: Mapping[int, Iterable[OutgoingFile]]) -> str:
    """Write what would be sent for each resource: how many files and bytes, and the tags of the first one's header.

    Args:
        work: The open batch.
        files: By resource.

    Returns:
        Where it was written, relative to the store's root.
    """
    refs = {row.id: row for row in work.rows()}
    lines = []
    for resource_id, group in files.items():
        outgoing = list(group)
        row = refs[resource_id]
        lines.append(
            {
                "study_instance_uid": row.identity.study_instance_uid,
                "resource": row.uid,
                "route": row.route.value,
                "files": len(outgoing),
                "bytes": sum(file.size for file in outgoing),
                "tags": _tags(outgoing[0]) if outgoing else [],
            }
        )
    path = f"{work.run.folder}/dry_run/upload-{work.batch_id}.jsonl"
    work.store.write_text(path, "".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def _tags(file: OutgoingFile) -> list[dict[str, Any]]:
    import pydicom

    with file.open() as stream:
        header = pydicom.dcmread(stream, stop_before_pixels=True)
    return [{"tag": str(element.tag), "keyword": element.keyword, "action": "sent as it is"} for element in header]
