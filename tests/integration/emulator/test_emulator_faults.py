"""What can be made to go wrong, and that nothing else does."""

import http.client
import json
import socket
import threading
import time

import pytest
import requests
from emulator_images import a_ct, an_xray

from qure_provider.emulator.model import Answer, At, Drip, MissingFiles, Oversize, Reset, Stall, Truncate


@pytest.fixture
def xray(client):
    xray = an_xray()
    client.upload(xray)
    return xray


@pytest.fixture
def ask(client, xray):
    return lambda **arguments: client.get(f"/results/v2/{xray.sop}", **arguments)


def test_an_answer_comes_instead_of_the_true_one_so_many_times(ask, control):
    control.inject(Answer(kind="results", status=503, headers={"Retry-After": "7"}, body="busy", times=2))
    answers = [ask() for _ in range(3)]
    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert (answers[0].headers["Retry-After"], answers[0].text) == ("7", "busy")
    assert control.pending_faults() == []


def test_faults_strike_in_the_order_they_were_switched_on(ask, control):
    control.inject(Answer(kind="results", status=500))
    control.inject(Answer(kind="results", status=502))
    assert [ask().status_code for _ in range(3)] == [500, 502, 200]


def test_a_fault_can_let_some_pass_first_and_can_go_on(ask, control):
    control.inject(Answer(kind="results", status=429, skip=1, times=None))
    assert [ask().status_code for _ in range(4)] == [200, 429, 429, 429]
    control.clear_faults()
    assert ask().status_code == 200


def test_a_fault_strikes_its_kind_and_uid_only(client, control):
    first, second = an_xray(), an_xray()
    client.upload(first, second)
    control.inject(Answer(kind="results", uid=second.study, status=500))
    assert client.get("/compute/1.2.3").status_code == 404
    assert client.get(f"/results/v2/{first.sop}").status_code == 200
    assert client.get(f"/results/v2/{second.sop}").status_code == 500
    control.inject(Answer(kind="upload", uid=first.series, status=500))
    assert client.upload(second).status_code == 200
    assert client.upload(first).status_code == 500


def test_html_and_json_of_the_wrong_shape(ask, control):
    control.inject(Answer(kind="results", status=200, body="<html>Please log in</html>"))
    assert ask().headers["content-type"].startswith("text/html")
    control.inject(Answer(kind="results", status=200, json_body=["not", "an", "object"]))
    assert ask().json() == ["not", "an", "object"]
    control.inject(Answer(kind="results", status=200, body="{", headers={"Content-Type": "application/json"}))
    answer = ask()
    assert (answer.text, answer.headers["content-type"]) == ("{", "application/json")


def test_a_refused_upload_was_not_carried_out_and_a_failed_one_may_have_been(client, control):
    ct = a_ct("HEAD", 1)
    control.inject(Answer(kind="upload", status=502))
    assert client.upload(ct).status_code == 502
    assert control.resources() == []
    control.inject(Answer(kind="upload", status=502, at=At.ANSWER))
    assert client.upload(ct).status_code == 502
    assert len(control.resources(ct.series)) == 1


@pytest.mark.parametrize("at", [At.REQUEST, At.ANSWER])
def test_a_reset_before_the_answer(client, control, at):
    xray = an_xray()
    control.inject(Reset(kind="upload", at=at, after_bytes=1000))
    with pytest.raises(requests.ConnectionError):
        client.upload(xray)
    assert len(control.resources()) == (at is At.ANSWER)
    assert control.count("upload", status=0) == 1
    assert client.upload(xray).status_code == 200


def test_a_reset_is_a_reset(emulator, control, xray):
    control.inject(Reset(kind="results"))
    host, port = emulator.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"GET /results/{xray.sop} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_a_reset_in_the_middle_of_the_body(client, control, xray):
    url = client.get(f"/results/v2/{xray.sop}").json()["result"]["files"]["sc"][0]
    control.inject(Reset(kind="asset", at=At.BODY, after_bytes=5000))
    with client.file(url, stream=True) as answer:
        assert answer.status_code == 200
        chunks = []
        with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
            chunks.extend(answer.iter_content(1000))
    assert 0 < sum(map(len, chunks)) <= 5000
    assert client.file(url).status_code == 200


@pytest.mark.parametrize("after_bytes", [None, 10])
def test_a_truncated_body_ends_in_an_orderly_way(emulator, control, xray, after_bytes):
    control.inject(Truncate(kind="results", after_bytes=after_bytes))
    connection = http.client.HTTPConnection(emulator.base_url.removeprefix("http://"), timeout=10)
    connection.request("GET", f"/results/v2/{xray.sop}", headers={**emulator.headers, "User-Agent": "x"})
    answer = connection.getresponse()
    whole = int(answer.headers["content-length"])
    with pytest.raises(http.client.IncompleteRead) as caught:
        answer.read()
    assert len(caught.value.partial) == (whole // 2 if after_bytes is None else after_bytes)


def test_a_stall_ends(ask, control):
    control.inject(Stall(kind="results", seconds=0.4))
    started = time.monotonic()
    assert ask().status_code == 200
    assert time.monotonic() - started >= 0.4


@pytest.mark.parametrize("at", list(At))
def test_a_stall_without_end_lasts_until_the_client_gives_up(client, xray, control, at):
    control.inject(Stall(kind="results", at=at))
    with pytest.raises((requests.Timeout, requests.ConnectionError)):
        client.session.get(f"{client.emulator.base_url}/results/v2/{xray.sop}", timeout=0.3)
    until = time.monotonic() + 5
    while not [record for record in control.requests("results") if record.fault == "stall"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert client.get(f"/results/v2/{xray.sop}").status_code == 200


def test_a_stalled_upload_holds_nobody_else(client, control, xray):
    control.inject(Stall(kind="upload", at=At.REQUEST, seconds=1))
    other = an_xray()
    uploading = threading.Thread(target=client.upload, args=(other,))
    uploading.start()
    time.sleep(0.2)
    assert client.get(f"/results/v2/{xray.sop}").status_code == 200
    assert client.get(f"/results/v2/{other.sop}").status_code == 404
    uploading.join(10)
    assert client.get(f"/results/v2/{other.sop}").status_code == 200


def test_a_slow_drip_comes_whole(ask, control):
    whole = len(ask().content)
    control.inject(Drip(kind="results", chunk=whole // 4, seconds=0.1))
    started = time.monotonic()
    answer = ask()
    assert time.monotonic() - started >= 0.3
    assert answer.json()["usecase"] == "qxr"
    assert len(answer.content) == pytest.approx(whole, abs=50)


def test_an_oversized_answer(ask, control):
    control.inject(Oversize(kind="results", size=3_000_000))
    answer = ask()
    assert len(answer.content) > 3_000_000
    assert json.loads(answer.content)["usecase"] == "qxr"


def test_files_missing_from_a_result_come_back(ask, control):
    control.inject(MissingFiles(kinds=["sc", "report_sr"]))
    control.inject(MissingFiles())
    first, second, third = (set(ask().json()["result"]["files"]) for _ in range(3))
    assert third - first == {"sc", "report_sr"}
    assert second == set()


def test_a_fault_comes_before_the_token_is_looked_at(client, control):
    control.inject(Answer(kind="results", status=502))
    assert client.get("/results/1.2.3", headers={"Authorization": None}).status_code == 502
