"""Downloads: whole or not at all, known by content, our token to nobody else."""

import hashlib
import socket

import pytest

from qure_provider.api.errors import QureRejectedError, QureTransientError
from qure_provider.api.model import ResourceRef, Route
from qure_provider.emulator.model import Answer, At, Drip, Kind, Reset, Stall, Truncate
from qure_provider.hooks.media import Media
from qure_provider.hooks.qure import ExpiredUrlError, QureHook
from qure_provider.hooks.transport import refuse_inward

PDF = b"%PDF-1.4 " + b"x" * 2000


@pytest.fixture
def urls(hook, exports):
    """Kind to the first address of a ready X-ray result."""
    (file,) = exports.series(1, "DX")
    hook.upload([file])
    answer = hook.result(ResourceRef(file.sop_instance_uid, Route.XRAY))
    return {kind: found[0] for kind, found in answer.files.items()}


@pytest.fixture
def target(tmp_path):
    return tmp_path / "results" / "series" / "report"


def left_behind(target):
    return sorted(path.name for path in target.parent.iterdir()) if target.parent.exists() else []


def test_files_arrive_whole_with_their_true_extension(hook, urls, target):
    media = {}
    for kind, url in urls.items():
        file = hook.download(url, target.with_name(kind))
        content = file.path.read_bytes()
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert file.path.name == kind + file.media.extension
        media[kind] = file.media

    assert media["report_pdf"] is Media.PDF
    assert {media["sc"], media["report_dcm"], media["report_sr"]} == {Media.DICOM}
    assert media["sc_full_png"] is Media.PNG
    assert len(left_behind(target)) == len(urls), "nothing temporary is left"


def test_a_file_that_begins_with_a_small_piece_is_known_by_its_content_all_the_same(wire, connect, target):
    def in_pieces(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        content = b"\0" * 128 + b"DICM" + b"x" * 1000
        for piece in (content[:7], content[7:100], content[100:]):
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            handler.wfile.flush()
        handler.wfile.write(b"0\r\n\r\n")

    wire.answer = in_pieces
    connect(wire.url)
    with QureHook() as hook:
        assert hook.download(wire.url + "/x", target).media is Media.DICOM


def test_an_unknown_kind_is_kept(wire, connect, target):
    wire.answer = lambda handler: handler.reply(200, b"something else", "application/pdf")
    connect(wire.url)

    with QureHook() as hook:
        file = hook.download(wire.url + "/x", target)

    assert (file.path.name, file.media) == ("report.bin", Media.UNKNOWN)


@pytest.mark.parametrize(
    "fault",
    [
        Answer(kind=Kind.ASSET, status=500),
        Answer(kind=Kind.ASSET, status=503, headers={"Retry-After": "0"}),
        Answer(kind=Kind.ASSET, status=200, body="<!doctype html><html>log in</html>"),
        Answer(kind=Kind.ASSET, status=200, body=""),
        Reset(kind=Kind.ASSET),
        Reset(kind=Kind.ASSET, at=At.BODY, after_bytes=100),
        Truncate(kind=Kind.ASSET),
        Stall(kind=Kind.ASSET, at=At.BODY),
        Drip(kind=Kind.ASSET, chunk=100, seconds=0.01),
    ],
    ids=lambda fault: f"{fault.effect} {getattr(fault, 'status', '')}",
)
def test_what_passes_is_tried_again_and_nothing_half_is_seen(reconnect, emulator, urls, target, fault):
    emulator.control.inject(fault)

    file = reconnect(read_timeout=0.3).download(urls["report_pdf"], target)

    assert file.media is Media.PDF
    assert left_behind(target) == ["report.pdf"]


def test_what_never_arrives_whole_leaves_nothing(hook, emulator, urls, target):
    emulator.control.inject(Truncate(kind=Kind.ASSET, times=None))

    with pytest.raises(QureTransientError):
        hook.download(urls["report_pdf"], target)

    assert emulator.control.count(Kind.ASSET) == 4
    assert left_behind(target) == []


def test_an_expired_address_is_told_apart_and_not_tried_again(hook, emulator, exports, target):
    emulator.control.configure(url_seconds=0.01)
    (file,) = exports.series(1, "DX")
    hook.upload([file])
    answer = hook.result(ResourceRef(file.sop_instance_uid, Route.XRAY))
    url = answer.files["report_pdf"][0].replace("expires=", "expires=1")

    with pytest.raises(ExpiredUrlError):
        hook.download(url, target)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_addresses_that_are_no_longer_good(wire, second_wire, connect, target, status):
    second_wire.answer = lambda handler: handler.reply(status, b"<Error/>", "application/xml")
    connect(wire.url)

    with QureHook() as hook, pytest.raises(ExpiredUrlError):
        hook.download(second_wire.url + "/x", target)

    assert len(second_wire.requests) == 1
    assert "Authorization" not in second_wire.requests[0].headers


@pytest.mark.parametrize("presigned", [True, False])
def test_an_address_is_good_whether_it_wants_the_token_or_refuses_it(hook, emulator, urls, target, presigned):
    emulator.control.configure(presigned=presigned)

    assert hook.download(urls["report_pdf"], target).media is Media.PDF
    assert emulator.control.count(Kind.ASSET) == (1 if presigned else 2)


def test_the_token_is_shown_to_no_other_origin_not_even_by_a_redirect(wire, second_wire, connect, target):
    def answer(handler):
        if "Authorization" in handler.headers:
            return handler.reply(302, Location=second_wire.url + "/file")
        return handler.reply(403)

    wire.answer = answer
    second_wire.answer = lambda handler: handler.reply(200, PDF)
    connect(wire.url)

    with QureHook() as hook:
        assert hook.download(wire.url + "/x", target).media is Media.PDF

    assert ["Authorization" in request.headers for request in wire.requests] == [False, True]
    (request,) = second_wire.requests
    assert not {"Authorization", "Source"} & set(request.headers)


def test_redirects_are_bounded(wire, connect, target):
    wire.answer = lambda handler: handler.reply(302, Location="/again")
    connect(wire.url)

    with QureHook() as hook, pytest.raises(QureRejectedError):
        hook.download(wire.url + "/x", target)
    assert len(wire.requests) == 4


def test_an_address_that_cannot_be_used_harms_only_its_file(wire, connect, target):
    connect(wire.url)

    with QureHook() as hook:
        for url in (f"http://{'a' * 70}.example/x", "http://*.example/x", "http:///x", "mailto:x", ""):
            with pytest.raises((QureRejectedError, QureTransientError)):
                hook.download(url, target)


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/x", "file:///etc/passwd", "https://[bad"])
def test_redirects_to_what_is_no_web_address_are_refused(wire, connect, target, location):
    wire.answer = lambda handler: handler.reply(302, Location=location)
    connect(wire.url)

    with QureHook() as hook, pytest.raises(QureRejectedError):
        hook.download(wire.url + "/x", target)


def test_plain_http_is_refused_where_the_service_has_tls(wire, tls_wire, connect, certificates, target):
    tls_wire.answer = lambda handler: handler.reply(302, Location=wire.url + "/x")
    connect(tls_wire.url, ca_bundle=str(certificates[0]))

    with QureHook() as hook:
        for url in (wire.url + "/x", tls_wire.url + "/x"):
            with pytest.raises(QureRejectedError, match="no TLS"):
                hook.download(url, target)
    assert not wire.requests


def test_a_public_service_cannot_send_us_into_the_building(wire, connect, target, monkeypatch):
    resolve = socket.getaddrinfo

    def public(host, *args, **kwargs):
        return resolve("8.8.8.8" if host == "qure.example" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", public)
    connect("http://qure.example", allow_plain_http=True)

    with QureHook() as hook, pytest.raises(QureRejectedError, match="private network"):
        hook.download(wire.url + "/x", target)
    assert not wire.requests


@pytest.mark.parametrize(
    ("base_url", "address", "refused"),
    [
        ("https://8.8.8.8/", "8.8.4.4", False),
        ("https://8.8.8.8/", "10.0.0.1", True),
        ("https://8.8.8.8/", "169.254.169.254", True),
        ("https://8.8.8.8/", "::1", True),
        ("https://8.8.8.8/", "::ffff:10.0.0.1", True),
        ("https://8.8.8.8/", "fe80::1%eth0", True),
        ("https://10.0.0.1/", "10.0.0.2", False),
        ("https://127.0.0.1/", "127.0.0.1", False),
        ("https://does-not-resolve.invalid/", "10.0.0.1", True),
    ],
)
def test_which_addresses_are_refused(base_url, address, refused):
    check = refuse_inward(base_url)
    if refused:
        with pytest.raises(QureRejectedError):
            check(address)
    else:
        check(address)


@pytest.mark.parametrize("tells_length", [True, False])
def test_a_file_larger_than_the_limit_is_refused_while_it_comes(wire, connect, target, tells_length):
    def answer(handler):
        if tells_length:
            return handler.reply(200, PDF)
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(PDF)
        handler.close_connection = True
        return None

    wire.answer = answer
    connect(wire.url, max_asset_bytes=1500)

    with QureHook() as hook, pytest.raises(QureRejectedError, match="max_asset_bytes"):
        hook.download(wire.url + "/x", target)
    assert len(wire.requests) == 1
    assert left_behind(target) == []


def test_a_disk_that_cannot_be_written_is_no_fault_of_the_service(wire, connect, tmp_path):
    wire.answer = lambda handler: handler.reply(200, PDF)
    connect(wire.url)
    (tmp_path / "file").write_text("in the way")

    with QureHook() as hook, pytest.raises((NotADirectoryError, FileExistsError)):
        hook.download(wire.url + "/x", tmp_path / "file" / "report")
    assert len(wire.requests) == 1


def test_a_download_again_replaces_the_file(wire, connect, target):
    contents = [PDF, PDF + b"newer"]
    wire.answer = lambda handler: handler.reply(200, contents[len(wire.requests) - 1])
    connect(wire.url)

    with QureHook() as hook:
        first, second = hook.download(wire.url + "/x", target), hook.download(wire.url + "/x", target)

    assert first.path == second.path
    assert second.path.read_bytes() == contents[1]


def test_logs_do_not_tell_addresses(hook, emulator, urls, target, caplog):
    caplog.set_level("DEBUG")
    emulator.control.inject(Answer(kind=Kind.ASSET, status=500))

    hook.download(urls["report_pdf"], target)

    told = "\n".join(record.getMessage() for record in caplog.records if record.name != "asyncio")
    assert "is tried again" in told
    assert "/assets/" not in told
    assert "expires" not in told
