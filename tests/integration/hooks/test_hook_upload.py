"""Uploads against the running emulator, and byte by byte where the wire itself is meant."""

import hashlib
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from airflow.sdk import ObjectStoragePath

from qure_provider.api.errors import QureRejectedError, QureSettingsError, QureTransientError
from qure_provider.emulator.model import Answer, At, Kind, LicenseExpired, LoseFiles, Reset, Truncate
from qure_provider.emulator.settings import Answers, Counting, MessageKeys
from qure_provider.hooks.outgoing import OutgoingFile


def received(emulator):
    return {file.sop_instance_uid: file for file in emulator.control.received() if file.registered}


def assert_all_arrived(emulator, report, files):
    assert set(report.acknowledged) == set(files)
    assert not report.failed
    assert not report.not_sent
    held = received(emulator)
    for file in files:
        assert held[file.sop_instance_uid].sha256 == hashlib.sha256(Path(file.path).read_bytes()).hexdigest()


@pytest.mark.parametrize("dialect", ["form-data", "related"])
@pytest.mark.parametrize("generation", [Answers.CURRENT, Answers.OLDER])
@pytest.mark.parametrize("counts", list(Counting))
def test_every_file_arrives_whole_in_every_dialect_and_generation(
    emulator, reconnect, exports, dialect, generation, counts
):
    emulator.control.configure(answers=generation, counts=counts)
    files = exports.series(7) + exports.series(2) + exports.series(1, "DX")
    seen = []

    report = reconnect(upload_dialect=dialect, max_request_bytes=130_000).upload(files, on_acknowledged=seen.extend)

    assert_all_arrived(emulator, report, files)
    assert sorted(file.path for file in seen) == sorted(file.path for file in files)
    assert {file.dialect for file in emulator.control.received()} == {f"multipart/{dialect}"}
    assert report.requests == emulator.control.count(Kind.UPLOAD) == 4


def test_bytes_and_requests_are_counted_as_the_service_saw_them(emulator, hook, exports):
    report = hook.upload(exports.series(3))

    records = emulator.control.requests(Kind.UPLOAD)
    assert report.requests == len(records) == 1
    assert report.bytes_sent == sum(record.size for record in records)


def test_no_request_is_larger_than_the_limit_on_the_wire(emulator, reconnect, exports):
    files = exports.series(9)
    limit = 3 * (files[0].size + 150) - 1

    report = reconnect(max_request_bytes=limit).upload(files)

    assert len(report.acknowledged) == 9
    sizes = [record.size for record in emulator.control.requests(Kind.UPLOAD)]
    assert max(sizes) <= limit
    assert len(sizes) == 5


def test_requests_go_in_parallel(emulator, reconnect, exports):
    emulator.control.inject(Answer(kind=Kind.UPLOAD, status=503, times=1))

    report = reconnect(max_request_bytes=45_000, parallel_uploads=3).upload(exports.series(9))

    assert len(report.acknowledged) == 9
    assert 1 < emulator.control.peaks()["upload"] <= 3


def test_the_parts_tell_nothing_of_the_export(emulator, hook, exports):
    hook.upload(exports.series(2))

    for file in emulator.control.received():
        assert "DOE" not in f"{file.key}{file.file_name}{file.headers}"
        assert file.headers["content-type"] == "application/dicom"


def test_every_request_carries_token_source_and_user_agent(wire, connect, exports):
    from qure_provider.hooks.qure import QureHook

    connect(wire.url)
    files = exports.series(1)
    uid = files[0].series_instance_uid
    wire.answer = lambda handler: handler.reply(200, {"message": "Success", "series_instance_uids": [uid]})

    with QureHook(operator="QureUploadOperator") as hook:
        hook.upload(files)

    (request,) = wire.requests
    assert request.path == "/studies/"
    assert request.headers["Authorization"] == "Token t0ken"
    assert request.headers["Source"] == "s0urce"
    assert "operator/QureUploadOperator" in request.headers["User-Agent"]
    assert int(request.headers["Content-Length"]) == len(request.body)
    assert "Transfer-Encoding" not in request.headers


@pytest.mark.parametrize("keys", list(MessageKeys))
def test_a_refused_file_harms_no_other(emulator, hook, exports, tmp_path, keys):
    emulator.control.configure(message_keys=keys)
    files = exports.series(3)
    text = tmp_path / "notes.txt"
    text.write_text("not an image")
    bad = OutgoingFile("1.2.3.4", files[0].series_instance_uid, str(text), text.stat().st_size)

    report = hook.upload([files[0], bad, *files[1:]])

    assert set(report.acknowledged) == set(files)
    assert [failure.file for failure in report.failed] == [bad]
    assert isinstance(report.failed[0].error, QureRejectedError)


def test_a_series_without_a_product_harms_no_other(emulator, hook, exports):
    emulator.control.configure(reject_unsupported_uploads=True)
    good, bad = exports.series(2), exports.series(2, "MR")
    emulator.control.inject(Answer(kind=Kind.UPLOAD, status=400, json_body={"message": "Use case not implemented"}))

    report = hook.upload(good + bad)

    assert set(report.acknowledged) == set(good)
    assert {failure.file for failure in report.failed} == set(bad)


@pytest.mark.parametrize("acknowledged", [True, False])
@pytest.mark.parametrize("generation", [Answers.CURRENT, Answers.OLDER])
def test_lost_files_are_sent_again(emulator, hook, exports, acknowledged, generation):
    emulator.control.configure(answers=generation)
    files = exports.series(6)
    emulator.control.inject(LoseFiles(count=2, acknowledged=acknowledged))

    report = hook.upload(files)

    assert_all_arrived(emulator, report, files)
    assert report.requests == 2


@pytest.mark.parametrize("acknowledged", [True, False])
def test_files_lost_for_ever_are_reported(emulator, hook, exports, acknowledged):
    files = exports.series(1, "DX") + exports.series(1, "DX")
    emulator.control.inject(LoseFiles(uid=files[1].sop_instance_uid, count=1, times=None, acknowledged=acknowledged))

    report = hook.upload(files)

    assert report.acknowledged == (files[0],)
    assert [failure.file for failure in report.failed] == [files[1]]
    assert set(received(emulator)) == {files[0].sop_instance_uid}


def test_an_expired_license_inside_a_200_is_reported(emulator, hook, exports):
    emulator.control.inject(LicenseExpired())

    report = hook.upload(exports.series(2))

    assert not report.acknowledged
    assert all("license" in str(failure.error) for failure in report.failed)


@pytest.mark.parametrize(
    "fault",
    [
        Answer(kind=Kind.UPLOAD, status=500),
        Answer(kind=Kind.UPLOAD, status=503, headers={"Retry-After": "0"}),
        Answer(kind=Kind.UPLOAD, status=429),
        Answer(kind=Kind.UPLOAD, status=408),
        Answer(kind=Kind.UPLOAD, status=200, body="<html>maintenance</html>"),
        Answer(kind=Kind.UPLOAD, status=200, body='{"message": '),
        Answer(kind=Kind.UPLOAD, status=200, json_body=[]),
        Reset(kind=Kind.UPLOAD),
        Reset(kind=Kind.UPLOAD, after_bytes=50_000),
        Reset(kind=Kind.UPLOAD, at=At.ANSWER),
        Reset(kind=Kind.UPLOAD, at=At.BODY, after_bytes=10),
        Truncate(kind=Kind.UPLOAD),
    ],
    ids=lambda fault: f"{fault.effect} {getattr(fault, 'status', '')}{getattr(fault, 'at', '')}",
)
def test_what_passes_is_tried_again(emulator, hook, exports, fault):
    files = exports.series(4)
    emulator.control.inject(fault)

    report = hook.upload(files)

    assert_all_arrived(emulator, report, files)
    assert report.requests == 2


def test_a_pause_that_the_service_asks_for_is_kept(emulator, hook, exports):
    emulator.control.inject(Answer(kind=Kind.UPLOAD, status=429, headers={"Retry-After": "1"}))
    begun = time.monotonic()

    assert len(hook.upload(exports.series(1)).acknowledged) == 1
    assert time.monotonic() - begun >= 1


def test_a_pause_too_long_for_a_worker_is_left_to_airflow(emulator, hook, exports):
    emulator.control.inject(Answer(kind=Kind.UPLOAD, status=503, headers={"Retry-After": "900"}, times=None))

    report = hook.upload(exports.series(2) + exports.series(2))

    assert emulator.control.count(Kind.UPLOAD) == 1
    assert {failure.error.retry_after for failure in report.failed} == {900.0}


def test_a_file_that_the_service_dies_of_harms_no_other(emulator, hook, exports):
    files = exports.series(3) + exports.series(3)
    emulator.control.inject(Answer(kind=Kind.UPLOAD, uid=files[1].sop_instance_uid, status=500, times=None))

    report = hook.upload(files)

    assert set(report.acknowledged) == set(files) - {files[1]}
    assert [failure.file for failure in report.failed] == [files[1]]
    assert isinstance(report.failed[0].error, QureTransientError)


def test_a_service_that_went_away_is_not_tried_for_every_request(emulator, reconnect, exports):
    emulator.control.inject(Answer(kind=Kind.UPLOAD, status=502, times=None))
    emulator.control.inject(Answer(kind=Kind.RESULTS, status=502, times=None))

    report = reconnect(max_request_bytes=45_000, parallel_uploads=1).upload(exports.series(5))

    assert len(report.failed) == 5
    assert report.requests == 4


def test_a_service_that_cannot_be_reached_is_reported_for_every_file(connect, exports):
    from qure_provider.hooks.qure import QureHook

    connect("http://127.0.0.1:9")
    with QureHook() as hook:
        report = hook.upload(exports.series(2))

    assert len(report.failed) == 2
    assert "ECONNREFUSED" in str(report.failed[0].error)


@pytest.mark.parametrize("wrong", [{"token": "wrong"}, {"source": "wrong"}])
def test_wrong_credentials_stop_the_upload_at_once(emulator, reconnect, exports, wrong):
    hook = reconnect(max_request_bytes=45_000, parallel_uploads=2, **wrong)

    with pytest.raises(QureSettingsError):
        hook.upload(exports.series(20))

    assert emulator.control.count(Kind.UPLOAD) <= 3
    assert not received(emulator)


def test_an_early_401_is_understood_while_the_body_is_still_being_sent(wire, connect, exports, tmp_path):
    from qure_provider.hooks.qure import QureHook

    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(40_000_000)
    connect(wire.url)

    def early(handler):
        handler.reply(401, {"authenticated": False}, Connection="close")
        handler.close_connection = True

    wire.server.RequestHandlerClass.do_POST = early
    wire.answer = lambda handler: handler.reply(401, {"authenticated": False})
    with QureHook() as hook, pytest.raises(QureSettingsError):
        hook.upload([OutgoingFile("1.2.3", "1.2", str(big), 40_000_000)])


def test_a_file_that_changed_since_it_was_listed_is_left_out_and_the_rest_is_sent(emulator, hook, exports):
    files = exports.series(4)
    Path(files[0].path).unlink()
    with Path(files[1].path).open("ab") as file:
        file.write(b"more")
    with Path(files[2].path).open("r+b") as file:
        file.truncate(files[2].size - 10)

    report = hook.upload(files)

    assert report.acknowledged == (files[3],)
    assert {failure.file for failure in report.failed} == set(files[:3])
    assert set(received(emulator)) == {files[3].sop_instance_uid}


def test_files_on_object_storage_are_sent_from_there(emulator, hook, exports):
    files = exports.series(2)
    stored = [replace(file, path=ObjectStoragePath(f"file://{file.path}")) for file in files]
    # as where the header was replaced: all but the preamble comes from the file
    cut = replace(stored[1], header=Path(files[1].path).read_bytes()[:128], offset=128)

    report = hook.upload([stored[0], cut])

    assert len(report.acknowledged) == 2
    assert_all_arrived(emulator, replace(report, acknowledged=tuple(files)), files)


def test_progress_survives_what_ends_the_upload(emulator, reconnect, exports):
    hook = reconnect(max_request_bytes=45_000, parallel_uploads=1)
    files, kept = exports.series(4), []

    def keep(acknowledged):
        kept.extend(acknowledged)
        if len(kept) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hook.upload(files, on_acknowledged=keep)
    report = hook.upload([file for file in files if file not in kept])

    assert set(kept) | set(report.acknowledged) == set(files)
    assert set(received(emulator)) == {file.sop_instance_uid for file in files}


def test_should_stop_breaks_off_a_request_that_hangs(wire, connect, exports):
    from qure_provider.hooks.qure import QureHook

    release = threading.Event()
    wire.answer = lambda handler: release.wait(20)
    connect(wire.url)
    files = exports.series(2)
    begun = time.monotonic()
    with QureHook() as hook:
        report = hook.upload(files, should_stop=lambda: time.monotonic() > begun + 0.5)
    release.set()

    assert report.not_sent == tuple(files)
    assert time.monotonic() - begun < 5


def test_a_redirected_upload_is_sent_again_whole_or_not_at_all(wire, second_wire, connect, exports):
    from qure_provider.hooks.qure import QureHook

    files = exports.series(2)
    listed = {"series_instance_uids": [files[0].series_instance_uid], "messages": {}}
    listed["detailed_info"] = [{"SeriesInstanceUID": files[0].series_instance_uid, "NumberOfSeriesRelatedInstances": 2}]

    def redirect(handler):
        if handler.path == "/studies/":
            return handler.reply(307, Location="/studies")
        return handler.reply(200, listed)

    wire.answer = redirect
    connect(wire.url)
    with QureHook() as hook:
        assert len(hook.upload(files).acknowledged) == 2
    assert [len(request.body) for request in wire.requests] == [len(wire.requests[0].body)] * 2

    for location in (second_wire.url, "/studies"):
        wire.answer = lambda handler, location=location: handler.reply(301, Location=location)
        with QureHook() as hook, pytest.raises(QureSettingsError):
            hook.upload(files)
    assert not second_wire.requests


def test_a_slow_line_is_no_timeout(wire, connect, exports):
    """A body may take longer than the connect timeout, as long as it moves."""
    from qure_provider.hooks.qure import QureHook

    files = exports.series(1)
    big = Path(files[0].path)
    with big.open("r+b") as file:
        file.truncate(12_000_000)
    file = OutgoingFile(files[0].sop_instance_uid, files[0].series_instance_uid, str(big), 12_000_000)

    def slow(handler):
        left = int(handler.headers["Content-Length"])
        while left:
            time.sleep(0.1)
            left -= len(handler.rfile.read(min(left, 1_000_000)))
        handler.reply(200, {"series_instance_uids": [file.series_instance_uid]})

    wire.server.RequestHandlerClass.do_POST = slow
    connect(wire.url, connect_timeout=0.3, read_timeout=20)
    begun = time.monotonic()
    with QureHook() as hook:
        assert len(hook.upload([file]).acknowledged) == 1
    assert time.monotonic() - begun > 1


def test_a_silent_service_is_given_up_after_the_idle_timeout(wire, connect, exports):
    from qure_provider.hooks.qure import QureHook

    release = threading.Event()
    wire.answer = lambda handler: release.wait(20)
    connect(wire.url, read_timeout=0.2)
    begun = time.monotonic()
    with QureHook() as hook:
        report = hook.upload(exports.series(1))
    release.set()

    assert "silent" in str(report.failed[0].error)
    assert time.monotonic() - begun < 10


def test_logs_and_errors_tell_nothing_of_the_patient_or_the_way_in(emulator, hook, exports, caplog):
    caplog.set_level("DEBUG")
    files = exports.series(3)
    emulator.control.inject(LoseFiles(count=1, acknowledged=False))
    emulator.control.inject(Answer(kind=Kind.UPLOAD, status=500, body=f"no {files[0].sop_instance_uid}"))

    hook.upload(files)

    told = "\n".join(
        record.getMessage() for record in caplog.records if not record.name.startswith(("asyncio", "qure_provider.emu"))
    )
    for secret in ("DOE", emulator.token, emulator.source, "/studies", *(file.sop_instance_uid for file in files)):
        assert secret not in told


def test_files_that_are_soon_prepared_are_before_the_first_is_sent(emulator, reconnect, exports):
    files = exports.series(9)
    asked = []

    def coming():
        for file in files:
            asked.append(emulator.control.count(Kind.UPLOAD))
            yield file

    report = reconnect(max_request_bytes=130_000, parallel_uploads=1).upload(coming())

    assert_all_arrived(emulator, report, files)
    assert set(asked) == {0}


@pytest.fixture
def no_head_start(monkeypatch):
    monkeypatch.setattr("qure_provider.hooks.upload._HEAD_START_SECONDS", 0.0)


@pytest.mark.usefixtures("no_head_start")
def test_files_are_prepared_while_others_are_sent(emulator, reconnect, exports):
    files = exports.series(9)
    asked = []

    def coming():
        for file in files:
            asked.append(emulator.control.count(Kind.UPLOAD))
            yield file

    report = reconnect(max_request_bytes=130_000, parallel_uploads=1).upload(coming())

    assert_all_arrived(emulator, report, files)
    assert report.requests == 3
    assert asked[0] == 0
    assert asked[-1] > 0


@pytest.mark.usefixtures("no_head_start")
def test_nothing_more_is_prepared_for_a_service_that_stays_away(emulator, reconnect, exports):
    files = exports.series(40)
    for kind in (Kind.UPLOAD, Kind.RESULTS):
        emulator.control.inject(Answer(kind=kind, status=503, times=None))
    asked = []

    def coming():
        for file in files:
            asked.append(file)
            yield file

    report = reconnect(max_request_bytes=130_000, parallel_uploads=1).upload(coming())

    assert not report.acknowledged
    assert {failure.file for failure in report.failed} == set(asked) < set(files)
