"""The demo in a real Airflow: the whole path from an exported night to results in the store."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]


def command(build, *options):
    return [sys.executable, "-m", "demo", "--build", str(build), "--small", *options]


def left_running(build):
    """Processes that have anything to do with a build folder, by their command, working folder or open files."""
    found = []
    for process in psutil.process_iter():
        try:
            about = [*process.cmdline(), process.cwd(), *(file.path for file in process.open_files())]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(build) in text for text in about):
            found.append(process)
    return found


def told_by_airflow(build):
    """Everything that Airflow's logs and its metadata database hold, by file."""
    files = [path for folder in ("logs", "airflow") for path in (build / folder).rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files}


def without_orthanc():
    """The environment of a machine where it is not installed; ``make demo`` uses it where it is."""
    path = [folder for folder in os.environ["PATH"].split(os.pathsep) if not (Path(folder) / "Orthanc").exists()]
    return {**os.environ, "PATH": os.pathsep.join(path)}


@pytest.fixture
def build(tmp_path):
    build = tmp_path / "build"
    yield build
    subprocess.run(command(build, "--stop"), cwd=ROOT, check=True, timeout=60)


def test_a_night_of_real_images_goes_in_and_every_report_comes_out(build):
    night = "2026-01-15"
    done = subprocess.run(
        command(build, "--night", night, "--keep"),
        cwd=ROOT,
        env=without_orthanc(),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *_, last = done.stdout.splitlines()
    assert last == str(build / "summary.json")
    summary = json.loads(Path(last).read_text())

    assert summary["passed"]
    assert summary["problems"] == []
    assert summary["simulated"]
    assert "SIMULATED" in done.stdout
    sums = summary["sums"]
    assert sums["found"] == sum(sums.values()) - sums["found"] > 0
    assert summary["outcomes"] == {"ready": len(summary["results"])}
    assert "a stand-in for an archive" in done.stdout
    assert len(list((build / "hospital" / "archive").glob("*.dcm"))) == summary["arrived"]["pacs"] > 0
    (told,) = (row["alert"] for row in summary["results"] if row["alert"])
    assert f"1; the latest {told} after the service had it" in done.stdout
    assert {row["product"] for row in summary["results"]} == {"qxr", "qmsk", "qer", "qct"}
    assert [row["product"] for row in summary["results"] if row["meaning"] == "urgent"] == ["qer"]
    for row in summary["results"]:
        assert (build / "store" / row["where"] / "result.json").is_file()
        assert row["study"] in done.stdout
    assert Path(summary["page"]).is_file()

    ui, user, password = re.search(r"UI: (\S+) user: (\S+) password: (\S+)", done.stdout).groups()
    login = {"username": user, "password": password}
    assert requests.post(f"{ui}/auth/token", json=login, timeout=30).status_code == 201
    again = subprocess.run(command(build), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (again.returncode, "make down" in again.stderr) == (2, True)
    subprocess.run(command(build, "--stop"), cwd=ROOT, check=True, timeout=60)
    assert left_running(build) == []
    told = told_by_airflow(build)
    assert any(b"process_export.plan" in content for content in told.values())
    for secret in (
        b"SIM-0",
        b"SIMULATED^",
        b"SIM260115",
        b"2.25.",
        b"CR000001",
        b"IM_0001",
        b"truncated.dcm",
        b"/assets/",
    ):
        assert [path for path, content in told.items() if secret in content] == [], secret
    with pytest.raises(requests.ConnectionError):
        requests.get(ui, timeout=5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_running_after_an_interruption(build, number):
    # A shell gives what it runs in the background no interrupts, and whoever is started inherits that.
    heeding = functools.partial(signal.signal, number, signal.SIG_DFL)
    demo = subprocess.Popen(
        command(build), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=heeding
    )
    record = build / "running.json"
    deadline = time.monotonic() + 90
    while not (record.exists() and "triggerer" in record.read_text()):
        assert demo.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    demo.send_signal(number)
    assert demo.wait(timeout=90) == 128 + number
    assert left_running(build) == []
    assert not record.exists()
