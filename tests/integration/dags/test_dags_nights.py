"""The DAGs themselves, on a night's export of real images, through ``dag.test()``."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest

from demo.export import ExportFacts, make_export
from qure_provider.emulator.server import running_emulator
from qure_provider.emulator.settings import EmulatorSettings

ROOT = Path(__file__).parents[3]
NIGHT = "2026-11-20"
TWO_IN_KOLKATA = "2026-11-19T20:30:00+00:00"


@dataclass
class Nights:
    """What became of the runs.

    Attributes:
        facts: What was exported.
        runs: Each run's state and tasks.
        summaries: Each run's summary, where one was written.
        requests: How many requests of each kind the service had seen after each run.
        output: All that Airflow wrote.
        airflow: Airflow's home.
        store: The store's root.
    """

    facts: ExportFacts
    runs: list
    summaries: list
    requests: list
    output: str
    airflow: Path
    store: Path


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """A scheduled night, the same again, one by hand of a part, and one that nobody decided the identity policy for."""
    folder = tmp_path_factory.mktemp("nights")
    facts = make_export(folder / "exports" / NIGHT, night=NIGHT, studies=2, small=True)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")},
        "AIRFLOW_HOME": str(folder / "airflow"),
        "PYTHONPATH": f"{ROOT / 'dags'}:{ROOT}",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__QURE__EXPORT_ROOT": str(folder / "exports"),
        "AIRFLOW__QURE__STORE_ROOT": str(folder / "store"),
        "AIRFLOW__QURE__IDENTITY_POLICY": "identified",
        "AIRFLOW__QURE__ALLOW_QUARANTINED": "True",
        "AIRFLOW__QURE__DELIVER_TO": (folder / "onward").as_uri(),
        "AIRFLOW__QURE__TIMEZONE": "Asia/Kolkata",
        "AIRFLOW__QURE__MAX_BATCHES": "2",
        "AIRFLOW__QURE__FIRST_POLL_SECONDS": "0.1",
        "AIRFLOW__QURE__SETTLE_SECONDS": "0.1",
    }
    by_hand = {
        "export": str(facts.folder),
        "files": "IM_0001\nCT/HEAD/0001\nCT/HEAD/0002",
        "selection": {"modalities": ["CR", "DX"]},
    }
    runs = [
        {"dag": "qure_nightly", "date": TWO_IN_KOLKATA, "conf": {"quiet_seconds": 0}},
        {"dag": "qure_nightly", "date": "2026-11-19T20:31:00+00:00", "conf": {"quiet_seconds": 0}},
        {"dag": "qure_on_demand", "date": "2026-11-21T00:00:00+00:00", "conf": {**by_hand, "recompute": True}},
        {
            "dag": "qure_nightly",
            "date": "2026-11-19T20:32:00+00:00",
            "conf": {"quiet_seconds": 0, "recompute": True},
            "env": {"AIRFLOW__QURE__IDENTITY_POLICY": ""},
        },
    ]
    with running_emulator(EmulatorSettings(processing_seconds=0, storage=folder / "service")) as emulator:
        for each in facts.resources:
            emulator.control.plan(each.uid, findings=each.findings)
        connection = {"conn_type": "qure", "host": emulator.base_url, "password": emulator.token}
        environment["AIRFLOW_CONN_QURE_DEFAULT"] = json.dumps({**connection, "extra": {"source": emulator.source}})
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("run_dags.py")), json.dumps(runs)],
            env=environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-5000:]
        records = emulator.control.requests()
        received = emulator.control.received()
    summaries = sorted((folder / "store" / "runs").rglob("summary.json"), key=lambda path: path.stat().st_mtime)
    return Nights(
        facts=facts,
        runs=[json.loads(line) for line in re.findall(r"(?m)^RUN \d+ (.*)$", done.stdout)],
        summaries=[json.loads(path.read_text(encoding="utf-8")) for path in summaries],
        requests=[records, received],
        output=done.stdout,
        airflow=folder / "airflow",
        store=folder / "store",
    )


def test_a_night_goes_in_and_every_result_comes_home(nights):
    assert nights.runs[0]["state"] == "success"
    summary = nights.summaries[0]
    assert summary["night"] == NIGHT
    assert summary["outcomes"] == {"ready": len(nights.facts.resources)}
    found = Counter((row["product"], row["route"], row["triage"].capitalize()) for row in summary["resources"])
    assert found == Counter((each.product, each.route.value, each.triage) for each in nights.facts.resources)
    assert all((nights.store / row["folder"] / "result.json").is_file() for row in summary["resources"])


def test_the_sums_are_those_of_the_export(nights):
    counts = nights.summaries[0]["counts"]
    assert nights.summaries[0]["sums_hold"]
    assert counts["found"] == nights.facts.found
    for fate, number in nights.facts.sums.items():
        assert counts[fate.replace(" ", "_")] == number


def test_the_same_night_again_sends_nothing_and_is_green(nights):
    assert nights.runs[1]["state"] == "success"
    assert nights.summaries[1]["outcomes"] == nights.summaries[0]["outcomes"]
    assert {row["why"] for row in nights.summaries[1]["resources"]} == {"done"}
    records, received = nights.requests
    selected = nights.facts.sums["selected"]
    assert len(received) == selected + 1  # the one that was sent again by hand
    assert len([record for record in records if record.kind == "compute"]) == 3


def test_by_hand_a_part_is_sent_as_selected(nights):
    assert nights.runs[2]["state"] == "success"
    (row,) = nights.summaries[2]["resources"]
    assert (row["product"], row["revision"]) == ("qmsk", 2)
    counts = nights.summaries[2]["counts"]
    assert (counts["found"], counts["selected"], counts["not_selected"]) == (3, 1, 2)


def test_a_night_that_nobody_decided_the_identity_policy_for_is_red_and_explains(nights):
    run = nights.runs[3]
    assert run["state"] == "failed"
    assert run["tasks"]["process_export.plan[-1]"] == "failed"
    assert run["tasks"]["process_export.summarize[-1]"] == "failed"
    assert "No identity policy is set, so nothing was sent" in nights.output


def test_neither_logs_nor_airflows_database_speak_of_a_patient(nights):
    """Nor of UIDs, nor of the names of exported files."""
    secrets = set()
    for each in nights.facts.files:
        if each.fate == "selected":
            header = pydicom.dcmread(nights.facts.folder / each.path, stop_before_pixels=True)
            secrets |= {str(header.PatientName), header.PatientID, header.AccessionNumber, header.PatientBirthDate}
            secrets |= {header.StudyInstanceUID, header.SeriesInstanceUID, header.SOPInstanceUID}
            secrets |= {Path(each.path).name} if not Path(each.path).name.isdecimal() else set()
    secrets -= {"IM_0001"}  # typed by hand into the form, which is the typist's to choose
    assert len(secrets) > 200
    database = b"".join(path.read_bytes() for path in nights.airflow.glob("airflow.db*"))
    assert b"process_export" in database
    for secret in secrets:
        assert secret.encode() not in database
        assert secret not in nights.output


def test_what_goes_from_task_to_task_is_counts_and_labels(nights):
    connection = sqlite3.connect(nights.airflow / "airflow.db")
    values = "".join(str(value) for (value,) in connection.execute("SELECT value FROM xcom"))
    connection.close()
    assert "ct-000" in values
    assert "http" not in values
    assert str(nights.facts.folder) not in values
