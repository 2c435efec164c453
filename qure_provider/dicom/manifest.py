"""A batch as JSON: what its manifest file holds, and back.

The text of names and paths is kept as it is, bytes that are no valid text included; write it with :func:`json.dumps`
and its default ``ensure_ascii=True``, which any file encoding carries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from qure_provider.api.model import Route
from qure_provider.dicom.model import Batch, Identity, Instance, SelectedSeries, Series

VERSION = 1
"""The manifest's schema; it grows by one with every change that an older reader would misread."""

_IDENTITY = tuple(field.name for field in fields(Identity))
_INSTANCE = tuple(field.name for field in fields(Instance))
_SERIES = tuple(field.name for field in fields(Series) if field.name not in {"identity", "instances"})
_SHARED = tuple(_INSTANCE.index(name) for name in ("sop_class_uid", "transfer_syntax_uid"))


class ManifestError(ValueError):
    """A manifest that this version cannot read. The message says what to do and holds no value of it."""


def dump_batch(batch: Batch) -> dict[str, Any]:
    """Gives a batch as plain JSON values.

    Args:
        batch: What to keep.

    Returns:
        A mapping with ``version``, ``route``, ``instance_columns``, ``shared`` (strings that many instances have in
        common) and ``series``; instances are rows in the order of the columns, with indexes into ``shared``.
    """
    shared: dict[str, int] = {}

    def row(instance: Instance) -> list[Any]:
        values = [getattr(instance, name) for name in _INSTANCE]
        for place in _SHARED:
            values[place] = shared.setdefault(values[place], len(shared))
        return values

    series = [
        {
            "reason": selected.reason,
            "identity": {name: getattr(selected.series.identity, name) for name in _IDENTITY},
            **{name: _plain(getattr(selected.series, name)) for name in _SERIES},
            "instances": [row(instance) for instance in selected.series.instances],
        }
        for selected in batch.series
    ]
    return {
        "version": VERSION,
        "route": batch.route.value,
        "instance_columns": list(_INSTANCE),
        "shared": list(shared),
        "series": series,
    }


def load_batch(content: Mapping[str, Any]) -> Batch:
    """Gives back what :func:`dump_batch` made.

    Args:
        content: The manifest's JSON, parsed.

    Returns:
        A batch equal to the one that was dumped.

    Raises:
        ManifestError: If it is no manifest, of another version, or damaged.
    """
    version = content.get("version") if isinstance(content, Mapping) else None
    if type(version) is not int:
        msg = "this is no batch manifest: it has no version; plan the export again"
        raise ManifestError(msg)
    if version != VERSION:
        advice = "upgrade airflow-provider-qure on this worker" if version > VERSION else "plan the export again"
        msg = f"the batch manifest has version {version}, this program reads version {VERSION}: {advice}"
        raise ManifestError(msg)
    try:
        return _batch(content)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        msg = "the batch manifest is damaged: plan the export again"
        raise ManifestError(msg) from None


def _batch(content: Mapping[str, Any]) -> Batch:
    if content["instance_columns"] != list(_INSTANCE):
        raise ValueError("other columns")
    route, shared = Route(content["route"]), _strings(content["shared"])
    return Batch(route, tuple(_selected(each, route, shared) for each in content["series"]))


def _selected(content: Mapping[str, Any], route: Route, shared: tuple[str, ...]) -> SelectedSeries:
    values = {name: content[name] for name in _SERIES}
    for name, value in values.items():
        _check(name, value)
    for name in ("image_type", "warnings"):
        values[name] = tuple(values[name])
    if values["extent"] is not None:
        low, high = values["extent"]
        values["extent"] = (float(low), float(high))
    identity = Identity(**{name: _string(content["identity"][name]) for name in _IDENTITY})
    instances = tuple(_instance(row, shared) for row in content["instances"])
    return SelectedSeries(Series(identity=identity, instances=instances, **values), route, _string(content["reason"]))


def _instance(row: list[Any], shared: tuple[str, ...]) -> Instance:
    path, size, modified, sop_instance, sop_class, syntax, number, frames = row
    for each in (size, sop_class, syntax, frames):
        if type(each) is not int or each < 0:
            raise TypeError("no count")
    if number is not None and type(number) is not int:
        raise TypeError("no number")
    return Instance(
        _string(path), size, float(modified), _string(sop_instance), shared[sop_class], shared[syntax], number, frames
    )


def _check(name: str, value: Any) -> None:
    """Refuses a value that a series cannot have there."""
    match name:
        case "image_type" | "warnings":
            _strings(value)
        case "patient_age" | "slice_thickness":
            if value is not None and type(value) not in (int, float):
                raise TypeError(name)
        case "is_axial":
            if value is not None and type(value) is not bool:
                raise TypeError(name)
        case "extent":
            if value is not None and (type(value) is not list or {type(each) for each in value} - {int, float}):
                raise TypeError(name)
        case _:
            _string(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _string(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("no text")
    return value


def _strings(value: Any) -> tuple[str, ...]:
    if type(value) is not list:
        raise TypeError("no list")
    return tuple(_string(each) for each in value)
