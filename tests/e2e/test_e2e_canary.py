"""Nights of patients whose every word stands out, in a real Airflow; afterwards all that Airflow keeps is searched.

One night goes well. In the others whatever answers, the service, the archive, the RIS and the EHR, refuses, and repeats
in its refusal what it knows of the patient, and credentials are wrong: leaks live in the ways of errors.
"""

import base64
import contextlib
import json
import re
import shutil
import socket
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pydicom
import pytest
import requests
from cryptography.fernet import Fernet, InvalidToken
from pydicom.dataset import Dataset
from pydicom.uid import UID_dictionary
from support.canary import DIGITS, Mark, in_database, in_folder, in_logs, keep_all_that_is_written, search
from support.dicom_archive import DicomArchive
from support.fhir_server import Behaviour, Fault, running_fhir_server
from support.hl7_receiver import Hl7Receiver, ack, frame

from demo.airflow import USER, AirflowStack
from demo.export import make_export
from qure_provider.emulator.model import Answer, At, Kind, OtherPatient, Reset, Truncate
from qure_provider.emulator.server import running_emulator
from qure_provider.emulator.settings import EmulatorSettings

pytestmark = [pytest.mark.e2e, pytest.mark.system]

ROOT = Path(__file__).parents[2]
SYSTEM = "urn:simulated:patients"
GOOD, BAD, STAYING = "2026-11-19", "2026-11-20", "2026-11-18"
BORN = "18830729"
OURS = ("canary_accepted", "canary_deidentified", "canary_refused")

ALLOWED = {
    # What the data's own path holds: the store; in the ledger, who it is and what else onward messages repeat of the
    # source's header (order numbers, the study's description); and what is delivered.
    # In the nights that are sent as they are, the service gets it too.
    "patient": (r"store:", r"ledger:studies\.", r"ledger:resources\.facts", r"delivered:", r"service:"),
    # The ledger knows resources by their UIDs.
    "uid": (r"store:", r"ledger:", r"delivered:", r"service:"),
    # Of the night that is de-identified the service gets none of it; the ledger also has the way back.
    "patient who stays": (
        r"store:",
        r"ledger:studies\.",
        r"ledger:resources\.facts",
        r"ledger:identity_maps\.",
        r"delivered:",
    ),
    "uid that stays": (r"store:", r"ledger:", r"delivered:"),
    # What the service found; its pages ask for a login and for the permission on the DAG.
    "clinical": (r"store:", r"delivered:", r"page:"),
    # Where an administrator entered them; Airflow encrypts both columns.
    "secret": (r"airflow:connection\.(password|extra) \(decrypted\)",),
    # What a person typed into the form: Airflow keeps it with the run, in the audit log and in the fields of the tasks
    # that it became, and repeats it in its own lines for debugging.
    "typed": (
        r"airflow:dag_run\.conf",
        r"airflow:log\.extra",
        r"airflow:rendered_task_instance_fields\.",
        r"log\.debug:",
        r"store:",
    ),
}

DAG = """
from datetime import timedelta

from airflow.sdk import DAG, Param
from airflow.sdk.definitions.callback import AsyncCallback

from canary_notifier import CanaryNotifier
from qure_provider.sensors.export import QureExportSensor
from qure_provider.task_groups.process_export import process_export

with DAG(
    "canary_{name}",
    schedule=None,
    params={{"folder": Param("", type="string"), "conn": Param("qure_default", type="string")}},
    default_args={{"retries": 1, "retry_delay": timedelta(seconds=2), "retry_exponential_backoff": 1}},
):
    QureExportSensor(
        task_id="complete", export="{exports}/{{{{ params.folder }}}}", quiet_seconds=2, limit_seconds=60
    ) >> process_export(
        export="{exports}/{{{{ params.folder }}}}",
        qure_conn_id="{{{{ params.conn }}}}",
        deliver_to=["pacs", "ris", "ehr", "file://{out}", *"{more}".split()],
        notifiers=[AsyncCallback(CanaryNotifier, kwargs={{"text": "{{{{ alert.text }}}}", "refuses": bool("{more}")}})],
        first_poll_seconds=6,
        max_poll_seconds=6,
        settle_seconds=6,
        identity_policy="{policy}",
        wait_seconds=50,
        catch_up=False,
        completeness="{{{{ ti.xcom_pull(task_ids='complete') }}}}",
    )
"""

NOTIFIER = '''
from airflow.sdk.bases.notifier import BaseNotifier


class CanaryNotifier(BaseNotifier):
    """Writes down what it is told; may fail then as if the pager had refused."""

    template_fields = ("text",)

    def __init__(self, text, refuses, **kwargs):
        super().__init__(**kwargs)
        self.text, self.refuses = text, refuses

    def notify(self, context):
        with open({told!r}, "a") as file:
            file.write(self.text + "\\n")
        if self.refuses:
            raise RuntimeError("POST https://pager.example/?key={secret} refused")

    async def async_notify(self, context):
        self.notify(context)
'''


@dataclass
class Marks:
    patient: Mark = field(default_factory=lambda: Mark("patient", also=[BORN, "1883-07-29"]))
    uid: Mark = field(default_factory=lambda: Mark("uid", alphabet=DIGITS, length=13))
    staying: Mark = field(default_factory=lambda: Mark("patient who stays", also=["18840617", "1884-06-17"]))
    staying_uid: Mark = field(default_factory=lambda: Mark("uid that stays", alphabet=DIGITS, length=13))
    clinical: Mark = field(default_factory=lambda: Mark("clinical"))
    secret: Mark = field(default_factory=lambda: Mark("secret", also=["/assets/", "expires="]))
    typed: Mark = field(default_factory=lambda: Mark("typed"))

    @property
    def all(self):
        return list(vars(self).values())


# The export


def canary_export(folder, patient, uid, night, *, born=BORN, only="", named=None):
    """The demo's export with other names on everything; what is expected of it, by its new UIDs.

    Args:
        folder: Where it goes.
        patient: What everything is called.
        uid: What every UID holds.
        night: Its date.
        born: The patients' birth date.
        only: Leave out all but this file.
        named: What files are called; by default they are the patients'.
    """
    facts = make_export(folder, night=night, studies=4, small=True)
    for path in folder.iterdir():
        if (path.name != only) if only else path.name in ("CD", "MR"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    uids, people = {}, {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with contextlib.suppress(pydicom.errors.InvalidDicomError):
            dataset = pydicom.dcmread(path)
            if "PatientID" in dataset:
                _relabel(dataset, patient, uid, born, uids, people)
                dataset.save_as(path)
                continue
        path.write_bytes(path.read_bytes() + patient.new().encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        path.rename(path.with_name(f"{(named or patient).new()} {path.name}"))
    return [(uids[resource.uid], resource) for resource in facts.resources if resource.uid in uids]


def _relabel(dataset, patient, uid, born, uids, people):
    def renamed(_, element):
        if element.VR == "UI" and element.value and str(element.value) not in UID_dictionary:
            old = str(element.value)
            if old not in uids:
                uids[old] = uid.new("1.2.3.", ".1")
            element.value = uids[old]

    dataset.walk(renamed)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    new = patient.new
    person = people.setdefault(
        dataset.PatientID,
        {
            "PatientName": new(after="^GIVEN"),
            "PatientID": new(),
            "AccessionNumber": new(),
            "OtherPatientIDs": new(),
            "PatientAddress": new(),
            "PatientTelephoneNumbers": new(),
            "PatientComments": new(),
            "MedicalRecordLocator": new(),
            "AdmissionID": new(),
            "StudyID": new(),
            "StudyDescription": new("CHEST HEAD "),
            "ReferringPhysicianName": new(after="^DOCTOR"),
            "RequestingPhysician": new(after="^DOCTOR"),
            "InstitutionName": new(),
            "ImageComments": new(),
            "PatientBirthDate": born,
        },
    )
    for keyword, value in person.items():
        setattr(dataset, keyword, value)


# Those who answer


class RefusingArchive(DicomArchive):
    """An archive that can be told to refuse, and then says whose object it was."""

    refuses = False

    def _store(self, event):
        if not self.refuses:
            return super()._store(event)
        status = Dataset()
        status.Status = 0xC123
        status.ErrorComment = f"no: {event.dataset.PatientID} {event.dataset.PatientName}"[:64]
        return status


def refuse_message(wire, message):
    """Says no, and repeats the patient's segment."""
    patient = message["PID"].line
    errors = f"ERR|||204^Unknown key identifier^HL70357|E||||{patient}\r"
    wire.sendall(frame(ack(message, "AR", text=patient, errors=errors)))


class Echo:
    """A web server that refuses everything and repeats what was sent to it, address and credentials included."""

    def __enter__(self):
        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = f"{self.path} {self.headers}".encode() + sent
                self.send_response(409, f"no {self.headers.get('Authorization')}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            do_GET = do_POST = do_PUT = answer  # noqa: N815

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_address[1]}/dicom-web"

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class Metrics:
    """Takes what Airflow sends to StatsD."""

    def __enter__(self):
        self.received = set()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def _listen(self):
        with contextlib.suppress(OSError):
            while True:
                self.received.add(self._socket.recv(65536).partition(b":")[0])

    def __exit__(self, *_):
        self._socket.close()


# The nights


@dataclass
class Nights:
    """What the nights left.

    Attributes:
        found: Kind of canary to place to what was found there.
        places: Number of places searched, by the first word of their names.
        states: Run's name to its state.
        why: Place in the store to the problems that a run's summary names, and the tasks that failed.
        pages: The addresses of our pages that were read.
        told: What the pager was told.
    """

    found: dict
    places: dict
    states: dict
    why: dict
    pages: list
    told: str


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    folder, marks = tmp_path_factory.mktemp("canary"), Marks()
    secret = marks.secret.new
    settings = EmulatorSettings(token=secret(), source=secret("personal-user-"), processing_seconds=4, abnormal_share=0)
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(running_emulator(settings))
        pacs = stack.enter_context(RefusingArchive())
        ris = stack.enter_context(Hl7Receiver())
        user, password = "integration", secret()
        ehr = stack.enter_context(running_fhir_server(behaviour=Behaviour(basic=f"{user}:{password}")))
        web = stack.enter_context(Echo())
        metrics = stack.enter_context(Metrics())
        airflow = stack.enter_context(_airflow(folder, metrics, secret))
        for name in ("wrong", "proxied"):
            canary_export(folder / "exports" / name, marks.patient, marks.uid, BAD, only="IM_0001")
        exports = {
            night: canary_export(folder / "exports" / night, marks.patient, marks.uid, night) for night in (GOOD, BAD)
        }
        canary_export(folder / "exports" / STAYING, marks.staying, marks.staying_uid, STAYING, born="18840617")
        airflow.wait_ready(dag_ids=[*OURS, "qure_on_demand", "qure_redeliver"])
        key = base64.b64encode(f"{secret()} {secret()} {secret()}".encode()).decode()
        airflow.api.add_connection("qure_deidentify_default", conn_type="qure_deidentify", password=key)
        _connect(airflow.api, service, pacs, ris, ehr, web, (user, password), secret)
        runs = _run(folder, airflow, service, marks, exports, pacs, ris, ehr)
        why = dict(_problems(airflow, folder / "store"))
        pages = dict(_pages(airflow, folder / "store"))
        airflow.check()
        received = list(in_folder("service", service.storage))
    places = [*_places(folder, airflow, metrics, pages), *_delivered(folder, pacs, ris, ehr), *received]
    counts = {}
    for name, _ in places:
        word = name.partition(":")[0]
        counts[word] = counts.get(word, 0) + 1
    told = folder / "told"
    return Nights(
        search(places, marks.all), counts, runs, why, sorted(pages), told.read_text() if told.exists() else ""
    )


@contextlib.contextmanager
def _airflow(folder, metrics, secret):
    dags, modules, out = folder / "dags", folder / "modules", folder / "out"
    shutil.copytree(ROOT / "dags", dags)
    modules.mkdir()
    for name, more, policy in (
        ("accepted", "", "identified"),
        ("deidentified", "", "deidentify"),
        ("refused", "web", "identified"),
    ):
        content = DAG.format(name=name, more=more, policy=policy, exports=folder / "exports", out=out)
        (dags / f"canary_{name}.py").write_text(content)
    (modules / "canary_notifier.py").write_text(NOTIFIER.format(told=str(folder / "told"), secret=secret()))
    airflow = AirflowStack(
        folder / "airflow",
        dags_folder=dags,
        env={
            "PYTHONPATH": str(modules),
            "AIRFLOW__QURE__STORE_ROOT": str(folder / "store"),
            "AIRFLOW__QURE__IDENTITY_POLICY": "identified",
            "AIRFLOW__QURE__ALLOW_QUARANTINED": "True",
            "AIRFLOW__QURE__TIMEZONE": "UTC",
            "AIRFLOW__QURE__PSEUDONYM_KEY": secret(),
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_HOST": "127.0.0.1",
            "AIRFLOW__METRICS__STATSD_PORT": str(metrics.port),
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG",
        },
    )
    try:
        airflow.start()
        keep_all_that_is_written(airflow.home / "airflow.db")
        yield airflow
    finally:
        airflow.stop()


def _connect(api, service, pacs, ris, ehr, web, ehr_login, secret):
    port = urlsplit(service.base_url).port
    source = {"source": service.source}
    good = {"conn_type": "qure", "host": service.base_url, "port": port}
    api.add_connection("qure_default", **good, password=service.token, extra=source)
    api.add_connection("qure_wrong", **good, password=secret(), extra=source)
    nobody = f"http://integration:{secret()}@127.0.0.1:9"
    api.add_connection("qure_proxied", **good, password=secret(), extra={**source, "proxies": {"http": nobody}})
    api.add_connection(
        "pacs", conn_type="dicom", host="127.0.0.1", port=pacs.port, password=secret(), extra={"called_ae_title": "X"}
    )
    api.add_connection(
        "ris", conn_type="mllp", host="127.0.0.1", port=ris.port, password=secret(), extra={"processing_id": "T"}
    )
    basic = {"auth": "basic"}
    api.add_connection("web", conn_type="dicomweb", host=web, login="integration", password=secret(), extra=basic)
    user, password = ehr_login
    extra = {**basic, "patient_identifier_system": SYSTEM}
    api.add_connection("ehr", conn_type="fhir", host=ehr.url, login=user, password=password, extra=extra)


def _run(folder, airflow, service, marks, exports, pacs, ris, ehr):
    control, states = service.control, {}
    for patient in _patients(folder / "exports" / GOOD) | _patients(folder / "exports" / STAYING):
        ehr.admit(SYSTEM, patient)
    text = {"result": {"report": {"impression": marks.clinical.new("SIMULATED ")}}}
    for uid, resource in exports[GOOD]:
        control.plan(uid, findings=resource.findings, **({"patch": text} if resource.product == "qxr" else {}))
    good = {
        "good": _start(airflow, "canary_accepted", {"folder": GOOD}),
        "de-identified": _start(airflow, "canary_deidentified", {"folder": STAYING}),
    }
    for name, run in good.items():
        states[name] = _wait(airflow, *run)

    pacs.refuses = True
    ris.actions = [refuse_message] * 100
    sorry = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "x"}]}
    sorry["issue"][0]["diagnostics"] = marks.patient.new("Patient ")
    ehr.faults += [
        Fault("GET", "Patient.*", 500, json.dumps(sorry).encode(), times=2),
        Fault("POST", "Patient.*", 422, json.dumps(sorry).encode(), times=2),
    ]
    _make_trouble(control, marks, exports[BAD])
    runs = {
        "bad": _start(airflow, "canary_refused", {"folder": BAD}),
        "wrong token": _start(airflow, "canary_refused", {"folder": "wrong", "conn": "qure_wrong"}),
        "proxy away": _start(airflow, "canary_refused", {"folder": "proxied", "conn": "qure_proxied"}),
        "typed": _start(airflow, "qure_on_demand", _typed(folder, marks)),
    }
    for name, run in runs.items():
        states[name] = _wait(airflow, *run)
    again = {"states": "held dead", "even_if_not_due": True}
    states["redeliver"] = _end(airflow, "qure_redeliver", again)
    return states


def _patients(folder):
    found = set()
    for path in folder.rglob("*"):
        with contextlib.suppress(pydicom.errors.InvalidDicomError, IsADirectoryError):
            found.add(pydicom.dcmread(path, stop_before_pixels=True).get("PatientID", ""))
    return found


def _typed(folder, marks):
    """A person types the name of a folder and of files, one of which is not there."""
    typed = folder / "exports" / marks.typed.new()
    canary_export(typed, marks.patient, marks.uid, BAD, only="IM_0001", named=marks.typed)
    names = [path.name for path in typed.iterdir()]
    return {"export": str(typed), "files": "\n".join([*names, marks.typed.new()]), "qure_conn_id": "qure_wrong"}


def _make_trouble(control, marks, resources):
    """Let everything go wrong that an answer can say too much about."""
    body = f"{marks.patient.new('Patient ')} {marks.secret.new('Token ')}"
    away = f"http://{marks.patient.new()}.example/"
    answer = {"status": 500, "body": f"<html>{body}</html>", "headers": {"X-Error": body}}
    xrays = [uid for uid, resource in resources if resource.route.value == "xray"]
    series = [uid for uid, resource in resources if resource.route.value == "ct"]
    refused, denied, elsewhere, lost, other, cut, unsupported = xrays
    name = marks.patient.new("Patient ", " unknown")
    unregistered = {"message": name, "created": False, "license_expired": False}
    for fault in (
        Answer(kind=Kind.UPLOAD, uid=refused, status=400, json_body={"message": body}, times=9),
        Answer(kind=Kind.UPLOAD, uid=lost, status=200, json_body={"messages": {"file0": unregistered}}, times=9),
        Answer(kind=Kind.UPLOAD, **answer),
        Reset(kind=Kind.UPLOAD, at=At.REQUEST, after_bytes=1000),
        Answer(kind=Kind.COMPUTE, uid=series[0], status=403, json_body={"success": False, "message": body}, times=9),
        Answer(kind=Kind.RESULTS, uid=denied, status=200, json_body=[body], times=2),
        Answer(kind=Kind.RESULTS, uid=denied, status=200, body=body, times=2),
        Answer(kind=Kind.RESULTS, uid=unsupported, status=400, json_body={"debug_info": {"reason": name}}, times=9),
        Answer(kind=Kind.RESULTS, uid=elsewhere, status=302, headers={"Location": away}, times=2),
        Answer(kind=Kind.RESULTS, **answer, times=3),
        Answer(kind=Kind.ASSET, uid=cut, **answer),
        Truncate(kind=Kind.ASSET, uid=cut, times=2),
        OtherPatient(
            uid=other,
            attributes={"PatientID": marks.patient.new(), "PatientName": marks.patient.new(after="^X")},
            times=9,
        ),
    ):
        control.inject(fault)
    gone = {"result": {"files": {"sc_more": [f"http://127.0.0.1:9/{marks.secret.new()}?{marks.secret.new()}"]}}}
    control.plan(cut, findings=(), patch=gone)
    control.plan(denied, outcome="denied")
    control.plan(other, findings=("nodule",))
    control.plan(series[1], outcome="stuck")


def _start(airflow, dag_id, conf):
    return dag_id, airflow.api.trigger(dag_id, logical_date=datetime.now(UTC), conf=conf)


def _wait(airflow, dag_id, run_id, seconds=400):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        airflow.check()
        if (state := airflow.api.run_state(dag_id, run_id)) in {"success", "failed"}:
            return state
        time.sleep(1)
    raise AssertionError(f"{dag_id} took longer than {seconds} s")


def _problems(airflow, store):
    for path in store.rglob("summary.json"):
        yield str(path.relative_to(store)), json.loads(path.read_text())["problems"]
    for dag_id in OURS:
        for run in airflow.api.get(f"dags/{dag_id}/dagRuns")["dag_runs"]:
            tasks = airflow.api.task_instances(dag_id, run["dag_run_id"])
            yield run["dag_run_id"], [task["task_id"] for task in tasks if task["state"] == "failed"]


def _end(airflow, dag_id, conf):
    return _wait(airflow, *_start(airflow, dag_id, conf))


# What they left


def _pages(airflow, store):
    """Every page below ours that a link leads to, and every answer of Airflow's API that shows something of ours.

    A file that the store keeps and that is sent as it is there is the store's, and is searched there.
    """
    kept = {path.read_bytes() for path in store.rglob("*") if path.is_file() and path.suffix != ".sqlite3"}
    session = requests.Session()
    session.trust_env = False
    login = {"username": USER, "password": airflow.password}
    token = session.post(f"{airflow.url}/auth/token", json=login, timeout=30).json()["access_token"]
    session.headers["Authorization"] = f"Bearer {token}"
    waiting, seen = [f"{airflow.url}/qure/"], set()
    while waiting:
        address = waiting.pop()
        if address in seen:
            continue
        seen.add(address)
        answer = session.get(address, timeout=30)
        assert answer.status_code == 200, address
        path = urlsplit(address).path
        head = f"{path}\n{answer.headers}\n".encode()
        yield f"page:{path}", head if answer.content in kept else head + answer.content
        if answer.headers["Content-Type"].startswith("text/html"):
            for link in re.findall(r'(?:href|src)="([^"]+)"', answer.text):
                target = urljoin(address, link)
                if urlsplit(target).path.startswith("/qure/"):
                    waiting.append(target)
    for dag in (*OURS, "qure_on_demand", "qure_redeliver"):
        for run in airflow.api.get(f"dags/{dag}/dagRuns")["dag_runs"]:
            base = f"dags/{dag}/dagRuns/{run['dag_run_id']}"
            for task in airflow.api.task_instances(dag, run["dag_run_id"]):
                place, number = f"{base}/taskInstances/{task['task_id']}", task["map_index"]
                for what, by in (("links", "map_index"), ("xcomEntries", "map_index_filter")):
                    shown = airflow.api.get(f"{place}/{what}", **{by: number})
                    yield f"answer:{place}[{number}]/{what}", json.dumps(shown).encode()


def _places(folder, airflow, metrics, pages):
    fernet = Fernet(airflow.env["AIRFLOW__CORE__FERNET_KEY"])

    def unlock(raw):
        try:
            return fernet.decrypt(raw) if raw.startswith(b"gAAAA") else None
        except InvalidToken:
            return None

    for name in ("logs", "task-logs"):
        yield from in_logs("log", airflow.home / name)
    yield from in_database("airflow", airflow.home / "airflow.db", unlock)
    yield from in_database("ledger", folder / "store" / "ledger.sqlite3")
    yield from (place for place in in_folder("store", folder / "store") if "ledger.sqlite3" not in place[0])
    yield from pages.items()
    yield from ((f"metric:{name.decode()}", name) for name in metrics.received)
    yield "alert:pager", (folder / "told").read_bytes() if (folder / "told").exists() else b""


def _delivered(folder, pacs, ris, ehr):
    yield from in_folder("delivered", folder / "out")
    for number, message in enumerate(ris.messages):
        yield f"delivered:ris/{number}", message.raw
    for number, dataset in enumerate(pacs.received):
        yield f"delivered:pacs/{number}", str(dataset).encode()
    for number, resource in enumerate(ehr.resources()):
        yield f"delivered:ehr/{number}", json.dumps(resource).encode()


# What must hold of it


def leaks(nights, kind, *, places=""):
    """Where canaries of a kind were found that are not allowed there."""
    allowed = re.compile("|".join(ALLOWED[kind]))
    found = nights.found[kind].items()
    return {name: text for name, text in found if name.startswith(places) and not allowed.match(name)}


def test_the_nights_ended_as_they_were_meant_to(nights):
    assert nights.states == {
        "good": "success",
        "de-identified": "success",
        "bad": "failed",
        "wrong token": "failed",
        "proxy away": "failed",
        "typed": "failed",
        "redeliver": "success",
    }, nights.why
    assert "AI output, unverified" in nights.told


def test_the_canaries_were_where_they_belong_so_that_the_search_can_be_believed(nights):
    for kind, places in {
        "patient": ("store:", "ledger:studies.", "delivered:ris", "delivered:pacs", "delivered:ehr"),
        "uid": ("store:", "ledger:", "delivered:pacs"),
        "patient who stays": ("store:", "ledger:studies.", "ledger:identity_maps.", "delivered:ris", "delivered:pacs"),
        "uid that stays": ("store:", "ledger:", "delivered:pacs"),
        "clinical": ("store:", "delivered:ris", "page:"),
        "secret": ("airflow:connection.password (decrypted)", "airflow:connection.extra (decrypted)"),
        "typed": ("airflow:dag_run.conf",),
    }.items():
        for place in places:
            assert any(name.startswith(place) for name in nights.found[kind]), (kind, place)
    for word, least in {"log": 30, "airflow": 1000, "metric": 20, "answer": 50, "page": 10, "service": 50}.items():
        assert nights.places[word] >= least, nights.places


@pytest.mark.parametrize("kind", ["patient", "patient who stays"])
def test_R4_no_patient_data_is_outside_of_the_datas_path(nights, kind):
    assert leaks(nights, kind) == {}


@pytest.mark.parametrize("kind", ["uid", "uid that stays"])
def test_R4_no_uid_is_outside_of_the_datas_path(nights, kind):
    assert leaks(nights, kind) == {}


def test_R4_no_finding_is_outside_of_the_datas_path_and_its_pages(nights):
    assert leaks(nights, "clinical") == {}


def test_R4_what_a_person_typed_stays_where_airflow_keeps_it(nights):
    assert leaks(nights, "typed") == {}


@pytest.mark.parametrize(
    "place", ["log", "airflow", "page", "answer", "metric", "alert", "store", "ledger", "delivered"]
)
def test_R6_no_secret_is_in_any(nights, place):
    assert leaks(nights, "secret", places=f"{place}:") == {}
