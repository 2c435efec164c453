"""Write docs/settings.md from what Airflow is told: ``make docs``."""

from __future__ import annotations

import inspect
import json
import os
import re
import runpy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest.mock import patch

from qure_provider.delivery.rules import SENDABLE, WORDS, Rule, When
from qure_provider.dicom.select import SelectionRules
from qure_provider.get_provider_info import get_provider_info

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "settings.md"

_HEAD = """\
# Settings

Every option, connection field and DAG parameter. `make docs` writes this page from what Airflow itself is
told, and a test compares the two. Where a time or a size has no other unit it is in seconds or bytes.

What only code can set is in the docstring of `process_export` and of each operator; how rules of delivery are written
is in [delivery.md](delivery.md), the profile of de-identification in [deidentification.md](deidentification.md).
"""
_ABOUT_OPTIONS = """\
Each can also be given by the environment, as `AIRFLOW__QURE__` and its name in capitals; what is marked secret by a
command or a secrets backend, too. An option that does not exist stops the DAGs, with its name.
"""
_ABOUT_FIELDS = """\
The form in the Airflow UI has all of them. Where a connection is given as JSON or by the environment, `host`, `port`,
`login` and `password` are Airflow's own, and the others stand in `extra`. A field that does not exist is refused, with
its name, by the form's Test button and wherever the connection is used.
"""
_ABOUT_PARAMS = """\
The form asks for them when a run is started by hand. `<export_root>` and `<deliver_to>` are the options of that name.
"""
_ABOUT_SELECTION = """\
What `[qure] selection`, the parameter `selection` of `qure_on_demand` and `process_export(selection=...)` take, as a
JSON object. What is left out keeps its default.
"""
_ABOUT_RULES = """\
What `[qure] rules` and `process_export(rules=...)` take under `when`, in upper or lower case, and under `send`. A
condition that is left out always applies.
"""
_FIELDS = ("host", "port", "login", "password", "schema", "extra")
_FROM_OPTIONS = {f"AIRFLOW__QURE__{name.upper()}": f"<{name}>" for name in ("export_root", "deliver_to")}


def page() -> str:
    """Return the whole page."""
    info = get_provider_info()
    lines = [
        _HEAD,
        "## Options: `[qure]` in Airflow's configuration\n",
        _ABOUT_OPTIONS,
        *_options(info["config"]["qure"]["options"]),
        "\n## Connections\n",
        _ABOUT_FIELDS,
    ]
    for connection in info["connection-types"]:
        lines += [f"### {connection['hook-name']}: type `{connection['connection-type']}`\n", *_fields(connection), ""]
    lines += [
        "## Parameters of the DAGs\n",
        _ABOUT_PARAMS,
    ]
    for dag in _dags():
        lines += [f"### `{dag.dag_id}`: {dag.description}\n", *_params(dag), ""]
    lines += ["## Rules of selection\n", _ABOUT_SELECTION, *_selection()]
    lines += ["\n## Rules of delivery\n", _ABOUT_RULES, *_rules(), ""]
    return "\n".join(lines)


def _selection() -> Iterator[str]:
    yield from _table("rule", "default", "what it is for")
    told, safe = _attributes(SelectionRules), SelectionRules()
    for item in fields(safe):
        default = getattr(safe, item.name)
        value = json.dumps(list(default) if isinstance(default, tuple) else default)
        yield _row(f"`{item.name}`", "" if default is None else f"`{value}`", told[item.name])


def _rules() -> Iterator[str]:
    yield from _table("where", "takes", "what it is for")
    told = _attributes(When) | _attributes(Rule)
    for item in fields(When):
        words = WORDS.get(item.name, ())
        yield _row(f"`when`: `{item.name}`", _words(words) or "any", told[item.name])
    yield _row("`send`", _words(SENDABLE), told["send"])
    yield _row("`to`", "any", told["to"])


def _words(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _attributes(cls: type) -> dict[str, str]:
    """Return what the docstring of a class says of each of its attributes."""
    section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2]
    told = re.findall(r"^    (\w+): (.+(?:\n {5,}.+)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()).replace("``", "`") for name, text in told}


def _options(options: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield from _table("option", "default", "what it is for")
    for name, option in options.items():
        secret = " Secret." if option.get("sensitive") else ""
        example = f" Example: `{option['example']}`" if option["example"] else ""
        yield _row(f"`{name}`", _code(option["default"]), f"{option['description']}{secret}{example}")


def _fields(connection: Mapping[str, Any]) -> Iterator[str]:
    form = connection["ui-field-behaviour"]
    yield from _table("field", "name", "default", "takes", "what it is for")
    for name in _FIELDS:
        if name not in form["hidden-fields"]:
            label = form["relabeling"].get(name, name.capitalize())
            yield _row(label, f"`{name}`", "", "", form["placeholders"].get(name, ""))
    for name, field in connection["conn-fields"].items():
        schema = field["schema"]
        yield _row(
            field["label"], f"`{name}`", _code(schema.get("default")), _takes(schema), field.get("description", "")
        )


def _params(dag: Any) -> Iterator[str]:
    yield from _table("parameter", "title", "default", "takes", "what it is for")
    for name in dag.params:
        param = dag.params.get_param(name)
        schema = param.schema
        default = _code(param.value) if param.has_value or "null" in schema["type"] else "must be given"
        yield _row(f"`{name}`", schema["title"], default, _takes(schema), param.description)


def _dags() -> Iterator[Any]:
    with patch.dict(os.environ, _FROM_OPTIONS):
        for path in sorted((ROOT / "dags").glob("*.py")):
            yield runpy.run_path(str(path))["dag"]


def _takes(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(_code(value) for value in schema["enum"] if value is not None)
    low, high = schema.get("minimum"), schema.get("maximum")
    if high is not None:
        return f"{low} to {high}"
    if low is not None:
        return f"{low} or more"
    kinds = schema.get("type", "string")
    kind = kinds if isinstance(kinds, str) else next(kind for kind in kinds if kind != "null")
    return {"boolean": "true or false", "object": "JSON", "string": "text"}.get(kind, kind)


def _code(value: Any) -> str:
    if value in (None, "", {}):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _table(*names: str) -> Iterator[str]:
    yield _row(*names)
    yield _row(*("---" for _ in names))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;').replace(chr(10), ' ') for cell in cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
