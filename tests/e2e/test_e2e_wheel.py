"""A built wheel installs into a clean environment, and Airflow lists the provider."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).parent / "uv"
CONSTRAINTS = ROOT / "constraints.txt"

pytestmark = pytest.mark.system


def run(*command, **more):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, **more).stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(
        str(UV),
        "build",
        "--quiet",
        "--wheel",
        "--build-constraint",
        str(CONSTRAINTS),
        "--out-dir",
        str(folder),
        str(ROOT),
    )
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"qure_provider"}
    for wanted in ("py.typed", "reports/summary.html.jinja", "ledger/migrations/env.py"):
        assert f"qure_provider/{wanted}" in names


def test_a_clean_environment_lists_the_provider(wheel, tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    run(str(UV), "venv", "--quiet", "--python", sys.executable, str(python.parents[1]))
    run(str(UV), "pip", "install", "--quiet", "--python", str(python), "--constraint", str(CONSTRAINTS), str(wheel))
    home = tmp_path / "home"
    environment = {**os.environ, "AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    listed = run(str(python.parent / "airflow"), "providers", "list", "-o", "json", env=environment)
    assert '"airflow-provider-qure"' in listed
    parsed = run(
        str(python),
        "-c",
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import qure_nightly, qure_on_demand, qure_redeliver\n"
        "print('parsed')",
        str(ROOT / "dags"),
        env=environment,
    )
    assert "parsed" in parsed
