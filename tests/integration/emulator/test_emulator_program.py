"""The emulator stands apart: what it shared with the package it would get wrong together with it."""

import ast
from pathlib import Path

import qure_provider.emulator

PACKAGE = Path(qure_provider.emulator.__file__).parent


def _imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield node.module


def test_imports_nothing_of_the_rest_of_the_package():
    ours = {name for path in PACKAGE.glob("**/*.py") for name in _imported(path) if name.startswith("qure_provider")}
    assert ours
    assert {name for name in ours if not name.startswith("qure_provider.emulator")} == set()


def test_imports_no_airflow():
    assert not [name for path in PACKAGE.glob("**/*.py") for name in _imported(path) if name.startswith("airflow")]
