"""Bringing a result's files into the store."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from qure_provider.api.errors import QureRejectedError, QureTransientError
from qure_provider.reports.result import Asset, Result

if TYPE_CHECKING:
    from qure_provider.api.model import ResourceRef, ResultAnswer
    from qure_provider.hooks.qure import QureHook
    from qure_provider.store import Store

_OURS = ("answer", "result")
"""What this folder holds of our own."""


def fetch_result(
    hook: QureHook,
    store: Store,
    ref: ResourceRef,
    answer: ResultAnswer,
    folder: str,
    *,
    revision: int = 1,
    study_instance_uid: str = "",
    series_instance_uid: str = "",
) -> Result:
    """Download the files of a ready result that the store does not hold yet, then write ``result.json``.

    ``result.json`` is written last: where it is, all that it names is there. A late file is an addition. An expired URL
    is answered by asking for the result again.

    Args:
        hook: The Qure hook.
        store: The store.
        ref: What the result was asked by.
        answer: A ready answer, with its URLs.
        folder: Where it shall lie, relative to the store's root.
        revision: Which sending of the resource it answers.
        study_instance_uid: The study, where known.
        series_instance_uid: The series, where known.

    Returns:
        The result as stored.

    Raises:
        QureError: If a file could not be downloaded; ``result.json`` is then as it was before.
    """
    offered = sum(answer.file_counts.values())
    if offered > hook.connection.max_assets:
        raise QureRejectedError(
            f"the result offers {offered} files, more than the connection's max_assets of {hook.connection.max_assets}"
        )
    held = _held(store, folder)
    names = {*_OURS, *(asset.name.rsplit(".", 1)[0] for asset in held.values())}
    assets: list[Asset] = []
    current = answer
    with store.scratch() as scratch:
        for kind, count in answer.file_counts.items():
            for position in range(count):
                if known := held.get((kind, position)):
                    assets.append(known)
                    continue
                target = scratch / _free_name(kind, names)
                current, local, asset = _download(hook, ref, current, kind, position, target)
                store.put(local, f"{folder}/{asset.name}")
                assets.append(asset)
    result = Result.of(
        answer,
        tuple(assets),
        uid=ref.uid,
        route=ref.route,
        revision=revision,
        study_instance_uid=study_instance_uid,
        series_instance_uid=series_instance_uid,
    )
    store.write_json(f"{folder}/answer.json", answer.content)
    store.write_json(f"{folder}/result.json", result.to_json())
    return result


def _held(store: Store, folder: str) -> dict[tuple[str, int], Asset]:
    """Return what an earlier look brought, by kind and position; nothing where its listing cannot be read."""
    path = f"{folder}/result.json"
    try:
        assets = Result.from_json(store.read_json(path)).assets if store.exists(path) else ()
    except ValueError:
        return {}
    positions: Counter[str] = Counter()
    held = {}
    for asset in assets:
        held[asset.kind, positions[asset.kind]] = asset
        positions[asset.kind] += 1
    return held


def _free_name(kind: str, taken: set[str]) -> str:
    """Return a file name without extension that nothing else in the folder has, and take it."""
    name, number = kind, 1
    while name in taken:
        number += 1
        name = f"{kind}-{number}"
    taken.add(name)
    return name


def _download(
    hook: QureHook, ref: ResourceRef, answer: ResultAnswer, kind: str, position: int, target: Path
) -> tuple[ResultAnswer, Path, Asset]:
    """Download one file; return the newest answer (its URLs may be fresher), where it lies, and what it is."""
    from qure_provider.hooks.download import ExpiredUrlError

    try:
        downloaded = hook.download(_url(answer, kind, position), target)
    except ExpiredUrlError:
        answer = hook.result(ref)
        downloaded = hook.download(_url(answer, kind, position), target)
    return (
        answer,
        downloaded.path,
        Asset(
            kind=kind,
            name=downloaded.path.name,
            media=downloaded.media.value,
            size=downloaded.size,
            sha256=downloaded.sha256,
        ),
    )


def _url(answer: ResultAnswer, kind: str, position: int) -> str:
    urls = answer.files.get(kind, ())
    if position >= len(urls):
        raise QureTransientError("the result lost files that it had before; it is asked for again")
    return urls[position]
