"""Bringing a result's files into the store."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from qure_provider.api.errors import QureRejectedError, QureTransientError
from qure_provider.reports.result import Asset, Result

if TYPE_CHECKING:
    from qure_provider.api.model import ResourceRef, ResultAnswer
    from qure_provider.hooks.qure import QureHook
    from qure_provider.store import Store

_SAFE_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


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
    held = {asset.name: asset for asset in _stored(store, folder)}
    assets: list[Asset] = []
    current = answer
    offered = sum(answer.file_counts.values())
    if offered > hook.connection.max_assets:
        raise QureRejectedError(
            f"the result offers {offered} files, more than the connection's max_assets of {hook.connection.max_assets}"
        )
    with store.scratch() as scratch:
        for kind, position, stem in _wanted(answer):
            known = next((asset for name, asset in held.items() if name.rsplit(".", 1)[0] == stem), None)
            if known:
                assets.append(known)
                continue
            current, local, asset = _download(hook, ref, current, kind, position, scratch / stem)
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


def _stored(store: Store, folder: str) -> tuple[Asset, ...]:
    """Return what an earlier look brought; of a listing that cannot be read, nothing: all is fetched anew."""
    path = f"{folder}/result.json"
    try:
        return Result.from_json(store.read_json(path)).assets if store.exists(path) else ()
    except ValueError:
        return ()


def _wanted(answer: ResultAnswer) -> list[tuple[str, int, str]]:
    """Return kind, position and the name without extension of each file; a kind that is no plain word is ``other``."""
    taken: Counter[str] = Counter()
    wanted = []
    for kind, count in answer.file_counts.items():
        name = kind if _SAFE_KIND.fullmatch(kind) else "other"
        for position in range(count):
            taken[name] += 1
            wanted.append((kind, position, name if taken[name] == 1 else f"{name}-{taken[name]}"))
    return wanted


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
