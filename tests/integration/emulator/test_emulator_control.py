"""What a test can learn of what was sent, and how it steers the emulator."""

import threading
import time

import pytest
from emulator_images import a_ct, an_xray

from qure_provider.emulator.control import EmulatorControl
from qure_provider.emulator.model import Kind, Stall


def test_requests_are_counted_by_kind_status_and_uid(client, control):
    ct = a_ct("HEAD")
    client.upload(ct)
    client.get(f"/results/{ct.series}")
    client.get(f"/compute/{ct.series}")
    client.get(f"/compute/{ct.series}")
    client.get(f"/results/{ct.series}")
    client.get("/results/v2/1.2.3")
    assert control.count("upload") == 1
    assert control.count(Kind.COMPUTE) == 2
    assert control.count("compute", status=304) == 1
    assert control.count("results", uid=ct.series) == 2
    assert control.count("results", status=409, uid=ct.series) == 1
    assert control.count("results", status=404) == 1
    assert control.count("asset") == 0
    control.forget_requests()
    assert control.count("upload") == 0


def test_each_request_is_noted(client, control):
    started = time.time()
    xray = an_xray()
    client.upload(xray)
    url = client.get(f"/results/v2/{xray.sop}").json()["result"]["files"]["sc_thumbnail"][0]
    client.file(url)
    upload, results, asset = control.requests()
    assert (upload.kind, upload.path, upload.status) == (Kind.UPLOAD, "/studies/", 200)
    assert upload.size > len(xray.files["file_0"])
    assert upload.user_agent.startswith("python-requests/")
    assert (results.kind, results.uid, results.path) == (Kind.RESULTS, xray.sop, f"/results/v2/{xray.sop}")
    assert (asset.kind, asset.uid, asset.path) == (Kind.ASSET, xray.sop, "/assets")
    assert started <= upload.at <= results.at <= asset.at <= time.time()
    assert control.requests("results", xray.sop) == [results]


def test_the_peak_of_requests_under_way(client, control):
    control.inject(Stall(kind="results", seconds=0.3, times=3))
    threads = [threading.Thread(target=client.file, args=(f"{client.emulator.base_url}/results/1.2.3",)) for _ in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.get("/compute/1.2.3")
    assert control.peaks() == {"results": 3, "compute": 1}


def test_resources_tell_when_a_result_became_available(client, control):
    control.configure(processing_seconds=30)
    xray, ct = an_xray(2), a_ct("HEAD")
    client.upload(xray, ct)
    assert [resource.uid for resource in control.resources()] == [*xray.sops, ct.series]
    (late,) = control.resources(ct.series)
    assert (late.started_at, late.ready_at, late.revision) == (None, None, 0)
    first, second = control.resources(xray.study)
    assert first.ready_at == first.started_at + 30
    assert (first.images, first.revision, first.usecase) == (1, 1, "qxr")
    control.plan(second.uid, processing_seconds=1)
    assert control.resources(second.uid)[0].ready_at == second.started_at + 1


def test_a_plan_may_come_before_the_upload(client, control):
    xray = an_xray()
    control.plan(xray.study, findings=["nodule"], usecase="qmsk")
    client.upload(xray)
    assert client.get(f"/results/v2/{xray.sop}").json()["usecase"] == "qmsk"


def test_what_makes_no_sense_is_refused(control):
    with pytest.raises(ValueError, match="port"):
        control.configure(port=80)
    with pytest.raises(ValueError, match="processing_seconds"):
        control.configure(processing_seconds=-1)
    with pytest.raises(ValueError, match="no_such_setting"):
        control.configure(no_such_setting=1)
    with pytest.raises(ValueError, match="outcom"):
        control.plan("1.2.3", outcom="stuck")


def test_settings_are_told_without_the_secrets(emulator, client):
    answer = client.file(f"{emulator.base_url}/_emulator/settings")
    assert answer.json()["processing_seconds"] == 0
    assert emulator.token not in answer.text
    assert emulator.source not in answer.text


def test_everything_can_be_forgotten(client, control):
    xray = an_xray()
    client.upload(xray)
    control.plan(xray.sop, outcome="stuck")
    control.inject(Stall(kind="results"))
    control.forget_everything()
    assert (control.resources(), control.received(), control.requests(), control.pending_faults()) == ([], [], [], [])
    assert client.get(f"/results/v2/{xray.sop}").status_code == 404
    client.upload(xray)
    assert client.get(f"/results/v2/{xray.sop}").status_code == 200


def test_a_client_of_its_own_can_be_closed(emulator):
    with EmulatorControl(emulator.base_url + "/") as control:
        assert control.count("upload") == 0
