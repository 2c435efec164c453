"""Compute, results and the Test button, against the running emulator and a scripted one."""

import time

import pytest
import requests

from qure_provider.api.errors import QureRejectedError, QureSettingsError, QureTransientError
from qure_provider.api.model import Outcome, ResourceRef, Route
from qure_provider.emulator.model import Answer, At, Drip, Kind, Oversize, PlannedOutcome, Reset, Stall, Truncate
from qure_provider.emulator.settings import Answers, Recompute
from qure_provider.hooks import transport
from qure_provider.hooks.qure import QureHook


@pytest.fixture
def series(hook, exports):
    files = exports.series(2)
    assert len(hook.upload(files).acknowledged) == 2
    return ResourceRef(files[0].series_instance_uid, Route.CT)


@pytest.fixture
def image(hook, exports):
    (file,) = exports.series(1, "DX")
    assert len(hook.upload([file]).acknowledged) == 1
    return ResourceRef(file.sop_instance_uid, Route.XRAY)


def test_a_ct_series_goes_from_not_computed_to_ready(hook, emulator, series):
    assert hook.result(series).outcome is Outcome.NOT_COMPUTED
    emulator.control.configure(processing_seconds=60)
    assert hook.compute(series.uid).queued
    assert hook.compute(series.uid).already_queued
    assert hook.result(series).outcome is Outcome.PENDING
    emulator.control.configure(processing_seconds=0)

    answer = hook.result(series)

    assert answer.outcome is Outcome.READY
    assert answer.files


def test_recompute_is_asked_for_only_when_wanted(hook, emulator, series):
    emulator.control.configure(recompute=Recompute.NEW)

    assert hook.compute(series.uid).queued
    assert hook.compute(series.uid).already_queued
    assert hook.compute(series.uid, recompute=True).queued


def test_what_was_never_uploaded_is_an_answer(hook):
    assert hook.compute("1.2.3").not_uploaded
    assert hook.result(ResourceRef("1.2.3", Route.CT)).outcome is Outcome.NOT_UPLOADED
    assert hook.result(ResourceRef("1.2.3", Route.XRAY)).outcome is Outcome.NOT_UPLOADED


@pytest.mark.parametrize(("version", "path"), [("v2", "/results/v2/"), ("v1", "/results/")])
def test_xrays_are_asked_at_the_endpoint_that_was_chosen(reconnect, emulator, image, version, path):
    answer = reconnect(xray_results=version).result(image)

    assert answer.outcome is Outcome.READY
    assert emulator.control.requests(Kind.RESULTS)[-1].path == f"{path}{image.uid}"


@pytest.mark.parametrize("generation", [Answers.OLDER, Answers.LEGACY])
def test_older_generations_are_understood(reconnect, emulator, image, generation):
    emulator.control.configure(answers=generation)

    assert reconnect(xray_results="v1").result(image).outcome is Outcome.READY


@pytest.mark.parametrize(
    ("planned", "outcome"),
    [
        (PlannedOutcome.STUCK, Outcome.PENDING),
        (PlannedOutcome.INVALID, Outcome.INVALID),
        (PlannedOutcome.UNSUPPORTED, Outcome.UNSUPPORTED),
        (PlannedOutcome.DENIED, Outcome.DENIED),
    ],
)
def test_every_outcome_comes_through(hook, emulator, image, planned, outcome):
    emulator.control.plan(image.uid, outcome=planned)

    assert hook.result(image).outcome is outcome


@pytest.mark.parametrize(
    "fault",
    [
        Answer(kind=Kind.RESULTS, status=500),
        Answer(kind=Kind.RESULTS, status=429, headers={"Retry-After": "0"}),
        Answer(kind=Kind.RESULTS, status=200, body="<html>"),
        Reset(kind=Kind.RESULTS),
        Reset(kind=Kind.RESULTS, at=At.BODY, after_bytes=5),
        Truncate(kind=Kind.RESULTS),
    ],
    ids=lambda fault: fault.effect,
)
def test_what_passes_is_tried_again(hook, emulator, image, fault):
    emulator.control.inject(fault)

    assert hook.result(image).outcome is Outcome.READY
    assert emulator.control.count(Kind.RESULTS) == 2


def test_what_does_not_pass_goes_up_after_a_few_tries(hook, emulator, image):
    emulator.control.inject(Answer(kind=Kind.RESULTS, status=502, times=None))

    with pytest.raises(QureTransientError, match="502"):
        hook.result(image)
    assert emulator.control.count(Kind.RESULTS) == 4


def test_a_long_pause_goes_up_with_its_length(hook, emulator, image):
    emulator.control.inject(Answer(kind=Kind.RESULTS, status=503, headers={"Retry-After": "600"}, times=None))

    with pytest.raises(QureTransientError) as caught:
        hook.result(image)
    assert caught.value.retry_after == 600
    assert emulator.control.count(Kind.RESULTS) == 1


def test_an_answer_that_stalls_is_given_up_after_the_idle_timeout(reconnect, emulator, image):
    emulator.control.inject(Stall(kind=Kind.RESULTS, at=At.BODY, times=None))
    begun = time.monotonic()

    with pytest.raises(QureTransientError, match="silent"):
        reconnect(read_timeout=0.2).result(image)
    assert time.monotonic() - begun < 5


def test_a_slow_answer_that_moves_is_no_timeout(reconnect, emulator, image):
    emulator.control.inject(Drip(kind=Kind.RESULTS, chunk=100, seconds=0.02))

    assert reconnect(read_timeout=0.3).result(image).outcome is Outcome.READY


def test_one_that_drips_for_ever_is_given_up(reconnect, emulator, image, monkeypatch):
    monkeypatch.setattr(transport, "ANSWER_SECONDS", 0.5)
    emulator.control.inject(Drip(kind=Kind.RESULTS, chunk=1, seconds=0.1, times=None))
    begun = time.monotonic()

    with pytest.raises(QureTransientError, match="too long"):
        reconnect().result(image, tries=1)
    assert time.monotonic() - begun < 5


def test_an_answer_larger_than_the_limit_is_not_read(reconnect, emulator, image):
    emulator.control.inject(Oversize(kind=Kind.RESULTS, size=50_000_000, times=None))

    with pytest.raises(QureTransientError, match="not understood"):
        reconnect(max_answer_bytes=100_000).result(image)


@pytest.mark.parametrize("wrong", [{"token": "wrong"}, {"source": "wrong"}])
def test_wrong_credentials_are_not_tried_again(reconnect, emulator, series, wrong):
    hook = reconnect(**wrong)
    emulator.control.forget_requests()

    for ask in (lambda: hook.compute(series.uid), lambda: hook.result(series)):
        with pytest.raises(QureSettingsError):
            ask()
    assert (emulator.control.count(Kind.COMPUTE), emulator.control.count(Kind.RESULTS)) == (1, 1)


def test_a_text_that_is_no_uid_asks_nothing(hook, emulator):
    with pytest.raises(QureRejectedError):
        hook.compute("../studies")
    with pytest.raises(QureRejectedError):
        hook.result(ResourceRef("1.2?x=1", Route.CT))
    assert not emulator.control.requests()


def test_a_slash_more_or_less_is_followed(wire, connect):
    wire.answer = lambda handler: (
        handler.reply(202, {"reason": "processing not started"})
        if handler.path.endswith("/")
        else handler.reply(301, Location=handler.path + "/")
    )
    connect(wire.url + "/platform")

    with QureHook() as hook:
        assert hook.result(ResourceRef("1.2", Route.XRAY)).outcome is Outcome.PENDING
    assert [request.path for request in wire.requests] == [
        "/platform/results/v2/1.2",
        "/platform/results/v2/1.2/",
    ]
    assert all(request.headers["Authorization"] == "Token t0ken" for request in wire.requests)


def test_the_token_goes_to_no_other_host_whoever_redirects(wire, second_wire, connect):
    wire.answer = lambda handler: handler.reply(302, Location=second_wire.url + "/steal")
    connect(wire.url)

    with QureHook() as hook:
        with pytest.raises(QureSettingsError):
            hook.result(ResourceRef("1.2", Route.CT))
        assert not second_wire.requests
        # by the session itself, which follows redirects as requests does
        hook.get_conn().get(wire.url + "/anything")
        hook.get_conn().get(second_wire.url + "/directly")

    assert [request.path for request in second_wire.requests] == ["/steal", "/directly"]
    for request in second_wire.requests:
        assert "Authorization" not in request.headers
        assert "Source" not in request.headers


@pytest.mark.parametrize("location", ["https://[bad", "ftp://127.0.0.1/x", "https://"])
def test_redirects_to_nowhere_are_an_error_of_ours(wire, connect, location):
    wire.answer = lambda handler: handler.reply(302, Location=location)
    connect(wire.url)

    with QureHook() as hook, pytest.raises(QureSettingsError):
        hook.result(ResourceRef("1.2", Route.CT))


def test_redirects_in_a_circle_end(wire, connect):
    wire.answer = lambda handler: handler.reply(302, Location=handler.path)
    connect(wire.url)

    with QureHook() as hook, pytest.raises(QureSettingsError):
        hook.result(ResourceRef("1.2", Route.CT))
    assert len(wire.requests) == 4


def test_a_netrc_and_cookies_change_nothing(wire, connect, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password other\n")
    monkeypatch.setenv("NETRC", str(netrc))
    wire.answer = lambda handler: handler.reply(202, {"reason": "x"}, Set_Cookie="session=1")
    connect(wire.url)

    with QureHook() as hook:
        for _ in range(2):
            hook.result(ResourceRef("1.2", Route.XRAY))

    assert [request.headers["Authorization"] for request in wire.requests] == ["Token t0ken"] * 2
    assert "Cookie" not in wire.requests[1].headers


def test_the_session_is_a_requests_session_with_the_connections_timeouts(wire, connect):
    wire.answer = lambda handler: time.sleep(2)
    connect(wire.url, read_timeout=0.1)

    with QureHook() as hook:
        session = hook.get_conn()
        assert isinstance(session, requests.Session)
        with pytest.raises(requests.exceptions.ReadTimeout):
            session.get(wire.url)


def test_a_proxy_is_used_where_one_is_set(wire, connect, monkeypatch):
    wire.answer = lambda handler: handler.reply(202, {"reason": "x"})
    connect("http://qure.invalid", allow_plain_http=True, proxies=wire.url)

    with QureHook() as hook:
        assert hook.result(ResourceRef("1.2", Route.XRAY)).outcome is Outcome.PENDING

    assert [request.path for request in wire.requests] == ["http://qure.invalid/results/v2/1.2"]


def test_a_proxy_that_wants_credentials_is_named(wire, connect):
    def refuse(handler):
        handler.reply(407)

    wire.server.RequestHandlerClass.do_CONNECT = refuse
    connect("https://qure.invalid", proxies=wire.url)

    with QureHook() as hook, pytest.raises(QureSettingsError, match="proxy wants credentials"):
        hook.result(ResourceRef("1.2", Route.XRAY))


class TestTestConnection:
    def test_all_is_well(self, hook, emulator):
        assert hook.test_connection() == (True, "The service answers and takes token and Source.")
        (request,) = emulator.control.requests()
        assert (request.kind, request.status) == (Kind.RESULTS, 404)

    @pytest.mark.parametrize(
        ("wrong", "said"), [({"token": "wrong"}, "token"), ({"source": "wrong"}, "Source"), ({"source": ""}, "Source")]
    )
    def test_wrong_credentials_are_named(self, reconnect, wrong, said):
        good, message = reconnect(**wrong).test_connection()

        assert not good
        assert said in message

    @pytest.mark.parametrize(
        ("host", "said"),
        [
            ("http://127.0.0.1:9", "ECONNREFUSED). Check base URL"),
            ("https://qure.invalid", "could not be resolved. Check base URL"),
            ("http://qure.invalid", "https://"),
            ("qure.invalid", "scheme"),
        ],
    )
    def test_what_cannot_be_reached_is_explained(self, connect, host, said):
        connect(host)

        good, message = QureHook().test_connection()

        assert not good
        assert said in message

    def test_another_web_server_is_not_taken_for_the_service(self, wire, connect):
        connect(wire.url)
        wire.answer = lambda handler: handler.reply(404, b"<html>Not Found</html>", "text/html")
        good, message = QureHook().test_connection()
        assert not good
        assert "path of the base URL" in message

        wire.answer = lambda handler: handler.reply(404, {"detail": "Not Found"})
        good, message = QureHook().test_connection()
        assert not good
        assert "path of the base URL" in message

        wire.answer = lambda handler: handler.reply(302, Location="https://login.invalid/")
        good, message = QureHook().test_connection()
        assert not good
        assert "base URL" in message

    def test_a_service_that_answers_otherwise_is_said_to(self, wire, connect):
        connect(wire.url)
        wire.answer = lambda handler: handler.reply(202, {"success": False, "message": "x is under process."})

        good, message = QureHook().test_connection()

        assert good
        assert "not as documented" in message

    def test_it_is_asked_once_and_in_time(self, wire, connect, monkeypatch):
        from qure_provider.hooks import check

        monkeypatch.setattr(check, "_LIMIT", 0.5)
        wire.answer = lambda handler: time.sleep(3)
        connect(wire.url)
        begun = time.monotonic()

        good, message = QureHook().test_connection()

        assert not good
        assert "within" in message
        assert time.monotonic() - begun < 2
        assert len(wire.requests) == 1


class TestTls:
    def ask(self, connect, url, **extra):
        connect(url, **extra)
        with QureHook() as hook:
            return hook.result(ResourceRef("1.2", Route.XRAY)).outcome

    @pytest.fixture(autouse=True)
    def _answer(self, tls_wire):
        tls_wire.answer = lambda handler: handler.reply(202, {"reason": "x"})

    def test_an_authority_of_ones_own_is_trusted_where_set(self, connect, tls_wire, certificates):
        assert self.ask(connect, tls_wire.url, ca_bundle=str(certificates[0])) is Outcome.PENDING

    def test_or_where_the_environment_names_it(self, connect, tls_wire, certificates, monkeypatch):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates[0]))
        assert self.ask(connect, tls_wire.url) is Outcome.PENDING

    def test_an_unknown_authority_is_refused(self, connect, tls_wire):
        with pytest.raises(QureSettingsError, match=r"authority.*CA bundle"):
            self.ask(connect, tls_wire.url)

    def test_another_host_name_is_refused(self, connect, misnamed_tls_wire, certificates):
        with pytest.raises(QureSettingsError, match="belongs to another"):
            self.ask(connect, misnamed_tls_wire.url, ca_bundle=str(certificates[0]))
        assert not misnamed_tls_wire.requests

    @pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
    def test_verification_can_be_switched_off(self, connect, tls_wire, monkeypatch):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
        assert self.ask(connect, tls_wire.url, verify=False) is Outcome.PENDING

    def test_a_port_without_tls_is_named(self, connect, wire):
        with pytest.raises(QureSettingsError, match="no TLS could be agreed on"):
            self.ask(connect, wire.url.replace("http:", "https:"))

    def test_the_test_button_says_so_too(self, connect, tls_wire):
        connect(tls_wire.url)
        good, message = QureHook().test_connection()
        assert not good
        assert "certificate" in message
