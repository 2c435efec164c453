"""Bringing a result's files into the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qure_provider.api.errors import QureRejectedError, QureTransientError
from qure_provider.api.model import digest_of
from qure_provider.hooks.media import Media
from qure_provider.operators.returning import Returned, return_answer, return_files
from qure_provider.reports.result import Asset, HeldFile, Result

if TYPE_CHECKING:
    from qure_provider.api.model import ResourceRef, ResultAnswer
    from qure_provider.dicom.pseudonym import IdentityMap
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
    way_back: IdentityMap | None = None,
) -> Result:
    """Download the files of a ready result that the store does not hold yet, then write ``result.json``.

    Where ``result.json`` is, all that it names is there. Files of an earlier look are kept only where the service says
    the same as then and offers as many of their kind; else they may be of another answer, and all are fetched anew. An
    expired URL is answered by asking for the result again. What was de-identified is put back before the store sees it;
    a file that cannot be is held, beside the others.

    Args:
        hook: The Qure hook.
        store: The store.
        ref: What the result was asked by.
        answer: A ready answer, with its URLs, as it came.
        folder: Where it shall lie, relative to the store's root.
        revision: Which sending of the resource it answers.
        study_instance_uid: The study, where known.
        series_instance_uid: The series, where known.
        way_back: What was sent, and what it stands for; None where it was sent as it is.

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
    told = answer if way_back is None else return_answer(answer, way_back)
    listed = _listed(store, folder)
    known, known_held = _known(listed, told) if listed and _says(store, folder, told) else ({}, {})
    before = _names(listed) if listed else set()
    names = {*_OURS, *(Path(name).name.rsplit(".", 1)[0] for name in before)}
    assets: dict[tuple[str, int], Asset] = {}
    held: list[HeldFile] = []
    current = answer
    with store.scratch() as scratch:
        fetched: dict[tuple[str, int], tuple[Asset, Path]] = {}
        for kind, count in answer.file_counts.items():
            for position in range(count):
                place = kind, position
                if place in known_held:
                    held.append(known_held[place])
                elif place in known:
                    assets[place] = known[place]
                else:
                    target = scratch / _free_name(kind, names)
                    current, local, asset = _download(hook, ref, current, kind, position, target)
                    fetched[place] = asset, local
        returned = _returned(store, folder, scratch, fetched, known.values(), way_back)
        for (kind, position), item in returned.items():
            if item.held is None:
                store.put(item.path, f"{folder}/{item.asset.name}")
                assets[kind, position] = item.asset
            else:
                held.append(HeldFile(kind, position, f"held/{item.asset.name}", str(item.held)))
                store.put(item.path, f"{folder}/{held[-1].name}")
    result = Result.of(
        told,
        tuple(assets[place] for place in _places(answer) if place in assets),
        uid=ref.own_uid,
        route=ref.route,
        revision=revision,
        study_instance_uid=study_instance_uid,
        series_instance_uid=series_instance_uid,
        held=tuple(held),
    )
    store.write_json(f"{folder}/result.json", result.to_json())
    store.write_json(f"{folder}/answer.json", told.content)  # last: until then the files count as another answer's
    for name in before - _names(result):
        store.remove(f"{folder}/{name}")
    return result


def _places(answer: ResultAnswer) -> Iterator[tuple[str, int]]:
    for kind, count in answer.file_counts.items():
        for position in range(count):
            yield kind, position


def _returned(
    store: Store,
    folder: str,
    scratch: Path,
    fetched: Mapping[tuple[str, int], tuple[Asset, Path]],
    known: Iterable[Asset],
    way_back: IdentityMap | None,
) -> dict[tuple[str, int], Returned]:
    """Put what was fetched back to whom it is about, where it was de-identified."""
    if way_back is None:
        return {place: Returned(path, asset) for place, (asset, path) in fetched.items()}
    copies = scratch / "returned"
    copies.mkdir()
    before = []
    for asset in known:
        if fetched and asset.media == Media.DICOM.value:
            before.append(scratch / f"known-{asset.name}")
            before[-1].write_bytes(store.path(f"{folder}/{asset.name}").read_bytes())
    return dict(zip(fetched, return_files([*fetched.values()], way_back, copies, before), strict=True))


def _listed(store: Store, folder: str) -> Result | None:
    """Return what an earlier look brought; None where there was none or its listing cannot be read."""
    path = f"{folder}/result.json"
    try:
        return Result.from_json(store.read_json(path)) if store.exists(path) else None
    except ValueError:
        return None


def _says(store: Store, folder: str, answer: ResultAnswer) -> bool:
    """Whether the stored answer says the same."""
    try:
        content = store.read_json(f"{folder}/answer.json")
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(content, dict) and digest_of(content) == answer.digest


def _names(result: Result) -> set[str]:
    return {asset.name for asset in result.assets} | {file.name for file in result.held}


def _known(
    listed: Result, answer: ResultAnswer
) -> tuple[dict[tuple[str, int], Asset], dict[tuple[str, int], HeldFile]]:
    """Return by kind and position what can be kept: of the kinds that have neither gained nor lost a file."""
    counts = Counter(asset.kind for asset in listed.assets) + Counter(file.kind for file in listed.held)
    kept = {kind for kind, count in counts.items() if count == answer.file_counts.get(kind)}
    held = {(file.kind, file.position): file for file in listed.held if file.kind in kept}
    positions: Counter[str] = Counter()
    known = {}
    for asset in listed.assets:
        if asset.kind not in kept:
            continue
        while (asset.kind, positions[asset.kind]) in held:
            positions[asset.kind] += 1
        known[asset.kind, positions[asset.kind]] = asset
        positions[asset.kind] += 1
    return known, held


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
        fresh = hook.result(ref)
        if fresh.digest != answer.digest:
            raise QureTransientError("the result changed while its files were fetched; it is asked for again") from None
        answer = fresh
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
