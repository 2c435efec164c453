"""What is fuzzed: each target makes a case from a seed, and says what may come of it; anything else is a failure."""

import json
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlencode

import data_store
import pydicom
from pydicom.data import data_manager, get_testdata_file
from requests.structures import CaseInsensitiveDict
from support import fhir_reports
from support.emulated_results import emulated
from support.fhir_server import FhirServer
from support.hl7_reader import Message

from fuzz.mutations import damaged, damaged_json, nudged, written
from qure_provider.api.answers import RawAnswer, parse_compute, parse_result, parse_upload
from qure_provider.api.errors import QureError
from qure_provider.api.model import Outcome, ResultsVersion, Route
from qure_provider.dicom.complete import complete_object
from qure_provider.dicom.deidentify import Deidentifier
from qure_provider.dicom.manifest import ManifestError, dump_batch, load_batch
from qure_provider.dicom.model import Fate, Identity, StudyFacts
from qure_provider.dicom.objects import UnreadableError
from qure_provider.dicom.pack import pack_batches
from qure_provider.dicom.pseudonym import Pseudonymizer
from qure_provider.dicom.reader import UnfitError, read_header
from qure_provider.dicom.reasons import Quarantine
from qure_provider.dicom.record import WANTED, RecordMaker
from qure_provider.dicom.refusal import DeidentifyError
from qure_provider.dicom.scan import ScanLimits, scan
from qure_provider.dicom.select import SelectionRules, select
from qure_provider.dicom.verify import Contradiction, verify_object
from qure_provider.hooks.fhir import FhirHook
from qure_provider.hooks.fhir_connection import FhirConnection
from qure_provider.hooks.mllp_answer import Answer
from qure_provider.hooks.receiver import DeliveryInDoubtError, ReceiverError
from qure_provider.hooks.storing import OutgoingObject
from qure_provider.hooks.stow import read_answer
from qure_provider.hooks.web import Answer as WebAnswer
from qure_provider.hooks.web import WebConnection
from qure_provider.reports.fhir import FhirOptions, document_part, report_parts
from qure_provider.reports.hl7 import Hl7ContentError, build_oru
from qure_provider.reports.hl7_fields import Hl7Fields, Hl7SettingsError, Hl7Version, ProcessingId
from qure_provider.reports.hl7_syntax import CharacterSet
from qure_provider.reports.result import Asset, Result, ResultFormatError
from qure_provider.reports.study_report import StudyReport
from qure_provider.reports.summary import Summary, SummaryFormatError, SummaryRow

FOLDERS = (
    Path(data_manager.DATA_ROOT) / "test_files",
    Path(data_manager.DATA_ROOT) / "charset_files",
    Path(data_store.__file__).parent / "data",
)
_HEAD = 20_000
_LIMITS = ScanLimits(files=1000, header_bytes=1024 * 1024)


class WrongError(AssertionError):
    """What came of a case is not what may."""


@dataclass(frozen=True)
class Target:
    """One thing that is fuzzed.

    Attributes:
        run: Runs the case that a random generator decides; returns what came of it, in a word.
        share: Of all cases, in parts of the sum of all shares.
    """

    run: Callable
    share: int


class Memory:
    """Bytes as a source."""

    def __init__(self, content):
        self.content, self.size, self.page = content, len(content), 4096

    def read(self, offset, length):
        return self.content[offset : offset + length]


# What is read from an export


@cache
def real_files():
    """The beginnings of pydicom's own test files."""
    paths = sorted(path for folder in FOLDERS for path in folder.rglob("*") if path.is_file())
    return [content for content in (path.read_bytes()[:_HEAD] for path in paths) if len(content) > 300]


def headers(rng):
    content = damaged(rng, rng.choice(real_files()), real_files())
    try:
        header = read_header(Memory(content), WANTED, limit=_LIMITS.header_bytes)
    except UnfitError as error:
        return f"refused: {error.reason}"
    record = RecordMaker().make("x", len(content), 0.0, header)
    return f"recorded: {Quarantine(record.problem)}" if record.problem else "recorded"


def exports(rng):
    """A folder of damaged files is scanned and selected from, and every file is accounted for."""
    with TemporaryDirectory() as folder:
        for number in range(10):
            source = rng.choice(real_files())
            Path(folder, f"{number}").write_bytes(source if rng.random() < 0.3 else damaged(rng, source))
        result = scan(Path(folder), workers=1, limits=_LIMITS)
        selection = select(result)
        rows = [*result.passed_over, *selection.passed_over]
        sent = [instance.path for each in selection.selected for instance in each.series.instances]
        if sorted([*sent, *(row.path for row in rows)]) != [str(number) for number in range(10)]:
            raise WrongError("a file is lost, or counted twice")
        if any(row.fate is Fate.SELECTED or not row.reason for row in rows):
            raise WrongError("a file was passed over without a reason")
    return "accounted for"


_NAMED = {"PatientName": "ZQXNAME^ZQXGIVEN", "PatientID": "ZQX0042", "AccessionNumber": "ZQXACC17"}


@cache
def named_images():
    """Real images of a patient whose name and numbers stand out."""
    images = []
    for name in ("CT_small.dcm", "MR_small.dcm", "693_UNCI.dcm", "MR_small_RLE.dcm", "SC_rgb_small_odd.dcm"):
        dataset = pydicom.dcmread(get_testdata_file(name, download=False))
        for keyword, value in {**_NAMED, "ImageComments": "seen ZQXNAME, ZQXGIVEN (ZQX0042)"}.items():
            setattr(dataset, keyword, value)
        with BytesIO() as stream:
            dataset.save_as(stream)
            images.append(stream.getvalue())
    return images


def deidentified(rng):
    """What leaves of a damaged file does not name the patient, wherever it can still be read who that is."""
    image = rng.choice(named_images())
    head = image.find(b"\xe0\x7f\x10\x00")
    header = nudged(rng, image[:head]) if rng.random() < 0.7 else damaged(rng, image[:head], [image[:head]])
    content = header + image[head:]
    try:
        done = Deidentifier(Pseudonymizer(b"a key for the fuzzer that nobody uses")).deidentify(Memory(content))
    except (DeidentifyError, UnfitError) as error:
        return f"stays: {error}"
    left = [word for word in (b"ZQXNAME", b"ZQXGIVEN", b"ZQX0042", b"ZQXACC17") if word in done.header]
    if left and _still_named(content):
        raise WrongError(f"{left} leaves")
    return "leaves" if not left else "leaves, nobody knows whose"


def _still_named(content):
    try:
        dataset = pydicom.dcmread(BytesIO(content), stop_before_pixels=True)
        return all(str(dataset.get(keyword, "")) == value for keyword, value in _NAMED.items())
    except Exception:  # what pydicom raises on a broken file is not limited to its own errors
        return False


# What the service sends


@cache
def results_folder():
    return TemporaryDirectory()


@cache
def objects_of_results():
    study = emulated(Path(results_folder().name), "qxr")
    return study, [path.read_bytes() for path in study.objects if path.stat().st_size < 1_000_000]


def objects(rng):
    study, seeds = objects_of_results()
    path = Path(results_folder().name, "object")
    path.write_bytes(damaged(rng, rng.choice(seeds)) if rng.random() < 0.9 else rng.choice(seeds))
    verdict = verify_object(path, study.identity, study.sent)
    if isinstance(verdict, Contradiction):
        return f"held: {verdict}"
    try:
        complete_object(path, path.with_suffix(".onward"), study.identity, study.facts, study.sent)
    except UnreadableError:
        return "held: cannot be completed"
    return "completed"


_URL = "https://files.example/SECRET?signature=SECRET"
_ADDRESS = re.compile(r"https?://\S*SECRET|signature=SECRET")
_FILES = {"sc": [_URL, _URL], "report_pdf": [_URL], "json": _URL}
_REPORT = {"findings": "Opacity.\n\nNo other.", "impression": "Abnormal.", "findings_list": [["opacity", "Opacity."]]}
_XRAY = {"triage_status": "Critical", "usecase": "qxr", "result": {"report": _REPORT, "files": _FILES}}
_HEAD_CT = {
    "success": True,
    "message": "Results retrieved successfully!",
    "triage_status": "critical",
    "usecase": "qer",
    "result": {
        "report": ["Bleed.", "No other."],
        "scores": {"bleed": 0.93, "fracture": 0.01},
        "decisions": {"bleed": True, "fracture": False},
        "reporting_params": [],
        "qure_model_version": "3.1",
        "files": _FILES,
    },
}
_ANSWERS = (
    *(_XRAY,) * 4,
    *(_HEAD_CT,) * 4,
    {**_XRAY, "usecase": "qct", "result": {"files": _FILES}},
    {**_XRAY, "usecase": "not_implemented", "triage_status": "Routine"},
    {
        "success": True,
        "files": {"sc": _URL},
        "tags": [{"tag": "TB", "presence": True}],
        "report": "a",
        "integrity": True,
    },
    {"reason": "processing not started"},
    {"success": False, "message": "Access denied!"},
    {"success": False, "debug_info": {"reason": "Validity not determined yet!"}, "result": {}},
    {"message": "Invalid token header.", "next": "/accounts/login/", "authenticated": False},
    {"success": True, "message": "series_instance_uid successfully pushed for computation!"},
    {"sucess": False, "message": "Resource with SeriesInstanceUID 1.2 is not yet uploaded!"},
)
_UPLOADED = {
    "message": "Success",
    "status": "success",
    "messages": {"file0": {"message": "DICOM registered successfully.", "created": True, "license_expired": False}},
    "series_instance_uids": ["1.2.3"],
    "detailed_info": [{"SeriesInstanceUID": "1.2.3", "NumberOfSeriesRelatedInstances": 1}],
}
_STATUSES = (*(200,) * 60, 202, 206, 301, 304, 400, 401, 403, 404, 409, 413, 429, 500, 502, 503, 599, 0, 999)


def _raw(rng, content):
    kind = rng.choice(("application/json", "text/html", "text/plain", "", "\0", "application/json; charset=klingon"))
    after = rng.choice((None, "3", "-1", "1e999", "Wed, 21 Oct 2026 07:28:00 GMT", "soon", "9" * 500))
    return RawAnswer(rng.choice(_STATUSES), kind, written(rng, content), after)


def _quietly(error):
    if "SECRET" in str(error):
        raise WrongError("an error repeats a body")
    return f"raised: {type(error).__name__}"


def uploads(rng):
    try:
        answer = parse_upload(_raw(rng, damaged_json(rng, _UPLOADED)))
    except QureError as error:
        return _quietly(error)
    return f"read: {sum(file.accepted for file in answer.files.values())} accepted"


def computes(rng):
    try:
        parse_compute(_raw(rng, damaged_json(rng, rng.choice(_ANSWERS))))
    except QureError as error:
        return _quietly(error)
    return "read"


def _answer(rng):
    route, version = rng.choice(list(Route)), rng.choice(list(ResultsVersion))
    return parse_result(_raw(rng, damaged_json(rng, rng.choice(_ANSWERS))), route, version), route


def results(rng):
    """An answer is read, and what is kept of it is written and read again."""
    try:
        answer, route = _answer(rng)
    except QureError as error:
        return _quietly(error)
    kept = json.loads(json.dumps(Result.of(answer, (), uid="1.2.3", route=route).to_json(), allow_nan=False))
    if _ADDRESS.search(f"{answer!r} {json.dumps([kept, answer.content])}"):
        raise WrongError("an address is kept")
    if answer.outcome.is_final and Result.from_json(kept).meaning is not answer.meaning:
        raise WrongError("what was kept is read otherwise")
    return f"read: {answer.outcome}"


# What is sent onward


_IDENTITY = Identity("1.2.3", "SIM-1", "", "SIM-A", "19700131", "F", "SIMULATED^PATIENT")
_TEXTS = (
    "",
    "|",
    "^~\\&",
    "\r",
    "\x0b\x1c\r",
    "\\X0D\\",
    "é",
    "\ud800",
    "山田^太郎",
    "\0",
    "\x85",
    "A" * 5000,
    "OBX|1",
)


def _text(rng, usual):
    if rng.random() < 0.6:
        return usual
    return "".join(rng.choice((usual, *_TEXTS)) for _ in range(rng.randint(1, 4)))


def reports(rng):
    """Whatever the service says and the header holds, the message has our segments, and FHIR is FHIR."""
    try:
        answer, route = _answer(rng)
    except QureError as error:
        return _quietly(error)
    answer = replace(answer, outcome=Outcome.READY)
    result = Result.of(answer, (), uid="1.2.3.4", route=route, study_instance_uid=_IDENTITY.study_instance_uid)
    names = ("patient_id", "issuer_of_patient_id", "accession_number", "birth_date", "sex", "patient_name")
    facts = ("study_date", "study_time", "study_description", "referring_physician", "placer_order_number", "acquired")
    report = StudyReport(
        identity=replace(_IDENTITY, **{name: _text(rng, getattr(_IDENTITY, name)) for name in names}),
        facts=StudyFacts(**{name: _text(rng, "20260131") for name in facts}),
        product=_text(rng, answer.usecase or "qxr"),
        revision=rng.choice((1, 2, 10**9)),
        results=(result,) * rng.choice((1, 1, 3)),
        issued=datetime(2026, 1, 31, tzinfo=UTC),
    )
    return f"{_hl7(rng, report)}, {_fhir(rng, report)}"


def _hl7(rng, report):
    fields = Hl7Fields(
        ProcessingId.TRAINING,
        version=rng.choice(list(Hl7Version)),
        character_set=rng.choice(list(CharacterSet)),
        include_scores=rng.random() < 0.5,
    )
    try:
        message = build_oru(report, fields, withdrawn=rng.random() < 0.2)
    except (Hl7ContentError, Hl7SettingsError) as error:
        return f"HL7 refused: {type(error).__name__}"
    _check_message(message, report)
    return "HL7 built"


def _check_message(raw, report):
    segments = [line.split(b"|", 1)[0] for line in raw.split(b"\r")]
    if segments[:2] != [b"MSH", b"PID"] or set(segments) - {
        b"MSH",
        b"PID",
        b"PV1",
        b"ORC",
        b"OBR",
        b"NTE",
        b"OBX",
        b"",
    }:
        raise WrongError("the message has other segments than ours")
    if b"\x0b" in raw or b"\x1c" in raw or segments.count(b"PID") != 1 or segments.count(b"OBR") != 1:
        raise WrongError("a text broke out of its field")
    if b"UNICODE UTF-8" in raw.split(b"\r")[0]:
        found = Message(raw)["PID"].values(3)[0]
        if found.split() != report.identity.patient_id.split() and found.isalnum():
            raise WrongError("the patient ID is another")


def _fhir(rng, report):
    options = FhirOptions(include_scores=rng.random() < 0.5, include_pdf=False)
    build = rng.choice((report_parts, document_part))
    try:
        parts = build(report, "Patient/1", options)
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        return "FHIR refused"
    for part in parts if isinstance(parts, tuple) else (parts,):
        json.dumps(part.resource, allow_nan=False).encode()
    return "FHIR built"


# What receivers answer, and what we read again ourselves


_ACKS = (
    b"MSH|^~\\&|RIS|H|QURE-AI||20260101000000||ACK^R01^ACK|1|T|2.5.1\rMSA|AA|Q1\r",
    b"MSH|^~\\&|RIS|H|QURE-AI||20260101000000||ACK^R01|1|T|2.3.1\rMSA|AE|Q1|text||207\rERR|PID^1^3^204&x&HL70357\r",
    b"MSH|^~\\&|RIS|H|Q||2026||ACK|1|T|2.5.1\rMSA|AR|Q1\rERR||PID^1^3|204^Unknown key^HL70357|E|||SECRET\r",
)


def acks(rng):
    try:
        answer = Answer.of(damaged(rng, rng.choice(_ACKS), _ACKS))
    except DeliveryInDoubtError as error:
        return _quietly(error)
    return "accepted" if answer.code in {"AA", "CA"} else "read"


class DamagedLine:
    """A line to a strict FHIR server whose answers arrive damaged now and then."""

    def __init__(self, server, rng):
        self._server, self._rng = server, rng

    def ask(self, what, method, path, *, headers, data=b""):
        body = urlencode(data).encode() if isinstance(data, dict) else data
        try:
            status, said, content = self._server.answer(method, f"/fhir/{path}", headers, body)
        except Exception:  # what it gave out damaged, it may get back
            status, said, content = 500, {}, b""
        if self._rng.random() < 0.35:
            content = written(self._rng, damaged_json(self._rng, json.loads(content or b"null")))
            said = {name: self._rng.choice((value, "", "x/y", "Patient/../..", "\xff")) for name, value in said.items()}
            status = self._rng.choice((status, status, status, 200, 412, 500, 999))
        return WebAnswer(status, CaseInsensitiveDict(said), content)


def ehr(rng):
    """A report is put, found and taken back, whatever the server's answers look like."""
    server = FhirServer()
    server.admit(fhir_reports.SYSTEM, fhir_reports.IDENTITY.patient_id)
    hook = FhirHook()
    web = WebConnection("ehr", "http://127.0.0.1/fhir/")
    hook.__dict__["connection"] = FhirConnection(web, patient_system=fhir_reports.SYSTEM)
    hook._session = DamagedLine(server, rng)
    report, came = fhir_reports.a_report(), []
    for act in (hook.submit, hook.find, hook.withdraw):
        try:
            came.append("done" if act(report) else "nothing")
        except ReceiverError as error:
            came.append(_quietly(error))
    return ", ".join(came)


def _referenced(reason):
    return {"00081150": {"vr": "UI", "Value": ["1.2"]}, "00081155": {"vr": "UI", "Value": ["1.2.3"]}, **reason}


_STORED = [
    {"00081199": {"vr": "SQ", "Value": [_referenced({})]}},
    {"00081198": {"vr": "SQ", "Value": [_referenced({"00081197": {"vr": "US", "Value": [42752]}})]}},
]


def stores(rng):
    sent = [OutgoingObject(Path("x"), "1.2", "1.2.3", "1.2.840.10008.1.2.1")]
    statuses = read_answer(written(rng, damaged_json(rng, rng.choice(_STORED))), sent)
    return "not a store response" if statuses is None else f"read: {statuses[0].kind}"


@cache
def stored():
    """What the store's files hold, with what reads each and what it refuses them with."""
    answer = parse_result(
        RawAnswer(200, "application/json", json.dumps(_HEAD_CT).encode(), None), Route.CT, ResultsVersion.V1
    )
    result = Result.of(answer, (Asset("sc", "sc.dcm", "application/dicom", 1, "0"),), uid="1.2.3", route=Route.CT)
    row = SummaryRow(**dict.fromkeys((column.name for column in fields(SummaryRow)), ""))
    summary = Summary(
        **{column.name: "" for column in fields(Summary)}
        | {"counts": {"found": 1, "selected": 1}, "rows": (row,), "alerts": {}, "deliveries": {}, "problems": ()}
    )
    folder = Path(results_folder().name, "export")
    folder.mkdir()
    shutil.copy(FOLDERS[0] / "CT_small.dcm", folder)
    (batch,) = pack_batches(select(scan(folder), SelectionRules(minimum_slices=1)).selected, 2)
    return (
        (Summary.from_json, SummaryFormatError, json.loads(json.dumps(summary.to_json()))),
        (Result.from_json, ResultFormatError, json.loads(json.dumps(result.to_json()))),
        (load_batch, ManifestError, dump_batch(batch)),
    )


def files(rng):
    """What lies in the store may have been damaged, or be of another version."""
    read, ours, content = rng.choice(stored())
    try:
        read(damaged_json(rng, content))
    except ours:
        return "refused"
    return "read"


def _without_warnings(run, rng):
    with warnings.catch_warnings(action="ignore"):
        return run(rng)


TARGETS = {
    run.__name__: Target(partial(_without_warnings, run), share)
    for run, share in (
        *((headers, 50), (exports, 2), (deidentified, 5), (objects, 4), (uploads, 8), (computes, 4), (results, 12)),
        *((reports, 5), (ehr, 2), (acks, 5), (stores, 3), (files, 2)),
    )
}
