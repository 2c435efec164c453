"""Putting a result back to whom it is about, as it comes from the service and before anything else sees it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qure_provider.api.errors import QureRejectedError
from qure_provider.api.model import Report, ResultAnswer
from qure_provider.dicom.objects import UnreadableError, read_object, text
from qure_provider.dicom.pseudonym import IdentityMap
from qure_provider.dicom.quiet import quiet_pydicom
from qure_provider.dicom.reidentify import DICOM, check_reidentified, reidentify_file
from qure_provider.dicom.traces import Held, HeldError, Tracker
from qure_provider.dicom.verify import compare, identity_of
from qure_provider.reports.result import Asset

_CONTRADICTS = frozenset({Held.UNREADABLE, Held.IDENTITY, Held.DANGLING})
"""What a delivery's own check of objects finds as well: it then holds the whole result, not this file alone."""


@dataclass(frozen=True, slots=True)
class Returned:
    """A file of a result.

    Attributes:
        path: Where it lies, about the patient again; or as it came, where it is held.
        asset: What it is.
        held: Why it is not handed on; None where it is.
    """

    path: Path
    asset: Asset
    held: Held | None = None


def return_answer(answer: ResultAnswer, way_back: IdentityMap) -> ResultAnswer:
    """Put back what an answer's texts say of what was sent.

    Args:
        answer: As it came.
        way_back: What was sent, and what it stands for.

    Returns:
        The answer about the patient; its URLs are as they were.

    Raises:
        QureRejectedError: If a text cannot be put back.
    """
    tracker = Tracker(way_back)
    report = answer.report
    try:
        return replace(
            answer,
            report=Report(
                impression=tracker.replace(report.impression),
                findings=tracker.replace(report.findings),
                findings_list=tuple((key, tracker.replace(words)) for key, words in report.findings_list),
                lines=tuple(tracker.replace(line) for line in report.lines),
            ),
            content=_returned(answer.content, tracker),
        )
    except HeldError as error:
        raise QureRejectedError(f"the report's text cannot be put back to whom it is about: {error}") from None


def return_files(
    fetched: Sequence[tuple[Asset, Path]], way_back: IdentityMap, folder: Path, known: Iterable[Path] = ()
) -> list[Returned]:
    """Put a result's files back, and check that nothing of what was sent is left in them.

    Args:
        fetched: What came.
        way_back: What was sent, and what it stands for.
        folder: An empty local folder for the copies.
        known: Objects of the same result that were put back before; others may refer to them.

    Returns:
        The files, in their order.

    Raises:
        QureRejectedError: If a file that cannot be put back is of another patient or study than what was sent.
        OSError: If one cannot be read, or a copy not written.
    """
    returned = [_return_file(asset, path, folder / path.name, way_back) for asset, path in fetched]
    own = _instances([*known, *(item.path for item in returned if _is_object(item))])
    return [_checked(item, came, way_back, own) for item, (_, came) in zip(returned, fetched, strict=True)]


def _return_file(asset: Asset, path: Path, target: Path, way_back: IdentityMap) -> Returned:
    try:
        done = reidentify_file(path, target, asset.media, way_back)
    except HeldError as error:
        return _held(asset, path, error.reason, way_back)
    return Returned(done.path, replace(asset, size=done.path.stat().st_size, sha256=_sha256(done.path)))


def _checked(item: Returned, came: Path, way_back: IdentityMap, own: Collection[str]) -> Returned:
    if item.held is not None or item.path == came:
        return item
    reason = check_reidentified(item.path, item.asset.media, way_back, own)
    if reason is None or (item.asset.media == DICOM and reason in _CONTRADICTS):
        return item
    return _held(item.asset, came, reason, way_back)


def _held(asset: Asset, path: Path, reason: Held, way_back: IdentityMap) -> Returned:
    if asset.media != DICOM:
        return Returned(path, asset, reason)
    if reason in _CONTRADICTS:
        return Returned(path, asset)
    with quiet_pydicom():
        try:
            contradiction = compare(identity_of(read_object(path)), way_back.pseudonym)
        except UnreadableError:
            return Returned(path, asset)
    if contradiction:
        raise QureRejectedError(f"{contradiction} than what was sent, and it cannot be put back")
    return Returned(path, asset, reason)


def _instances(paths: Iterable[Path]) -> set[str]:
    found = set()
    with quiet_pydicom():
        for path in paths:
            try:
                found.add(text(read_object(path), "SOPInstanceUID"))
            except UnreadableError:
                continue
    return found


def _is_object(item: Returned) -> bool:
    return item.asset.media == DICOM and item.held is None


def _returned(value: Any, tracker: Tracker) -> Any:
    if isinstance(value, str):
        return tracker.replace(value)
    if isinstance(value, dict):
        return {_returned(key, tracker): _returned(each, tracker) for key, each in value.items()}
    if isinstance(value, list):
        return [_returned(each, tracker) for each in value]
    return value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
