"""How soon people are told of an urgent result, in a real Airflow whose every worker slot is uploading."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from demo.airflow import AirflowStack
from demo.export import make_export
from demo.hospital import NOTIFIERS, Hospital
from demo.processes import Processes
from demo.receivers import start_mail
from demo.service import start_service
from qure_provider.emulator.model import Kind, Stall

pytestmark = [pytest.mark.e2e, pytest.mark.system]
ROOT = Path(__file__).parents[2]
DAG_ID = "qure_on_demand"
SLOTS = 2
POLL_SECONDS = 15.0


def run(airflow, minute, modalities, folder):
    conf = {"export": str(folder), "selection": {"modalities": modalities}}
    return airflow.api.trigger(DAG_ID, logical_date=datetime(2026, 11, 20, 2, minute, tzinfo=UTC), conf=conf)


def wait(condition, seconds=180):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.2)
    return found


def in_state(airflow, run_id, step, state):
    instances = airflow.api.task_instances(DAG_ID, run_id)
    return [each for each in instances if each["task_id"].endswith(f".{step}") and each["state"] == state]


def test_people_are_told_within_a_poll_and_ten_seconds_while_every_slot_uploads(tmp_path, record_property):
    facts = make_export(tmp_path / "export", night="2026-11-20", studies=3, small=True)
    (urgent,) = facts.urgent
    series = [each.uid for each in facts.resources if each.route.value == "ct"]
    mail = start_mail(tmp_path / "mail")
    hospital = Hospital(tmp_path, 0, "", 0, mail, "")
    with Processes(tmp_path / "logs") as processes:
        service = start_service(processes, tmp_path / "service", processing_seconds=0)
        for uid in series:
            service.control.plan(uid, outcome="stuck")
        airflow = AirflowStack(
            tmp_path / "airflow",
            dags_folder=ROOT / "dags",
            env={
                "AIRFLOW__QURE__STORE_ROOT": str(tmp_path / "store"),
                "AIRFLOW__QURE__IDENTITY_POLICY": "identified",
                "AIRFLOW__QURE__ALLOW_QUARANTINED": "True",
                "AIRFLOW__QURE__NOTIFIERS": json.dumps(NOTIFIERS),
                "AIRFLOW__QURE__MAX_POLL_SECONDS": str(POLL_SECONDS),
            },
            parallelism=SLOTS,
            processes=processes,
        ).start()
        airflow.wait_ready(dag_ids=[DAG_ID])
        airflow.api.add_connection("mail", **hospital.connections["mail"])
        extra = {"source": service.source}
        port = urlsplit(service.url).port
        airflow.api.add_connection(
            "qure_default", conn_type="qure", host=service.url, port=port, password=service.token, extra=extra
        )
        waiting = run(airflow, 0, ["CT"], facts.folder)
        wait(lambda: len(in_state(airflow, waiting, "collect", "deferred")) == len(series))

        service.control.inject(Stall(kind=Kind.UPLOAD, seconds=120, times=None))
        uploading = run(airflow, 1, ["CR", "DX"], facts.folder)
        wait(lambda: len(in_state(airflow, uploading, "upload", "running")) == SLOTS)

        service.control.plan(urgent.uid, findings=urgent.findings)
        had = time.time()
        (told,) = wait(hospital.mails, POLL_SECONDS + 60)
        seconds = told.at - had
        busy = len(in_state(airflow, uploading, "upload", "running"))
        computing = len(in_state(airflow, waiting, "collect", "deferred"))
    record_property("seconds", round(seconds, 1))
    print(f"told {seconds:.1f} s after the service had it; {busy} of {SLOTS} slots uploading, {computing} batches wait")  # noqa: T201
    assert (busy, computing >= len(series) - 1) == (SLOTS, True)
    assert "urgent" in told.text
    assert seconds <= POLL_SECONDS + 10
