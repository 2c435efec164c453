"""Starting computations."""

import time

import pytest
from emulator_images import Uploaded, a_ct, an_xray

QUEUED = {"message": "series_instance_uid successfully pushed for computation!", "success": True}


def test_a_series_is_queued_once(client):
    ct = a_ct("HEAD")
    client.upload(ct)
    first = client.get(f"/compute/{ct.series}")
    assert (first.status_code, first.json()) == (200, QUEUED)
    again = client.get(f"/compute/{ct.series}")
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("current", {"sucess": False, "message": "Resource with SeriesInstanceUID 1.2.3 is not yet uploaded!"}),
        ("older", {"success": False, "message": "Series with SeriesInstanceUID 1.2.3 is not yet uploaded!"}),
    ],
)
def test_an_unknown_series_is_404(client, control, answers, expected):
    control.configure(answers=answers)
    answer = client.get("/compute/1.2.3")
    assert (answer.status_code, answer.json()) == (404, expected)


def test_xrays_need_no_compute(client):
    xray = an_xray()
    client.upload(xray)
    assert client.get(f"/compute/{xray.series}").status_code == 304


def test_without_stability_nothing_is_computed_unasked(client):
    ct = a_ct("HEAD")
    client.upload(ct)
    answer = client.get(f"/results/{ct.series}")
    assert answer.status_code == 409
    assert answer.json()["message"].endswith(f"GET on base_url/compute/{ct.series}.")


def test_with_stability_a_quiet_series_is_computed_unasked(client, control):
    control.configure(stability=True, stability_seconds=0.2)
    ct = a_ct("HEAD")
    client.upload(ct)
    assert client.get(f"/results/{ct.series}").status_code == 202
    assert client.ready(f"/results/{ct.series}").status_code == 200
    assert client.get(f"/compute/{ct.series}").status_code == 304
    (resource,) = control.resources()
    assert resource.ready_at - control.received()[-1].at == pytest.approx(0.2)


def test_each_late_image_puts_the_quiet_time_off(client, control):
    control.configure(stability=True, stability_seconds=3)
    ct = a_ct("HEAD", 2)
    client.upload(Uploaded(ct.datasets[:1]))
    time.sleep(1.5)
    client.upload(Uploaded(ct.datasets[1:]))
    client.ready(f"/results/{ct.series}")
    (resource,) = control.resources()
    assert resource.computed_images == 2


def _grown(client):
    """A series that gained an image after it was computed."""
    ct = a_ct("HEAD", 3)
    client.upload(Uploaded(ct.datasets[:2]))
    client.get(f"/compute/{ct.series}")
    client.upload(Uploaded(ct.datasets[2:]))
    return ct


def _said(client, ct):
    return client.get(f"/results/{ct.series}").json()["result"]["report"][0]


def test_images_that_come_late_change_nothing_until_a_recompute(client, control):
    ct = _grown(client)
    assert "2 images analysed, revision 1" in _said(client, ct)
    assert client.get(f"/compute/{ct.series}", json={"recompute": False}).status_code == 304
    assert "2 images analysed, revision 1" in _said(client, ct)
    answer = client.get(f"/compute/{ct.series}", json={"recompute": True})
    assert (answer.status_code, answer.json()) == (200, QUEUED)
    assert "3 images analysed, revision 2" in _said(client, ct)
    (resource,) = control.resources()
    assert (resource.revision, resource.images, resource.computed_images) == (2, 3, 3)


def test_while_it_is_recomputed_a_result_is_under_process(client, control):
    ct = _grown(client)
    control.configure(processing_seconds=0.2)
    client.get(f"/compute/{ct.series}", json={"recompute": True})
    assert client.get(f"/results/{ct.series}").status_code == 202
    assert "revision 2" in client.ready(f"/results/{ct.series}").json()["result"]["report"][0]


def test_the_old_result_may_stay_until_the_new_one_is_ready(client, control):
    ct = _grown(client)
    control.configure(recompute="stale", processing_seconds=0.3)
    time.sleep(0.3)
    assert client.get(f"/compute/{ct.series}", json={"recompute": True}).status_code == 200
    assert "revision 1" in _said(client, ct)
    time.sleep(0.3)
    assert "revision 2" in _said(client, ct)


def test_asking_for_a_recompute_may_be_ignored(client, control):
    ct = _grown(client)
    control.configure(recompute="ignored")
    assert client.get(f"/compute/{ct.series}", json={"recompute": True}).status_code == 304
    assert "revision 1" in _said(client, ct)


@pytest.mark.parametrize("data", [b"", b"not json", b"[]", b'{"recompute": "yes"}', b'{"recompute": null}'])
def test_only_a_true_recompute_counts(client, data):
    ct = _grown(client)
    assert client.get(f"/compute/{ct.series}", data=data).status_code == 304
