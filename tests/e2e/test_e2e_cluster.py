"""docker-compose.yaml on this machine: two nights, and in the second one a worker and a triggerer are lost."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.system]
ROOT = Path(__file__).parents[2]
SECONDS = 900


def left_running(build):
    """Processes that have anything to do with a folder, by their command, working folder or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            about = [*process.cmdline(), process.cwd(), *process.environ().values()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(build) in text for text in about):
            found.append(process)
    return found


def lent_folders():
    return set(Path(tempfile.gettempdir()).glob("qure-cluster-*"))


def test_two_nights_with_a_worker_and_a_triggerer_lost_on_the_way(tmp_path, capsys):
    before = lent_folders()
    build = tmp_path / "build"
    command = [sys.executable, "-m", "cluster", "--build", str(build)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    with capsys.disabled():
        sys.stdout.write(f"\n{done.stdout}")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((build / "summary.json").read_text())
    assert summary["passed"]
    assert summary["problems"] == []
    assert {"worker-1", "worker-2", "triggerer-1", "triggerer-2", "emulator", "orthanc"} <= set(summary["services"])

    first, second = summary["nights"]
    assert first["state"] == second["state"] == "success"
    assert set(first["workers"]) == {"worker-1", "worker-2"}
    own = {f"{name}/{name}" for name in ("qure_upload", "qure_collect", "qure_deliver")}
    assert set(first["places"]) == {"default_pool/default", *own}
    assert first["tries"] == first["tasks"]
    assert second["tries"] > second["tasks"]
    lost = set(summary["recovery_seconds"])
    assert len(lost) == 2
    assert lost < {"worker-1", "worker-2", "triggerer-1", "triggerer-2"}
    assert len(lost & {"worker-1", "worker-2"}) == 1
    assert all(0 < seconds < 240 for seconds in summary["recovery_seconds"].values())

    assert left_running(build) == []
    assert lent_folders() == before
