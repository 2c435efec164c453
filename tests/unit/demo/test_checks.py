import hashlib
import json
import smtplib
import time
from dataclasses import replace

import pytest
import requests

from demo import checks
from demo.checks import StoredResult
from demo.export import make_export
from demo.hospital import Hospital, Mail
from demo.receivers import start_mail
from qure_provider.api.model import Route
from qure_provider.dicom.model import Fate
from qure_provider.emulator.server import running_emulator
from qure_provider.emulator.settings import EmulatorSettings

NIGHT = "2026-01-15"


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    return make_export(tmp_path_factory.mktemp("exports") / NIGHT, night=NIGHT, studies=1, small=True)


@pytest.fixture
def store(facts, tmp_path):
    """A store that holds what should be there."""
    for resource in facts.resources:
        folder = tmp_path / "studies" / resource.uid
        folder.mkdir(parents=True)
        (folder / "sc.dcm").write_bytes(b"SIMULATED")
        asset = {"name": "sc.dcm", "media": "application/dicom", "sha256": hashlib.sha256(b"SIMULATED").hexdigest()}
        result = {
            "uid": resource.uid,
            "route": resource.route.value,
            "outcome": "ready",
            "usecase": resource.product,
            "triage": resource.triage,
            "study_instance_uid": resource.study_instance_uid,
            "series_instance_uid": resource.series_instance_uid,
            "assets": [asset],
        }
        (folder / "result.json").write_text(json.dumps(result))
    return tmp_path


def problems(facts, store):
    return list(checks.check_results(facts, checks.stored_results(store)))


def change(store, resource, **values):
    path = store / "studies" / resource.uid / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_nothing_is_said_of_a_night_that_came_out_as_it_had_to(facts, store):
    assert problems(facts, store) == []
    assert list(checks.check_sums(facts, {"found": facts.found, **facts.sums})) == []
    passed_over = {file.path: file.fate.value for file in facts.files if file.fate is not Fate.SELECTED}
    assert list(checks.check_fates(facts, passed_over)) == []


def test_a_sum_that_is_off_is_named(facts):
    sums = {"found": facts.found, **facts.sums}
    off, *_ = checks.check_sums(facts, {**sums, "selected": sums["selected"] - 1})
    assert "do not add up" in off


def test_sums_that_add_up_to_another_export_are_named(facts):
    sums = {"found": facts.found, **facts.sums}
    moved = {**sums, "selected": sums["selected"] - 1, "quarantined": sums["quarantined"] + 1}
    assert [problem.split(":")[0] for problem in checks.check_sums(facts, moved)] == ["selected", "quarantined"]


def test_a_file_with_another_fate_is_named(facts):
    passed_over = {file.path: file.fate.value for file in facts.files if file.fate is not Fate.SELECTED}
    del passed_over["truncated.dcm"]
    passed_over["IM_0001"] = "quarantined"
    said = list(checks.check_fates(facts, passed_over))
    assert sorted(said) == [
        "a file (lower leg X-ray) was quarantined instead of selected",
        "a file (truncated image) was selected instead of quarantined",
    ]


def test_a_missing_report_is_named(facts, store):
    (store / "studies" / facts.resources[3].uid / "result.json").unlink()
    assert problems(facts, store) == [f"{facts.resources[3].what}: 0 results in the store instead of one"]


def test_a_report_that_nothing_was_exported_for_is_named(facts, store):
    fewer = replace(facts, resources=facts.resources[1:])
    assert problems(fewer, store) == ["1 results in the store that nothing was exported for"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("triage", "Routine"),
        ("usecase", "qct"),
        ("outcome", "timed out"),
        ("study_instance_uid", "1.2.3"),
        ("route", "xray"),
    ],
)
def test_a_report_that_says_something_else_is_named(facts, store, name, value):
    (urgent,) = facts.urgent
    change(store, urgent, **{name: value})
    (said,) = problems(facts, store)
    assert f"{name} is {value!r}" in said


def test_a_damaged_file_and_a_missing_one_are_named(facts, store):
    (store / "studies" / facts.resources[0].uid / "sc.dcm").write_bytes(b"other")
    (store / "studies" / facts.resources[1].uid / "sc.dcm").unlink()
    change(store, facts.resources[2], assets=[])
    said = problems(facts, store)
    assert ["checksum" in said[0], "is missing" in said[1], "no DICOM object" in said[2]] == [True] * 3
    assert len(said) == 3


@pytest.fixture
def service():
    with running_emulator(EmulatorSettings(processing_seconds=0, keep_received=False)) as service:
        yield service


def send(facts, service, paths):
    files = [(path, (facts.folder / path).read_bytes()) for path in paths]
    requests.post(f"{service.base_url}/studies/", files=files, headers=service.headers, timeout=30).raise_for_status()


def compute(facts, service):
    for resource in facts.resources:
        if resource.route is Route.CT:
            url = f"{service.base_url}/compute/{resource.uid}"
            requests.get(url, headers=service.headers, timeout=30).raise_for_status()


def test_what_the_service_saw_is_compared(facts, service):
    selected = [file.path for file in facts.files if file.fate is Fate.SELECTED]
    send(facts, service, selected)
    said = list(checks.check_requests(facts, service.control))
    assert [problem.endswith("computation was asked for 0 times") for problem in said] == [True] * 3
    compute(facts, service)
    assert list(checks.check_requests(facts, service.control)) == []
    send(facts, service, ["MR/0001.dcm", selected[0]])
    (said,) = checks.check_requests(facts, service.control)
    assert said.startswith("2 files reached the service that were not selected")


def test_a_file_that_was_not_sent_is_named(facts, service):
    selected = [file.path for file in facts.files if file.fate is Fate.SELECTED]
    send(facts, service, selected[1:])
    compute(facts, service)
    (said,) = checks.check_requests(facts, service.control)
    assert said.startswith("1 selected files never reached the service")


def test_alerts_are_compared_with_what_was_urgent(tmp_path):
    def stored(uid, meaning):
        return StoredResult(tmp_path / uid, {"uid": uid, "meaning": meaning})

    results = [stored("1.1", "urgent"), stored("1.2", "abnormal")]
    keys, had = {"1.1": "aaaa", "1.2": "bbbb"}, {"1.1": 100.0, "1.2": 100.0}

    def said(*mails):
        times = checks.alert_times(results, keys, tmp_path, had, mails)
        return times, list(checks.check_alerts(results, times, mails))

    assert said(Mail(107.0, "study aaaa")) == ({"1.1": 7.0}, [])
    assert said() == ({}, ["0 alerts came of 1 urgent results", "nobody was told of an urgent result"])
    assert said(Mail(101.0, "study bbbb"))[1] == ["nobody was told of an urgent result"]
    assert said(Mail(107.0, "aaaa"), Mail(108.0, "aaaa"))[1] == ["2 alerts came of 1 urgent results"]
    assert said(Mail(300.0, "aaaa"))[1] == ["an alert came 200 s after the service had the result"]


def test_a_mail_is_kept_with_the_time_at_which_it_came(tmp_path):
    port = start_mail(tmp_path / "mail")
    began = time.time()
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
        client.sendmail(
            "a@x.example", ["duty@x.example"], "Subject: AI result\r\nContent-Type: text/html\r\n\r\nurgent"
        )
    hospital = Hospital(tmp_path, 0, "", 0, port, "")
    (mail,) = hospital.mails()
    assert began - 1 <= mail.at <= time.time() + 1
    assert mail.text == "AI result\nurgent"
