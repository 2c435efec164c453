"""Imports go down one list only; the pure parts know no network and no Airflow; the emulator stands apart."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qure_provider

ROOT = Path(qure_provider.__file__).parent

# From the top to the ground. A part may import what stands below it, and what shares its line.
ORDER = [
    {"task_groups", "plugin"},
    {"operators"},
    {"delivery"},
    {"sensors"},
    {"triggers"},
    {"hooks"},
    {"store", "ledger"},
    {"reports"},
    {"dicom"},
    {"api"},
]
LEVEL = {part: level for level, parts in enumerate(ORDER) for part in parts}
APART = "emulator"

PURE = ("reports", "dicom", "api")
# What reaches the network, a database or Airflow.
IMPURE = {
    "aiohttp",
    "airflow",
    "asyncio",
    "boto3",
    "fsspec",
    "ftplib",
    "http",
    "httpx",
    "pynetdicom",
    "requests",
    "requests_toolbelt",
    "smtplib",
    "socket",
    "socketserver",
    "sqlalchemy",
    "sqlite3",
    "ssl",
    "urllib.request",
    "urllib3",
}


def modules():
    return sorted(ROOT.rglob("*.py"))


def part_of(path):
    """The folder or the single module of the package that a file belongs to; empty for its ``__init__``."""
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports_of(path):
    """Every module that a file imports, wherever in it and for whatever purpose, as a dotted name."""
    package = ["qure_provider", *path.relative_to(ROOT).parent.parts]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def parts_imported_by(path):
    """The parts of the package that a file imports, but for its own."""
    dotted = [name.split(".") for name in imports_of(path) if name.startswith("qure_provider.")]
    parts = {names[1] for names in dotted}
    existing = {part_of(module) for module in modules()}
    return (parts & existing) - {part_of(path), ""}


def upwards(part, imported):
    """Whether an import goes up, as far as the list speaks of both."""
    return part in LEVEL and imported in LEVEL and LEVEL[imported] < LEVEL[part]


def test_every_folder_has_its_place_in_the_order():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.py"))}

    assert folders - LEVEL.keys() - {APART} == set()


def test_imports_go_down_the_list_only():
    broken = {
        f"{path.relative_to(ROOT)} imports {imported}"
        for path in modules()
        for imported in parts_imported_by(path)
        if upwards(part_of(path), imported)
    }

    assert broken == set()


def test_no_two_parts_import_each_other_by_whatever_way_round():
    graph = {}
    for path in modules():
        graph.setdefault(part_of(path), set()).update(parts_imported_by(path))
    below = {part: set(imported) for part, imported in graph.items()}
    for _ in graph:
        for reached in below.values():
            reached.update(*(below[part] for part in set(reached)))

    assert {part for part, reached in below.items() if part in reached} == set()


def test_the_emulator_stands_apart():
    of_emulator = {
        str(path.relative_to(ROOT)): parts
        for path in modules()
        if part_of(path) == APART and (parts := parts_imported_by(path))
    }
    of_others = {str(path.relative_to(ROOT)) for path in modules() if APART in parts_imported_by(path)}

    assert (of_emulator, of_others) == ({}, set())


def test_pure_parts_import_only_pure_parts():
    broken = {
        f"{path.relative_to(ROOT)} imports {imported}"
        for path in modules()
        if part_of(path) in PURE
        for imported in parts_imported_by(path) - set(PURE)
    }

    assert broken == set()


def test_pure_parts_import_neither_network_nor_airflow():
    broken = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules()
        if part_of(path) in PURE
        for name in imports_of(path)
        if any(name == impure or name.startswith(f"{impure}.") for impure in IMPURE)
    }

    assert broken == set()


# pydicom itself imports requests where that is installed, to fetch its own test files.
@pytest.mark.parametrize(("part", "given"), [("reports", "sys"), ("dicom", "pydicom.data"), ("api", "sys")])
def test_a_pure_part_brings_neither_network_library_nor_airflow_with_it(part, given):
    names = [
        ".".join(["qure_provider", *path.relative_to(ROOT).with_suffix("").parts])
        for path in modules()
        if part_of(path) == part and path.name != "__init__.py"
    ]
    heavy = ["airflow", "requests", "aiohttp", "httpx", "urllib3", "sqlalchemy", "pynetdicom", "fsspec", "boto3"]
    code = f"""
import importlib, sys, {given}
before = set(sys.modules)
for name in {names!r}:
    importlib.import_module(name)
print(sorted((set(sys.modules) - before) & set({heavy!r})))
"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert names
    assert done.stdout.strip() == "[]"


# The rules above are only worth something if they see what they look for.


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import airflow.sdk", "airflow.sdk"),
        ("from airflow import sdk", "airflow.sdk"),
        ("def f():\n    import requests", "requests"),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from qure_provider.hooks.qure import QureHook",
         "qure_provider.hooks.qure.QureHook"),
        ("from qure_provider import settings", "qure_provider.settings"),
        ("from .. import hooks", "qure_provider.hooks"),
        ("from ..hooks import qure", "qure_provider.hooks.qure"),
        ("from . import model", "qure_provider.api.model"),
    ],
)  # fmt: skip
def test_every_way_to_import_is_seen(monkeypatch, tmp_path, code, name):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "api").mkdir()
    path = tmp_path / "api" / "probe.py"
    path.write_text(code, encoding="utf-8")

    assert name in imports_of(path)


def test_an_import_upwards_is_told_from_one_downwards():
    assert upwards("api", "hooks")
    assert upwards("dicom", "store")
    assert not upwards("operators", "api")
    assert not upwards("store", "ledger")
    assert not upwards("hooks", "settings")
