"""The DAGs as they are, delivering to Orthanc, a RIS and an EHR that stop in the middle of the night."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.fhir_server import running_fhir_server
from support.gate import Gate
from support.hl7_receiver import Hl7Receiver
from support.orthanc import a_running_orthanc

from demo.export import make_export
from qure_provider.emulator.server import running_emulator
from qure_provider.emulator.settings import EmulatorSettings

pytestmark = pytest.mark.system
ROOT = Path(__file__).parents[3]
NIGHT = "2026-11-20"
PATIENTS = "urn:simulated:patients"
NEVER_ONWARD = {"original", "original_thumbnail"}
RULES = [{"when": {"product": ["qct"]}, "send": [], "to": ["ris"]}]
"""The RIS has no use for a report without text."""


class Airflow:
    """An Airflow in a process of its own that does one thing after the other."""

    def __init__(self, environment, folder):
        self._log = (folder / "airflow.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("serve_dags.py"))],
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self._process.stdout:
            self._log.write(line)
            if line.startswith("DONE "):
                self._lines.put(json.loads(line.removeprefix("DONE ")))
        self._lines.put(EOFError)

    def do(self, **step):
        self._process.stdin.write(f"{json.dumps(step)}\n")
        self._process.stdin.flush()
        done = self._lines.get(timeout=240)
        if done is EOFError:
            self._log.seek(0)
            pytest.fail(self._log.read()[-5000:])
        return done

    def run(self, dag, minute, **conf):
        """Run a DAG of 02:00 in Kolkata and some minutes."""
        return self.do(dag=dag, date=f"2026-11-19T20:{30 + minute}:00+00:00", conf=conf)["state"]

    def close(self):
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._log.close()


def environment_of(folder, emulator):
    connection = {"conn_type": "qure", "host": emulator.base_url, "password": emulator.token}
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")},
        "AIRFLOW_HOME": str(folder / "airflow"),
        "PYTHONPATH": f"{ROOT / 'dags'}:{ROOT}",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__QURE__EXPORT_ROOT": str(folder / "exports"),
        "AIRFLOW__QURE__STORE_ROOT": str(folder / "store"),
        "AIRFLOW__QURE__IDENTITY_POLICY": "identified",
        "AIRFLOW__QURE__ALLOW_QUARANTINED": "True",
        "AIRFLOW__QURE__TIMEZONE": "Asia/Kolkata",
        "AIRFLOW__QURE__MAX_BATCHES": "2",
        "AIRFLOW__QURE__FIRST_POLL_SECONDS": "0.1",
        "AIRFLOW__QURE__SETTLE_SECONDS": "0.1",
        "AIRFLOW__QURE__DELIVER_TO": "pacs ris ehr",
        "AIRFLOW__QURE__RULES": json.dumps(RULES),
        "AIRFLOW_CONN_QURE_DEFAULT": json.dumps({**connection, "extra": {"source": emulator.source}}),
    }


class Story:
    """What the receivers had after each thing that happened."""

    def __init__(self, orthanc, ris, ehr):
        self._orthanc, self._ris, self._ehr = orthanc, ris, ehr

    def arrived(self):
        return SimpleNamespace(
            objects=self._orthanc.uids,
            messages=[message.control_id for message in self._ris.messages],
            reports={
                report["identifier"][0]["value"]: report["status"] for report in self._ehr.resources("DiagnosticReport")
            },
            versions=self._ehr.versions("DiagnosticReport"),
        )


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onward")
    (folder / "orthanc").mkdir()
    facts = make_export(folder / "exports" / NIGHT, night=NIGHT, studies=2, small=True)
    with (
        running_emulator(EmulatorSettings(processing_seconds=0, storage=folder / "service")) as emulator,
        a_running_orthanc(folder / "orthanc") as orthanc,
        Hl7Receiver() as ris,
        running_fhir_server() as ehr,
    ):
        for each in facts.resources:
            emulator.control.plan(each.uid, findings=each.findings)
        for patient in facts.patients:
            ehr.admit(PATIENTS, patient)
        gates = [Gate(orthanc.dicom_port), Gate(ris.port), Gate(int(ehr.url.split(":")[2].partition("/")[0]))]
        story = Story(orthanc, ris, ehr)
        airflow = Airflow(environment_of(folder, emulator), folder)
        local = "127.0.0.1"
        for connection in (
            {
                "conn_id": "pacs",
                "conn_type": "dicom",
                "host": local,
                "port": gates[0].port,
                "extra": {"called_ae_title": "ORTHANC", "prove": True},
            },
            {
                "conn_id": "ris",
                "conn_type": "mllp",
                "host": local,
                "port": gates[1].port,
                "extra": {"processing_id": "T"},
            },
            {
                "conn_id": "ehr",
                "conn_type": "fhir",
                "host": f"http://{local}:{gates[2].port}/fhir/",
                "extra": {"patient_identifier_system": PATIENTS},
            },
        ):
            airflow.do(connection={**connection, "extra": json.dumps(connection["extra"])})
        try:
            for gate, answered in zip(gates, (6000, 300, 12000), strict=True):
                gate.limit = answered
            story.stopped = airflow.run("qure_nightly", 0, quiet_seconds=0)
            story.closed = [not gate.is_open for gate in gates]
            story.after_the_stop = story.arrived()
            for gate in gates:
                if not gate.is_open:
                    gate.open()
            story.redelivered = airflow.run("qure_redeliver", 1, even_if_not_due=True)
            story.after_redelivery = story.arrived()
            story.again = airflow.run("qure_nightly", 2, quiet_seconds=0)
            story.after_the_same_again = story.arrived()
            story.messages = list(ris.messages)
            story.taken_back = next(each.study_instance_uid for each in facts.resources if each.product == "qer")
            words = ["--study", story.taken_back, "--by", "Dr Simulated", "--why", "SIMULATED reason", "--yes"]
            story.withdrawn = json.loads(airflow.do(command=["qure", "withdraw", *words]))
            story.after_the_withdrawal = story.arrived()
            story.last_message = ris.messages[-1]
        finally:
            airflow.close()
            for gate in gates:
                gate.close()
        story.facts, story.store = facts, folder / "store"
        story.rejections = [
            tags
            for tags in (orthanc.tags(uid) for uid in story.after_the_withdrawal.objects)
            if tags["Modality"] == "KO"
        ]
        yield story


def summaries(story):
    found = sorted((story.store / "runs").rglob("summary.json"), key=lambda path: path.stat().st_mtime)
    return [json.loads(path.read_text(encoding="utf-8")) for path in found]


def results(story):
    return [json.loads(path.read_text(encoding="utf-8")) for path in (story.store / "studies").rglob("result.json")]


def test_a_night_whose_receivers_stop_ends_red_and_owes_them_the_rest(story):
    assert story.stopped == "failed"
    assert all(story.closed)
    deliveries = summaries(story)[0]["deliveries"]
    for name in ("pacs", "ris", "ehr"):
        assert set(deliveries[name]) & {"waiting", "in doubt"}, name
        assert set(deliveries[name]) <= {"waiting", "in doubt", "delivered", "not wanted"}
    assert sum(deliveries["pacs"].values()) == len(results(story))


def test_when_they_are_back_everything_that_the_rules_name_arrives_once(story):
    assert story.redelivered == "success"
    objects = sum(
        asset["media"] == "application/dicom" and asset["kind"] not in NEVER_ONWARD
        for result in results(story)
        for asset in result["assets"]
    )
    reports = {(result["study_instance_uid"], result["usecase"]) for result in results(story)}
    arrived = story.after_redelivery
    assert len(arrived.objects) == objects
    assert len(arrived.reports) == len(reports)
    assert len(set(arrived.messages)) == len([product for _, product in reports if product != "qct"]) < len(reports)
    assert set(arrived.reports.values()) == {"partial"}
    assert arrived.versions == len(reports)


def test_the_same_night_again_is_green_and_brings_nothing_new_to_anybody(story):
    assert story.again == "success"
    assert story.after_the_same_again == story.after_redelivery
    for states in summaries(story)[1]["deliveries"].values():
        assert set(states) <= {"delivered", "not wanted"}


def test_a_withdrawal_on_the_command_line_reaches_all(story):
    assert (story.withdrawn["troubles"], story.withdrawn["still_owed_to"]) == ([], [])
    assert len(story.withdrawn["withdrawn"]) == 3
    assert Counter(story.after_the_withdrawal.reports.values())["entered-in-error"] == 1
    assert {line[11] for line in story.last_message.all("OBX")} == {"W"}
    (note,) = story.rejections
    assert note["StudyInstanceUID"] == story.taken_back
    assert note["ConceptNameCodeSequence"][0]["CodeValue"] == "113037"
