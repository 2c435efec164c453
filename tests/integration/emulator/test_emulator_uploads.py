"""Taking in studies."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from emulator_images import a_ct, an_xray, read
from requests_toolbelt import MultipartEncoder

from qure_provider.emulator.model import LicenseExpired, LoseFiles
from qure_provider.emulator.settings import EmulatorSettings


def test_answers_file_by_file_and_series_by_series(client):
    xray, ct = an_xray(2), a_ct("HEAD", 3)
    answer = client.upload(xray, ct)
    body = answer.json()
    assert answer.status_code == 200
    assert (body["message"], body["status"]) == ("Success", "success")
    assert set(body["messages"]) == {"0_file_0", "0_file_1", "1_file_0", "1_file_1", "1_file_2"}
    for message in body["messages"].values():
        assert message["message"] == "DICOM registered successfully."
        assert (message["created"], message["license_expired"]) == (True, False)
        assert isinstance(message["metadata"], dict)
    assert body["series_instance_uids"] == [xray.series, ct.series]
    assert body["detailed_info"] == [
        {"SeriesInstanceUID": xray.series, "NumberOfSeriesRelatedInstances": 2},
        {"SeriesInstanceUID": ct.series, "NumberOfSeriesRelatedInstances": 3},
    ]


@pytest.mark.parametrize("path", ["/studies", "/studies/", "/upload"])
def test_every_documented_path_takes_uploads(client, path):
    assert client.upload(an_xray(), path=path).status_code == 200


def test_the_older_dialect_is_taken_with_file_paths_as_keys(client, emulator, control):
    path = "/exports/Müller 1/im age.dcm"
    content = an_xray().files["file_0"]
    encoder = MultipartEncoder({path: (path, content, "application/dicom")})
    content_type = f"multipart/related; type=application/dicom; boundary={encoder.boundary_value}"
    answer = client.session.post(
        f"{emulator.base_url}/studies", data=encoder, headers={"Content-Type": content_type}, timeout=30
    )
    assert answer.status_code == 200
    assert list(answer.json()["messages"]) == [path]
    (received,) = control.received()
    assert (received.key, received.file_name, received.dialect) == (path, path, "multipart/related")
    assert received.headers["content-type"] == "application/dicom"


def test_the_bytes_received_are_kept_as_they_came(client, control):
    xray = an_xray()
    client.upload(xray)
    content = xray.files["file_0"]
    (received,) = control.received()
    assert received.sha256 == hashlib.sha256(content).hexdigest()
    assert received.size == len(content)
    assert Path(received.path).read_bytes() == content
    assert (received.study_instance_uid, received.series_instance_uid, received.sop_instance_uid) == (
        xray.study,
        xray.series,
        xray.sop,
    )
    assert (received.request, received.registered, received.created) == (1, True, True)
    assert control.received("1.2.3") == []
    assert control.received(xray.series) == [received]


def test_only_headers_are_kept_where_that_is_set(client, control):
    control.configure(keep_received=False)
    xray = an_xray()
    client.upload(xray)
    (received,) = control.received()
    assert received.sha256 == hashlib.sha256(xray.files["file_0"]).hexdigest()
    assert Path(received.path).stat().st_size < received.size / 4
    files = client.get(f"/results/v2/{xray.sop}").json()["result"]["files"]
    for urls in files.values():
        assert client.file(urls[0]).status_code == 200


def test_what_is_no_dicom_is_said_of_that_file_alone(client, emulator, control):
    files = {"image": an_xray().files["file_0"], "notes": b"a text", "empty": b""}
    body = client.session.post(f"{emulator.base_url}/studies", files=files, timeout=30).json()
    assert body["messages"]["image"]["message"] == "DICOM registered successfully."
    for key in ("notes", "empty"):
        assert "registered" not in body["messages"][key]["message"]
        assert body["messages"][key]["created"] is False
    assert len(body["series_instance_uids"]) == 1
    assert [file.registered for file in control.received()] == [True, False, False]


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_dicom_without_its_uids_is_not_registered(client, keyword):
    xray = an_xray()
    setattr(xray.datasets[0], keyword, "")
    assert client.upload(xray).json() == {"message": "No DICOM files were uploaded!"}


@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (b"", "multipart/form-data; boundary=x"),
        (b"--x--\r\n", "multipart/form-data; boundary=x"),
        (b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nhalf', "multipart/form-data; boundary=x"),
        (b"--x\r\nno header\r\n\r\ntext\r\n--x--\r\n", "multipart/form-data; boundary=x"),
        (b"anything", "multipart/form-data; boundary=x"),
        (b"anything", "multipart/form-data"),
        (b"anything", "application/json"),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\ntext\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
    ],
)
def test_an_upload_without_dicom_is_400(client, emulator, data, content_type):
    answer = client.session.post(
        f"{emulator.base_url}/studies", data=data, headers={"Content-Type": content_type}, timeout=30
    )
    assert (answer.status_code, answer.json()) == (400, {"message": "No DICOM files were uploaded!"})


def test_more_than_the_limit_on_the_wire_is_413(client, emulator, control):
    xray = an_xray()
    client.upload(xray)
    size = control.requests("upload")[0].size
    assert size > len(xray.files["file_0"])
    control.configure(max_request_bytes=size)
    assert client.upload(xray).status_code == 200
    control.configure(max_request_bytes=size - 1)
    answer = client.upload(xray)
    assert answer.status_code == 413
    assert answer.headers["content-type"].startswith("text/html")
    assert len(control.received()) == 2
    chunked = client.session.post(f"{emulator.base_url}/studies", data=iter([b"x" * size, b"x"]), timeout=30)
    assert chunked.status_code == 413


def test_the_limit_is_100_mb():
    assert EmulatorSettings().max_request_bytes == 100_000_000


def test_the_same_image_again_is_not_created_again(client):
    xray = an_xray()
    client.upload(xray)
    body = client.upload(xray).json()
    (message,) = body["messages"].values()
    assert message["created"] is False
    assert body["detailed_info"][0]["NumberOfSeriesRelatedInstances"] == 1


@pytest.mark.parametrize(("counts", "expected"), [("held", 3), ("request", 1)])
def test_counts_either_what_is_held_or_what_came(client, control, counts, expected):
    control.configure(counts=counts)
    ct = a_ct("HEAD", 3)
    client.upload(type(ct)(ct.datasets[:2]))
    body = client.upload(type(ct)(ct.datasets[2:])).json()
    assert body["detailed_info"][0]["NumberOfSeriesRelatedInstances"] == expected


def test_messages_may_be_numbered_instead(client, control):
    control.configure(message_keys="numbered")
    assert list(client.upload(an_xray(2)).json()["messages"]) == ["file0", "file1"]


def test_the_older_answer_has_no_messages(client, control):
    control.configure(answers="older")
    assert set(client.upload(an_xray()).json()) == {"message", "series_instance_uids", "detailed_info"}


def test_unsupported_images_are_taken_unless_set_otherwise(client, control):
    mr = type(an_xray())([read("MR-SIEMENS-DICOM-WithOverlays.dcm")])
    assert client.upload(mr).status_code == 200
    control.forget_everything()
    control.configure(reject_unsupported_uploads=True)
    answer = client.upload(mr)
    assert (answer.status_code, answer.json()) == (400, {"message": "Use case not implemented."})
    assert control.resources() == []


def test_lost_files_are_acknowledged_and_not_held(client, control):
    xray = an_xray(3)
    control.inject(LoseFiles(count=1))
    body = client.upload(xray).json()
    assert [message["message"] for message in body["messages"].values()] == ["DICOM registered successfully."] * 3
    assert body["detailed_info"][0]["NumberOfSeriesRelatedInstances"] == 2
    assert client.get(f"/results/v2/{xray.sops[0]}").status_code == 200
    assert client.get(f"/results/v2/{xray.sops[2]}").status_code == 404
    assert client.upload(xray).json()["detailed_info"][0]["NumberOfSeriesRelatedInstances"] == 3


def test_lost_files_may_go_unmentioned(client, control):
    control.inject(LoseFiles(acknowledged=False))
    body = client.upload(an_xray(2)).json()
    assert (body["messages"], body["series_instance_uids"]) == ({}, [])


def test_an_expired_license_is_said_inside_a_200_and_nothing_comes_of_it(client, control):
    xray = an_xray()
    control.inject(LicenseExpired())
    answer = client.upload(xray)
    assert answer.status_code == 200
    assert [message["license_expired"] for message in answer.json()["messages"].values()] == [True]
    assert client.get(f"/results/v2/{xray.sop}").status_code == 202


def _peak(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_memory_does_not_grow_with_an_upload(tmp_path):
    port_file = tmp_path / "port"
    command = [sys.executable, "-m", "qure_provider.emulator", "--token", "T", "--source", "S"]
    command += ["--port-file", str(port_file), "--storage", str(tmp_path / "storage")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 30
        while not port_file.exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        url = f"http://127.0.0.1:{port_file.read_text().strip()}/studies"

        def upload(size):
            encoder = MultipartEncoder({"a": ("a.dcm", an_xray().files["file_0"]), "b": ("b.dcm", os.urandom(size))})
            headers = {"Authorization": "Token T", "Source": "S", "Content-Type": encoder.content_type}
            assert requests.post(url, data=encoder, headers=headers, timeout=60).status_code == 200

        upload(1_000_000)
        before = _peak(process.pid)
        upload(95_000_000)
        assert _peak(process.pid) - before < 16_000_000
    finally:
        process.terminate()
        assert process.wait(20) == 0
