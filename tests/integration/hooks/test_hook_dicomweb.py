import email
import json
import logging
import socket
import subprocess
import sys
import time
import tracemalloc
from urllib.parse import parse_qs, urlsplit

import pydicom
import pytest
from pydicom.uid import generate_uid
from support.emulated_results import emulated

from qure_provider.hooks.dicomweb import DicomWebHook
from qure_provider.hooks.receiver import ReceiverRefusedError, ReceiverSettingsError, ReceiverUnavailableError
from qure_provider.hooks.storing import StoreKind


@pytest.fixture(scope="module")
def qct(tmp_path_factory):
    return emulated(tmp_path_factory.mktemp("qct"), "qct")


@pytest.fixture
def hook_to(monkeypatch):
    hooks = []

    def make(url, login=None, password=None, **extra):
        fields = {"conn_type": "dicomweb", "host": url, "login": login, "password": password, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_DICOMWEB_DEFAULT", json.dumps(fields))
        hooks.append(DicomWebHook(operator="HookTest"))
        return hooks[-1]

    yield make
    for hook in hooks:
        hook.close()


@pytest.fixture
def hook(hook_to, wire):
    return hook_to(f"{wire.url}/dicom-web")


def uid_of(path):
    return pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID


def parts(request):
    """The bodies of a request's parts, read by Python's own parser."""
    head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + request.body)
    assert message.get_content_type() == "multipart/related"
    assert message.get_param("type") == "application/dicom"
    assert [part.get_content_type() for part in message.get_payload()] == ["application/dicom"] * len(
        message.get_payload()
    )
    return [part.get_payload(decode=True) for part in message.get_payload()]


def reply(handler, uids, status=200, failed=()):
    def item(uid):
        return {
            "00081150": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.7"]},
            "00081155": {"vr": "UI", "Value": [str(uid)]},
        }

    content = {"00081199": {"vr": "SQ", "Value": [item(uid) for uid in uids]}}
    if failed:
        items = [item(uid) | {"00081197": {"vr": "US", "Value": [code]}} for uid, code in failed]
        content["00081198"] = {"vr": "SQ", "Value": items}
    handler.reply(status, content, content_type="application/dicom+json")


def uids_in(handler):
    """What a request holds, by the bytes of its objects."""
    import io

    return [pydicom.dcmread(io.BytesIO(part)).SOPInstanceUID for part in parts(handler)]


def take_all(handler):
    reply(handler, uids_in(handler))


class TestStoring:
    def test_objects_go_out_as_they_are(self, hook, wire, qct):
        wire.answer = take_all

        statuses = hook.stow(qct.objects)

        assert [(each.sop_instance_uid, each.kind) for each in statuses] == [
            (uid_of(path), StoreKind.STORED) for path in qct.objects
        ]
        (request,) = wire.requests
        assert request.path == "/dicom-web/studies"
        assert request.headers["Accept"] == "application/dicom+json"
        assert parts(request) == [path.read_bytes() for path in qct.objects]

    def test_each_object_s_own_answer_counts(self, hook, wire, qct):
        first, second, third = qct.objects[:3]
        for status in (200, 202, 409):
            wire.answer = lambda handler, status=status: reply(
                handler, [uid_of(first)], status, [(uid_of(second), 0xA700)]
            )

            statuses = hook.stow([first, second, third])

            assert [each.kind for each in statuses] == [StoreKind.STORED, StoreKind.UNAVAILABLE, StoreKind.IN_DOUBT]

    def test_requests_are_kept_below_their_limit(self, hook_to, wire, qct):
        wire.answer = take_all
        sizes = [path.stat().st_size for path in qct.objects]
        limit = max(sizes) + 2000

        statuses = hook_to(wire.url, max_request_bytes=limit).stow(qct.objects)

        assert all(each.is_stored for each in statuses)
        assert len(wire.requests) > 1
        assert all(len(request.body) <= limit for request in wire.requests)
        assert [part for request in wire.requests for part in parts(request)] == [
            path.read_bytes() for path in qct.objects
        ]

    def test_an_object_above_the_limit_goes_alone(self, hook_to, wire, qct):
        wire.answer = take_all

        statuses = hook_to(wire.url, max_request_bytes=1000).stow(qct.objects[:3])

        assert all(each.is_stored for each in statuses)
        assert [len(parts(request)) for request in wire.requests] == [1, 1, 1]

    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_one_bad_object_harms_no_other(self, hook, wire, qct, status):
        bad = uid_of(qct.objects[2])

        def answer(handler):
            uids = uids_in(handler)
            if bad in uids:
                handler.reply(status)
            else:
                reply(handler, uids)

        wire.answer = answer

        statuses = hook.stow(qct.objects)

        assert [each.kind for each in statuses] == [
            StoreKind.REFUSED if path == qct.objects[2] else StoreKind.STORED for path in qct.objects
        ]
        assert str(status) in statuses[2].reason

    @pytest.mark.parametrize("status", [200, 202, 204, 500, 502, 504])
    def test_an_answer_that_tells_nothing_leaves_all_in_doubt(self, hook, wire, qct, status):
        wire.answer = lambda handler: handler.reply(status, b"" if status == 204 else b"<html>")

        statuses = hook.stow(qct.objects[:2])

        assert {each.kind for each in statuses} == {StoreKind.IN_DOUBT}
        assert str(status) in statuses[0].reason
        assert len(wire.requests) == 1

    def test_an_answer_that_is_lost_leaves_all_in_doubt(self, hook, wire, qct):
        wire.answer = lambda handler: handler.connection.shutdown(socket.SHUT_RDWR)

        assert {each.kind for each in hook.stow(qct.objects)} == {StoreKind.IN_DOUBT}

    def test_what_went_before_a_failure_is_kept(self, hook_to, wire, qct):
        def answer(handler):
            if len(wire.requests) == 1:
                take_all(handler)
            else:
                handler.reply(503)

        wire.answer = answer

        statuses = hook_to(wire.url, max_request_bytes=1000).stow(qct.objects[:3])

        assert [each.kind for each in statuses] == [StoreKind.STORED, StoreKind.UNAVAILABLE, StoreKind.UNAVAILABLE]
        assert len(wire.requests) == 2

    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (401, ReceiverSettingsError),
            (403, ReceiverSettingsError),
            (404, ReceiverSettingsError),
            (405, ReceiverSettingsError),
            (415, ReceiverSettingsError),
            (301, ReceiverSettingsError),
            (408, ReceiverUnavailableError),
            (409, ReceiverUnavailableError),
            (429, ReceiverUnavailableError),
            (503, ReceiverUnavailableError),
        ],
    )
    def test_a_refusal_that_is_not_of_the_objects_is_raised(self, hook, wire, qct, status, error):
        wire.answer = lambda handler: handler.reply(status, Location="http://127.0.0.1:1/")

        with pytest.raises(error, match=str(status)):
            hook.stow(qct.objects)
        assert len(wire.requests) == 1

    def test_a_file_that_vanishes_keeps_no_other_back(self, hook_to, wire, qct, tmp_path):
        path = tmp_path / "DOE^JANE"
        path.write_bytes(qct.one("sr").read_bytes())
        first, last = qct.one("sc"), qct.one("gsps")

        def answer(handler):
            path.unlink(missing_ok=True)
            take_all(handler)

        wire.answer = answer
        hook = hook_to(wire.url, max_request_bytes=first.stat().st_size + 500)

        statuses = hook.stow([first, path, last])

        assert [each.kind for each in statuses] == [StoreKind.STORED, StoreKind.UNAVAILABLE, StoreKind.STORED]
        assert "DOE" not in statuses[1].reason

    def test_nothing_is_sent_where_a_file_is_no_object(self, hook, wire, qct, tmp_path):
        (tmp_path / "none").write_bytes(b"%PDF-1.7")

        with pytest.raises(ReceiverRefusedError, match="no DICOM object"):
            hook.stow([qct.one("sr"), tmp_path / "none"])
        with pytest.raises(ReceiverUnavailableError, match="ENOENT"):
            hook.stow([qct.one("sr"), tmp_path / "gone"])
        assert wire.requests == []

    def test_nothing_to_send_asks_nobody(self, hook, wire):
        assert hook.stow([]) == ()
        assert wire.requests == []

    def test_a_server_that_is_away_is_for_later(self, hook_to, wire, qct):
        wire.close()

        with pytest.raises(ReceiverUnavailableError):
            hook_to(wire.url).stow(qct.objects)


class TestAuthentication:
    def test_basic(self, hook_to, wire, qct):
        wire.answer = take_all
        hook_to(wire.url, login="user", password="pass").stow([qct.one("sr")])

        assert wire.requests[0].headers["Authorization"] == "Basic dXNlcjpwYXNz"

    def test_bearer(self, hook_to, wire, qct):
        wire.answer = take_all
        hook_to(wire.url, password="t0ken", auth="bearer").stow([qct.one("sr")])

        assert wire.requests[0].headers["Authorization"] == "Bearer t0ken"

    def test_none(self, hook, wire, qct):
        wire.answer = take_all
        hook.stow([qct.one("sr")])

        assert wire.requests[0].headers["Authorization"] is None

    def test_oauth2_asks_for_a_new_token_and_sends_the_whole_body_again(self, hook_to, wire, second_wire, qct):
        second_wire.answer = lambda handler: handler.reply(
            200, {"access_token": f"t{len(second_wire.requests)}", "expires_in": 3600}
        )

        def answer(handler):
            if handler.headers["Authorization"] == "Bearer t1":
                handler.reply(401)
            else:
                take_all(handler)

        wire.answer = answer
        settings = {"auth": "oauth2", "token_url": f"{second_wire.url}/token", "scope": "dicom"}

        statuses = hook_to(wire.url, login="client", password="secret", **settings).stow(qct.objects)

        assert all(each.is_stored for each in statuses)
        assert [request.headers["Authorization"] for request in wire.requests] == ["Bearer t1", "Bearer t2"]
        assert parts(wire.requests[0]) == parts(wire.requests[1]) == [path.read_bytes() for path in qct.objects]


class TestQuestions:
    @pytest.fixture
    def archive(self, wire):
        """Answers QIDO-RS by the objects it is given, a page at a time."""
        archive = Archive()
        wire.answer = archive.answer
        return archive

    def test_a_study_is_found_with_whose_it_is_now(self, hook, archive, qct):
        archive.objects = [qct.source]

        found = hook.find_study(qct.identity.study_instance_uid)

        assert (found.study_instance_uid, found.patient_id) == (qct.identity.study_instance_uid, "SIM-1")
        assert (found.patient_name, found.accession_number) == ("Müller^Simulated", "SIM-A-1")

    def test_a_study_that_is_not_there_is_none(self, hook, archive, qct):
        assert hook.find_study("1.2.3") is None
        assert hook.find_instances("1.2.3") == frozenset()
        assert hook.find_instances("1.2.3", ["1.2.4"]) == frozenset()

    def test_an_archive_that_answers_with_something_else_has_not_the_study(self, hook, archive, qct):
        archive.objects = [qct.source]
        archive.ignores_keys = True

        assert hook.find_study("1.2.3") is None

    def test_a_study_of_two_patients_is_refused(self, hook, archive, qct):
        other = pydicom.dcmread(qct.sources[1])
        other.PatientID = "SIM-2"
        archive.objects = [qct.source, other]

        with pytest.raises(ReceiverRefusedError, match="more than one patient"):
            hook.find_study(qct.identity.study_instance_uid)

    def test_instances_are_found_whatever_a_page_is(self, hook, wire, archive, qct):
        dataset = pydicom.dcmread(qct.one("sr"))
        for number in range(130):
            copy = pydicom.Dataset()
            copy.StudyInstanceUID, copy.SeriesInstanceUID = dataset.StudyInstanceUID, f"1.2.{number % 2}"
            copy.SOPInstanceUID = generate_uid()
            archive.objects.append(copy)
        study = qct.identity.study_instance_uid
        for page in (40, 1000):
            archive.page = page
            assert hook.find_instances(study) == {each.SOPInstanceUID for each in archive.objects}
            assert hook.find_instances(study, ["1.2.1"]) == {
                each.SOPInstanceUID for each in archive.objects if each.SeriesInstanceUID == "1.2.1"
            }

    def test_an_archive_that_knows_no_pages_is_not_asked_without_end(self, hook, wire, archive, qct):
        archive.objects = [qct.source]
        archive.page = None

        assert hook.find_instances(qct.identity.study_instance_uid) == {qct.source.SOPInstanceUID}
        assert len(wire.requests) == 2

    @pytest.mark.parametrize("there", [True, False])
    def test_nothing_found_may_be_404_where_the_service_answers(self, hook, archive, wire, qct, there):
        if there:
            archive.objects = [qct.source]
        archive.missing = 404

        assert hook.find_instances(qct.identity.study_instance_uid, ["1.2.3"]) == frozenset()

    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (400, ReceiverSettingsError),
            (401, ReceiverSettingsError),
            (403, ReceiverSettingsError),
            (404, ReceiverSettingsError),
            (500, ReceiverUnavailableError),
            (503, ReceiverUnavailableError),
        ],
    )
    def test_a_question_that_fails_is_never_taken_for_no(self, hook, wire, status, error):
        wire.answer = lambda handler: handler.reply(status)

        for ask in (hook.find_study, hook.find_instances):
            with pytest.raises(error, match=str(status)):
                ask("1.2.3")

    @pytest.mark.parametrize("body", [b"", b"<html>", b"{}x", b"[3]", b'[{"00100020": 3}]', b"3"])
    def test_nor_is_an_answer_that_is_none(self, hook, wire, body):
        wire.answer = lambda handler: handler.reply(200, body)

        with pytest.raises(ReceiverSettingsError, match="no DICOM JSON"):
            hook.find_study("1.2.3")


class Archive:
    """What QIDO-RS is answered with."""

    LEVELS = {1: "StudyInstanceUID", 3: "SOPInstanceUID", 5: "SOPInstanceUID"}

    def __init__(self):
        self.objects = []
        self.page = 100
        self.ignores_keys = False
        self.missing = None

    def answer(self, handler):
        url = urlsplit(handler.path)
        path = url.path.split("/dicom-web/")[1].split("/")
        query = {name: value for name, (value,) in parse_qs(url.query).items()}
        keys = dict(zip(["StudyInstanceUID", "SeriesInstanceUID"], path[1::2], strict=False))
        keys |= {name: value for name, value in query.items() if name[0].isupper()}
        found = [each for each in self.objects if self.ignores_keys or all(each[k].value == v for k, v in keys.items())]
        if path == ["studies"]:
            found = list({(each.StudyInstanceUID, each.get("PatientID")): each for each in found}.values())
        elif not found and self.missing:
            handler.reply(self.missing)
            return
        if self.page is not None:
            begin = int(query["offset"])
            found = found[begin : begin + min(self.page, int(query["limit"]))]
        wanted = {
            "StudyInstanceUID",
            "SeriesInstanceUID",
            "SOPInstanceUID",
            "PatientID",
            "PatientName",
            "AccessionNumber",
        }
        rows = []
        for each in found:
            row = pydicom.Dataset()
            row.SpecificCharacterSet = "ISO_IR 192"
            for keyword in wanted & set(each.dir()):
                setattr(row, keyword, each[keyword].value)
            rows.append(json.loads(row.to_json()))
        handler.reply(200 if rows else 204, rows or b"", content_type="application/dicom+json")


class TestTestButton:
    def test_it_says_that_the_archive_answers(self, hook, wire):
        wire.answer = lambda handler: handler.reply(204)

        is_well, says = hook.test_connection()

        assert is_well
        assert "QIDO-RS" in says
        assert all("POST" not in request.path and request.body == b"" for request in wire.requests)

    @pytest.mark.parametrize(("status", "says"), [(401, "credentials"), (404, "base URL"), (503, "503")])
    def test_it_says_what_is_wrong(self, hook, wire, status, says):
        wire.answer = lambda handler: handler.reply(status)

        assert hook.test_connection()[0] is False
        assert says in hook.test_connection()[1]

    def test_it_ends_in_time(self, hook_to):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            began = time.monotonic()
            is_well, _ = hook_to(f"http://127.0.0.1:{silent.getsockname()[1]}").test_connection()

        assert not is_well
        assert time.monotonic() - began < 10

    @pytest.mark.parametrize(
        ("url", "settings", "field"),
        [
            ("", {}, "host"),
            ("http://archive.example/dicom-web", {}, "host"),
            ("https://archive.example/?x", {}, "host"),
            ("https://archive.example", {"auth": "oauth2"}, "login"),
            ("https://archive.example", {"auth": "perhaps"}, "auth"),
            ("https://archive.example", {"max_request_bytes": 1}, "max_request_bytes"),
            ("https://archive.example", {"ca_bundle": "/nowhere"}, "ca_bundle"),
        ],
    )
    def test_it_names_the_field_that_is_wrong(self, hook_to, url, settings, field):
        is_well, says = hook_to(url, **settings).test_connection()

        assert not is_well
        assert says.startswith(f"Field {field}:")

    def test_plain_http_to_another_machine_must_be_wanted(self, hook_to):
        hook = hook_to("http://archive.example/dicom-web", allow_plain_http=True)

        assert hook.connection.web.base_url == "http://archive.example/dicom-web/"


def test_memory_does_not_grow_with_the_object(hook_to, qct, tmp_path):
    size = 200_000_000
    with (tmp_path / "large").open("wb") as file:
        file.write(qct.one("sr").read_bytes())
        file.truncate(size)
    program = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        left = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, 1 << 20)))
        self.send_response(200)
        self.end_headers()
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.handle_request()
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        hook = hook_to(f"http://127.0.0.1:{int(process.stdout.readline())}")
        tracemalloc.start()
        (status,) = hook.stow([tmp_path / "large"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        process.kill()
        process.wait(10)

    assert "answered 200" in status.reason
    assert peak < 20_000_000


def test_nothing_of_the_patient_is_logged(hook, wire, qct, caplog):
    archive = Archive()
    archive.objects = [qct.source]
    with caplog.at_level(logging.DEBUG):
        wire.answer = take_all
        hook.stow(qct.objects)
        wire.answer = archive.answer
        hook.find_study(qct.identity.study_instance_uid)
        hook.find_instances(qct.identity.study_instance_uid)

    for secret in ("Müller", "SIM-1", "SIM-A-1", qct.identity.study_instance_uid, uid_of(qct.one("sr"))):
        assert secret not in caplog.text
