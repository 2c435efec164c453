"""The FHIR hook against a strict FHIR server, over real HTTP."""

import json
import socket
import threading
from dataclasses import replace
from datetime import datetime
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fhir_reports import IDENTITY, SYSTEM, a_report, a_result, of_patient, qct_report
from support.fhir_server import Fault, LostAnswerError, outcome, running_fhir_server

from qure_provider.api.model import Report
from qure_provider.hooks import web
from qure_provider.hooks.fhir import FhirHook, PatientNotFoundError
from qure_provider.hooks.fhir_connection import FhirMode
from qure_provider.hooks.receiver import (
    DeliveryInDoubtError,
    ReceiverRefusedError,
    ReceiverSettingsError,
    ReceiverUnavailableError,
)
from qure_provider.reports.fhir import report_parts

BIRTH = {"birthDate": "1970-01-31", "gender": "female"}
MODES = ("transaction", "single", "document")
PRIVATE = ("SIM-17", "SIMULATED", "1970", "SIM-ACC", "2.25.1001")


@pytest.fixture(scope="module")
def running():
    with running_fhir_server() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server(running):
    running.forget_everything()
    running.patient = running.admit(SYSTEM, "SIM-17", **BIRTH)
    return running


@pytest.fixture
def hook(server, monkeypatch):
    """Makes hooks with a connection to the server, or to another address."""
    made = []

    def make(url=server.url, login=None, password=None, **extra):
        settings = {"patient_identifier_system": SYSTEM, "connect_timeout": 2, "read_timeout": 5, **extra}
        fields = {"conn_type": "fhir", "host": url, "login": login, "password": password, "extra": settings}
        monkeypatch.setenv("AIRFLOW_CONN_FHIR_DEFAULT", json.dumps(fields))
        made.append(FhirHook())
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(params=MODES)
def mode(request, server):
    """What the server offers decides the mode."""
    server.behaviour.transactions = request.param == "transaction"
    if request.param == "document":
        server.behaviour.resources = ("DocumentReference",)
    return FhirMode(request.param)


def head(server):
    return next(r for kind in ("DiagnosticReport", "DocumentReference") for r in server.resources(kind))


def written(server):
    return [(method, target) for method, target, _, _ in server.seen if not target.endswith(("_search", "metadata"))]


# Each once.


def test_a_report_arrives_and_a_repeat_adds_nothing(server, hook, mode):
    first = hook().submit(a_report(a_result(), a_result("2.25.2002")))
    counts = server.counts()

    second = hook().submit(a_report(a_result(), a_result("2.25.2002")))

    assert first.mode is second.mode is mode
    assert first.resources[0] == second.resources[0]
    assert first.resources[0].startswith(f"{head(server)['resourceType']}/{head(server)['id']}/_history/1")
    assert server.counts() == counts
    expected = {"Device": 1, "Observation": 8, "DiagnosticReport": 1, "Provenance": 1}
    assert counts == {"Patient": 1, **({"DocumentReference": 1} if mode is FhirMode.DOCUMENT else expected)}
    assert head(server)["subject"] == {"reference": f"Patient/{server.patient}"}
    assert head(server)["status"] in ("partial", "current")


@pytest.mark.parametrize("status", ["partial", "preliminary"])
def test_the_status_is_that_of_the_connection(server, hook, status):
    hook(report_status=status).submit(a_report())

    assert head(server)["status"] == status


def test_pdf_and_scores_go_by_the_connection(server, hook, tmp_path):
    pdf = tmp_path / "report.pdf"
    pdf.write_bytes(b"%PDF-1.4 SIMULATED")
    report = a_report(a_result(scores={"bleed": 0.5}), pdf=pdf)

    hook(include_pdf=False, include_scores=True).submit(report)
    assert "presentedForm" not in head(server)
    assert len([o for o in server.resources("Observation") if "valueQuantity" in o]) == 1

    hook().submit(replace(report, revision=2))
    assert head(server)["presentedForm"][0]["contentType"] == "application/pdf"
    score = next(o for o in server.resources("Observation") if "valueQuantity" in o)
    assert score["status"] == "entered-in-error", "it is part of the report no longer"


def test_a_lost_answer_is_made_good_by_a_repeat_wherever_it_was_lost(server, hook, mode):
    report = a_report()
    for step in count(1):
        server.forget_everything()
        server.behaviour.transactions = mode is FhirMode.TRANSACTION
        if mode is FhirMode.DOCUMENT:
            server.behaviour.resources = ("DocumentReference",)
        server.admit(SYSTEM, "SIM-17", **BIRTH)
        lose_answer(server, step)
        try:
            hook().submit(report)
        except ReceiverUnavailableError:
            hook().submit(report)
            counts = server.counts()
            assert counts.pop("Patient") == 1
            assert set(counts.values()) <= {1, 4}
            assert counts.get("Observation", 4) == 4
        else:
            break
    assert step > {"transaction": 5, "single": 10, "document": 3}[mode]


def lose_answer(server, step):
    """Lose the answer to the so-manieth request from now."""
    plain = type(server).answer
    numbers = count(1)

    def answer(*arguments):
        result = plain(server, *arguments)
        if next(numbers) == step:
            raise LostAnswerError
        return result

    server.answer = answer


@pytest.fixture(autouse=True)
def _answers_as_ever(running):
    yield
    running.__dict__.pop("answer", None)


def test_what_a_lost_answer_was_about_can_be_asked(server, hook, mode):
    report = a_report()
    assert hook().find(report) is None

    put = hook().submit(report)

    found = hook().find(report)
    assert found.resources == put.resources[:1]
    assert hook().find(replace(report, revision=2)) is None
    hook().withdraw(report)
    assert hook().find(report) is None


TEXTS = st.text(max_size=20)
RESULTS = st.lists(
    st.builds(
        lambda uid, findings, triage: a_result(f"2.25.{uid}", triage=triage, report=Report(findings_list=findings)),
        st.integers(1, 3),
        st.lists(st.tuples(TEXTS, TEXTS), max_size=2).map(tuple),
        st.none() | TEXTS,
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda result: result.uid,
)


@given(revisions=st.lists(RESULTS, min_size=1, max_size=3), transactions=st.booleans())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_reports_say_a_repeat_leaves_as_much_as_there_was(server, hook, revisions, transactions):
    server.forget_everything()
    server.behaviour.transactions = transactions
    server.admit(SYSTEM, "SIM-17", **BIRTH)
    for revision, results in enumerate(revisions, 1):
        report = a_report(*results, revision=revision)
        receipt = hook().submit(report)
        counts = server.counts()
        assert hook().submit(report).resources[0] == receipt.resources[0]
        assert server.counts() == counts
        current = [o for o in server.resources("Observation") if o["status"] == "preliminary"]
        told = {reference["reference"] for reference in head(server)["result"]}
        assert told == {f"Observation/{observation['id']}" for observation in current}
    assert server.counts()["DiagnosticReport"] == 1
    assert server.counts()["Device"] == 1


# Revisions.


def test_a_revision_replaces_and_what_it_no_longer_says_is_marked(server, hook, mode):
    hook().submit(a_report(a_result(), a_result("2.25.2002")))

    receipt = hook().submit(a_report(a_result(report=Report(impression="SIMULATED")), revision=2))

    assert server.counts().get("DiagnosticReport", 0) + server.counts().get("DocumentReference", 0) == 1
    assert receipt.resources[0].endswith("/_history/2")
    statuses = sorted(observation["status"] for observation in server.resources("Observation"))
    assert statuses == ([] if mode is FhirMode.DOCUMENT else ["entered-in-error"] * 6 + ["preliminary"] * 2)


def test_an_older_revision_never_replaces_a_newer_one(server, hook, mode):
    hook().submit(a_report(revision=2))
    before = server.resources()

    with pytest.raises(ReceiverRefusedError, match="newer revision"):
        hook().submit(a_report(revision=1))

    assert server.resources() == before


def test_observations_of_others_are_left_alone(server, hook):
    hook().submit(a_report())
    theirs = {"resourceType": "Observation", "id": "9", "status": "final", "code": {"text": "SIMULATED"}}
    server._versions["Observation", "9"] = [{**theirs, "meta": {"versionId": "1"}}]
    report = server._versions["DiagnosticReport", head(server)["id"]][-1]
    report["result"].append({"reference": "Observation/9"})
    report["result"].append({"reference": "Observation/gone"})
    report["result"].append({"display": "a reference to nowhere"})

    hook().submit(a_report(revision=2))
    hook().withdraw(a_report(revision=2))

    assert server._versions["Observation", "9"][-1]["status"] == "final"


# Taking back.


def test_a_withdrawal_takes_all_of_it_back(server, hook, mode):
    hook().submit(a_report())

    receipt = hook().withdraw(a_report())

    assert receipt.resources[0].endswith("/_history/2")
    assert head(server)["status"] == "entered-in-error"
    assert {observation["status"] for observation in server.resources("Observation")} <= {"entered-in-error"}
    versions = server.versions(head(server)["resourceType"])
    again = hook().withdraw(a_report())
    assert set(again.resources) == set(receipt.resources)
    assert server.versions(head(server)["resourceType"]) == versions


def test_a_withdrawn_report_stays_so_until_there_is_a_newer_revision(server, hook, mode):
    hook().submit(a_report())
    hook().withdraw(a_report())

    with pytest.raises(ReceiverRefusedError, match="taken back"):
        hook().submit(a_report())
    assert head(server)["status"] == "entered-in-error"

    hook().submit(a_report(revision=2))
    assert head(server)["status"] in ("partial", "current")


def test_what_never_arrived_need_not_be_taken_back(server, hook, mode):
    assert hook().withdraw(a_report()).resources == ()
    assert server.counts() == {"Patient": 1}


def test_a_report_is_taken_back_even_if_the_patient_is_no_longer_found(server, hook):
    hook().submit(a_report())

    hook().withdraw(of_patient(a_report(), patient_id="SIM-OTHER"))

    assert head(server)["status"] == "entered-in-error"


def test_a_report_is_taken_back_however_it_was_put(server, hook):
    server.behaviour.transactions = False
    hook(mode="document").submit(a_report())

    hook().withdraw(a_report())

    assert head(server)["resourceType"] == "DocumentReference"
    assert head(server)["status"] == "entered-in-error"


def test_a_report_is_taken_back_without_leave_to_look_for_it_elsewhere(server, hook, caplog):
    hook().submit(a_report())
    server.faults.append(Fault("POST", "DocumentReference/_search", status=403))

    hook().withdraw(a_report())

    assert head(server)["status"] == "entered-in-error"
    assert "Not looked for as DocumentReference" in caplog.text


# The right patient or no one.


def held(hook, report):
    with pytest.raises(PatientNotFoundError) as caught:
        hook.submit(report)
    assert not any(private in str(caught.value) for private in PRIVATE)
    return str(caught.value)


def test_an_unknown_patient_is_held(server, hook, mode):
    said = held(hook(), of_patient(a_report(), patient_id="SIM-99"))

    assert "no patient with exactly" in said
    assert server.counts() == {"Patient": 1}
    assert written(server) == []


def test_two_patients_with_one_id_are_held(server, hook):
    server.admit(SYSTEM, "SIM-17", **BIRTH)

    assert "several patients" in held(hook(), a_report())


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"birthDate": "1970-01-30"}, "birth date"),
        ({"gender": "male"}, "sex"),
        ({"active": False}, "no longer in use"),
    ],
)
def test_a_patient_id_that_is_another_persons_now_is_held(server, hook, more, named):
    server.admit(SYSTEM, "SIM-18", **{**BIRTH, **more})

    assert named in held(hook(), of_patient(a_report(), patient_id="SIM-18"))
    assert written(server) == []


def test_a_merged_patient_is_held(server, hook):
    link = [{"type": "replaced-by", "other": {"reference": f"Patient/{server.patient}"}}]
    server.admit(SYSTEM, "SIM-18", **BIRTH, link=link)

    assert "replaced" in held(hook(), of_patient(a_report(), patient_id="SIM-18"))


def test_a_server_that_ignores_the_search_gives_no_patient_away(server, hook):
    server.behaviour.ignores_searches = True

    assert "exactly" in held(hook(), of_patient(a_report(), patient_id="SIM-18"))


def test_more_pages_of_patients_are_more_patients(server, hook):
    server.behaviour.pages = True

    assert "several" in held(hook(), a_report())


def test_a_study_without_patient_id_is_held_without_asking(server, hook):
    assert "no patient ID" in held(hook(mode="transaction"), of_patient(a_report(), patient_id=""))
    assert server.seen == []


def test_an_issuer_decides_the_system(server, hook):
    other = server.admit("urn:oid:1.2.3.9", "SIM-17", **BIRTH)
    of_a = replace(IDENTITY, issuer_of_patient_id="HOSPITAL A")
    systems = {"HOSPITAL A": "urn:oid:1.2.3.9"}

    assert hook(patient_identifier_systems=systems).find_patient(of_a) == f"Patient/{other}"
    assert hook(patient_identifier_systems=systems).find_patient(IDENTITY) == f"Patient/{server.patient}"
    unknown = of_patient(a_report(), issuer_of_patient_id="HOSPITAL B")
    assert "patient_identifier_systems" in held(hook(patient_identifier_systems=systems), unknown)


@pytest.mark.parametrize("patient_id", ["a|b", "a,b", "a$b", "a\\b", "\\", "ü &=+%41", "a'b\"", "SIM-17,SIM-18"])
def test_any_patient_id_is_looked_up_as_it_is(server, hook, patient_id):
    there = server.admit(SYSTEM, patient_id)

    assert hook().find_patient(replace(IDENTITY, patient_id=patient_id)) == f"Patient/{there}"


def test_blanks_around_a_patient_id_mean_nothing(server, hook):
    of_a = replace(IDENTITY, patient_id=" SIM-17 ", issuer_of_patient_id="A ")

    assert hook(patient_identifier_systems={"A": SYSTEM}).find_patient(of_a) == f"Patient/{server.patient}"


def test_patient_ids_are_in_no_address(server, hook):
    hook().submit(a_report())

    assert not any("SIM-17" in target for _, target, _, _ in server.seen)


def test_a_report_does_not_move_from_one_patient_to_another(server, hook, mode):
    hook().submit(a_report())
    server.admit(SYSTEM, "SIM-18", **BIRTH)

    assert "another patient's record" in held(hook(), of_patient(a_report(revision=2), patient_id="SIM-18"))
    assert head(server)["subject"] == {"reference": f"Patient/{server.patient}"}


# Servers as they are.


def test_what_a_server_does_not_say_is_asked_for(server, hook, mode):
    server.behaviour.says_where = False

    receipt = hook().submit(a_report())

    assert receipt.resources[0].startswith(f"{head(server)['resourceType']}/{head(server)['id']}/_history/1")
    counts = server.counts()
    hook().submit(a_report())
    assert server.counts() == counts


def test_locations_may_be_absolute(server, hook, mode):
    server.behaviour.absolute_locations = True

    assert hook().submit(a_report()).resources[0] == f"{head(server)['resourceType']}/{head(server)['id']}/_history/1"


def test_a_report_that_vanishes_is_in_doubt(server, hook):
    server.behaviour.says_where = False
    plain = type(server).answer

    def forgetful(method, target, headers, body):
        answer = plain(server, method, target, headers, body)
        if method == "POST" and target == "/fhir/":
            server._versions.pop(("DiagnosticReport", head(server)["id"]))
        return answer

    server.answer = forgetful

    with pytest.raises(DeliveryInDoubtError):
        hook().submit(a_report())


def test_a_device_that_two_deliveries_made_at_once_blocks_nobody(server, hook):
    hook().submit(a_report())
    twin = {key: value for key, value in server.resources("Device")[0].items() if key not in ("id", "meta")}
    server._versions["Device", "twin"] = [{**twin, "id": "twin", "meta": {"versionId": "1"}}]
    other = of_patient(a_report(), study_instance_uid="2.25.1002")

    hook().submit(other)
    hook().submit(other)

    assert server.counts()["Device"] == 2
    assert len({observation["device"]["reference"] for observation in server.resources("Observation")}) <= 2


def test_two_reports_with_our_number_are_refused_with_what_to_do(server, hook):
    hook().submit(a_report())
    twin = server.resources("DiagnosticReport")[0]
    server._versions["DiagnosticReport", "twin"] = [{**twin, "id": "twin"}]

    with pytest.raises(ReceiverRefusedError, match="Remove all but one"):
        hook().submit(a_report())


def test_a_server_that_takes_no_provenance_gets_the_rest(server, hook):
    server.behaviour.resources = ("Device", "Observation", "DiagnosticReport")

    hook().submit(a_report())

    assert server.counts() == {"Device": 1, "DiagnosticReport": 1, "Observation": 4, "Patient": 1}
    assert "no Provenance" in hook().test_connection()[1]


def test_a_server_with_no_way_to_put_a_report_once_is_named(server, hook):
    server.behaviour.conditional = False

    with pytest.raises(ReceiverSettingsError, match="CapabilityStatement"):
        hook().submit(a_report())
    with pytest.raises(ReceiverRefusedError, match="412"):
        hook(mode="single").submit(a_report())
    assert server.counts() == {"Patient": 1}


def test_a_refused_transaction_is_put_one_by_one(server, hook, caplog):
    body = json.dumps(outcome("too-costly", "too many entries for SIMULATED^PATIENT")).encode()
    server.faults.append(Fault("POST", "", status=400, body=body, times=2))

    receipt = hook().submit(a_report())

    assert receipt.mode is FhirMode.SINGLE
    assert server.counts()["DiagnosticReport"] == 1
    assert "too-costly" in caplog.text
    with pytest.raises(ReceiverRefusedError, match="too-costly"):
        hook(mode="transaction").submit(a_report())


def test_entries_that_were_refused_in_a_transaction_that_was_taken_are_seen(server, hook):
    entry = {"response": {"status": "422 Unprocessable", "outcome": outcome("invariant", "of SIMULATED^PATIENT")}}
    bundle = {"resourceType": "Bundle", "type": "transaction-response", "entry": [entry]}
    server.faults.append(Fault("POST", "", status=200, body=json.dumps(bundle).encode()))

    with pytest.raises(ReceiverRefusedError, match=r"422 \(invariant\)"):
        hook().submit(a_report())


def test_a_transaction_that_is_answered_by_halves_is_tried_again(server, hook):
    bundle = {"resourceType": "Bundle", "type": "transaction-response", "entry": []}
    server.faults.append(Fault("POST", "", status=200, body=json.dumps(bundle).encode()))

    with pytest.raises(ReceiverUnavailableError, match="every entry"):
        hook().submit(a_report())


# What goes wrong.


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (302, ReceiverSettingsError),
        (400, ReceiverRefusedError),
        (401, ReceiverSettingsError),
        (403, ReceiverSettingsError),
        (404, ReceiverSettingsError),
        (405, ReceiverSettingsError),
        (408, ReceiverUnavailableError),
        (409, ReceiverUnavailableError),
        (412, ReceiverRefusedError),
        (413, ReceiverRefusedError),
        (422, ReceiverRefusedError),
        (429, ReceiverUnavailableError),
        (500, ReceiverUnavailableError),
        (501, ReceiverSettingsError),
        (503, ReceiverUnavailableError),
    ],
)
def test_every_refusal_is_of_its_kind_and_readable_without_patient_data(server, hook, status, error):
    said = outcome("invariant", "SIMULATED^PATIENT of 1970 has SIM-17", ["DiagnosticReport.subject", "SIM-17"])
    server.faults.append(Fault("POST", "", status=status, body=json.dumps(said).encode()))

    with pytest.raises(error) as caught:
        hook(mode="transaction").submit(a_report())

    assert f"the server answered {status} (invariant at DiagnosticReport.subject)" in str(caught.value)
    assert not any(private in str(caught.value) for private in PRIVATE)


def test_strict_validation_is_named_by_place(server, hook, monkeypatch):
    def unlabelled(*arguments):
        parts = report_parts(*arguments)
        for part in parts:
            part.resource.get("meta", {}).pop("security", None)
        return parts

    monkeypatch.setattr("qure_provider.hooks.fhir.report_parts", unlabelled)

    with pytest.raises(ReceiverRefusedError, match=r"422 \(business-rule at Observation.meta.security\)"):
        hook().submit(a_report())


@pytest.mark.parametrize("body", [b"<html>log in</html>", b"[]", b"{", b'{"resourceType": "Patient"}', b""])
def test_what_is_no_fhir_server_is_named(server, hook, body):
    server.faults.append(Fault("GET", "metadata", status=200, body=body, times=2))

    with pytest.raises(ReceiverSettingsError, match="not as a FHIR server does"):
        hook().submit(a_report())
    assert hook().test_connection()[0] is False


def test_of_a_report_that_cannot_be_written_nothing_is_sent(server, hook, mode):
    with pytest.raises(ValueError, match="zone"):
        hook().submit(a_report(issued=datetime(2026, 1, 2)))  # noqa: DTZ001
    assert server.counts() == {"Patient": 1}


def test_another_version_of_fhir_is_named(server, hook):
    server.behaviour.fhir_version = "5.0.0"

    with pytest.raises(ReceiverSettingsError, match="R4"):
        hook().submit(a_report())


def test_a_server_that_is_down_is_unavailable(hook):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/fhir"
    with pytest.raises(ReceiverUnavailableError):
        hook(url).submit(a_report())


def test_a_server_that_says_nothing_is_unavailable(server, hook):
    server.faults.append(Fault("POST", "", seconds=1.5))

    with pytest.raises(ReceiverUnavailableError, match="silent"):
        hook(read_timeout=0.3).submit(a_report())


def test_logs_and_errors_hold_no_patient_data(server, hook, caplog):
    caplog.set_level("DEBUG")
    hook().submit(a_report())
    hook().withdraw(a_report())

    assert "Put report" in caplog.text
    for private in (*PRIVATE, server.patient, "QURE"):
        assert private not in caplog.text


# Who we are.


def test_basic(server, hook):
    server.behaviour.basic = "üser:pa:ss"

    hook(login="üser", password="pa:ss").submit(a_report())

    with pytest.raises(ReceiverSettingsError, match="401"):
        hook(login="üser", password="wrong").submit(a_report())
    with pytest.raises(ReceiverSettingsError, match="401"):
        hook().submit(a_report())


def test_oauth2_tokens_are_asked_for_once_and_again_when_they_end(server, hook):
    server.behaviour.client = "client:s3cret"
    settings = {"auth": "oauth2", "token_url": f"{server.url}token", "login": "client", "password": "s3cret"}
    one = hook(**settings)

    one.submit(a_report())
    assert asked_for_tokens(server) == 1
    server.revoke_tokens()
    one.submit(a_report())
    assert asked_for_tokens(server) == 2
    server.behaviour.token_seconds = 0
    other = hook(**settings)
    other.find_patient(IDENTITY)
    other.find_patient(IDENTITY)
    assert asked_for_tokens(server) == 4


def asked_for_tokens(server):
    return sum(target == "/fhir/token" for _, target, _, _ in server.seen)


def test_a_token_serves_a_bearer_too(server, hook):
    server.behaviour.client = "client:s3cret"
    server._tokens.add("t0ken")

    hook(auth="bearer", password="t0ken").submit(a_report())

    assert server.counts()["DiagnosticReport"] == 1


def test_a_wrong_client_secret_is_named(server, hook):
    server.behaviour.client = "client:s3cret"
    settings = {"auth": "oauth2", "token_url": f"{server.url}token", "login": "client", "password": "hunter2"}

    with pytest.raises(ReceiverSettingsError, match=r"401 \(invalid_client\)") as caught:
        hook(**settings).submit(a_report())

    assert "hunter2" not in str(caught.value)


def test_a_token_endpoint_that_is_down_is_unavailable(server, hook):
    server.behaviour.client = "client:s3cret"
    server.faults.append(Fault("POST", "token", status=503))
    settings = {"auth": "oauth2", "token_url": f"{server.url}token", "login": "client", "password": "s3cret"}

    with pytest.raises(ReceiverUnavailableError, match="503"):
        hook(**settings).find_patient(IDENTITY)


def test_credentials_are_shown_to_nobody_else(server, hook):
    with running_fhir_server() as other:
        hook(login="user", password="pass").get_conn().get(f"{other.url}metadata")

        assert all("Authorization" not in headers for _, _, headers, _ in other.seen)


# Before anything is sent.


def test_a_dry_run_asks_and_writes_exactly_what_would_be_sent(server, hook, mode):
    report = qct_report()
    rendered = hook().render(report)

    assert written(server) == []
    assert server.counts() == {"Patient": 1}
    hook().submit(report)
    bodies = [json.loads(body) for method, target, _, body in server.seen if (method, target) in written(server)]
    if mode is FhirMode.TRANSACTION:
        assert bodies == [rendered]
    else:
        assert rendered["type"] == "batch"
        assert [body["resourceType"] for body in bodies] == [e["resource"]["resourceType"] for e in rendered["entry"]]
    versions = server.resources()
    withdrawal = hook().render(report, withdrawn=True)
    assert server.resources() == versions
    assert {entry["resource"]["status"] for entry in withdrawal["entry"]} == {"entered-in-error"}


# The Test button.


def test_the_test_says_how_reports_will_be_put(server, hook, mode):
    fine, said = hook().test_connection()

    assert fine
    words = {"transaction": "one transaction", "single": "one conditional request", "document": "DocumentReference"}
    assert words[mode] in said
    assert server.counts() == {"Patient": 1}


def test_the_test_needs_credentials_although_the_statement_does_not(server, hook):
    server.behaviour.basic = "user:pass"

    fine, said = hook(login="user", password="wrong").test_connection()

    assert not fine
    assert "credentials" in said


def test_the_test_names_a_wrong_field(hook):
    fine, said = hook(patient_identifier_system="").test_connection()

    assert not fine
    assert "patient_identifier_system" in said


def test_the_test_ends_within_its_time(server, hook, monkeypatch):
    monkeypatch.setattr(web, "TEST_SECONDS", 0.3)
    server.faults.append(Fault("GET", "metadata", seconds=1.0))

    fine, said = hook().test_connection()

    assert not fine
    assert "No whole answer" in said
    for thread in threading.enumerate():
        if thread.name == "receiver-test":
            thread.join()
