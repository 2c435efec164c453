"""The client for triggers: the same answers as the hook's, one session and one ceiling for all."""

import asyncio
import gc
import time

import aiohttp
import pytest

from qure_provider.api.errors import QureError, QureRejectedError, QureSettingsError, QureTransientError
from qure_provider.api.model import Outcome, ResourceRef, Route
from qure_provider.emulator.model import Answer, At, Drip, Kind, Oversize, PlannedOutcome, Reset, Stall, Truncate
from qure_provider.hooks import qure_async
from qure_provider.hooks.qure import QureHook
from qure_provider.hooks.qure_async import shared_client

CT = ResourceRef("1.2.3", Route.CT)
XRAY = ResourceRef("1.2.3", Route.XRAY)


@pytest.fixture
def image(hook, exports):
    (file,) = exports.series(1, "DX")
    assert len(hook.upload([file]).acknowledged) == 1
    return ResourceRef(file.sop_instance_uid, Route.XRAY)


@pytest.fixture
def scripted(wire, connect):
    """Connect to the scripted server, at a ceiling that does not slow a test down."""
    wire.answer = lambda handler: handler.reply(202, {"reason": "processing not started"})

    def define(**extra):
        connect(wire.url, **{"requests_per_second": 1000, **extra})
        return wire

    return define


async def ask(ref, conn_id="qure_default"):
    async with shared_client(conn_id) as client:
        return await client.result(ref)


@pytest.mark.parametrize(
    "planned", [PlannedOutcome.RESULT, PlannedOutcome.STUCK, PlannedOutcome.INVALID, PlannedOutcome.UNSUPPORTED]
)
async def test_it_says_the_same_as_the_hook(emulator, hook, image, planned):
    emulator.control.plan(image.uid, outcome=planned)

    theirs, ours = await asyncio.to_thread(hook.result, image), await ask(image)

    assert (ours.outcome, ours.triage, ours.reason) == (theirs.outcome, theirs.triage, theirs.reason)
    assert ours.file_counts == theirs.file_counts
    assert (await ask(CT)).outcome is Outcome.NOT_UPLOADED


async def test_it_sends_the_same_headers_as_the_hook(scripted):
    wire = scripted()

    await ask(XRAY)
    with QureHook(operator="QureResultsTrigger") as hook:
        await asyncio.to_thread(hook.result, XRAY)

    first, second = wire.requests
    assert first.path == second.path == "/results/v2/1.2.3"
    for name in ("Authorization", "Source", "User-Agent", "Accept"):
        assert first.headers[name] == second.headers[name]


FAULTS = [
    Answer(kind=Kind.RESULTS, status=401),
    Answer(kind=Kind.RESULTS, status=403),
    Answer(kind=Kind.RESULTS, status=418),
    Answer(kind=Kind.RESULTS, status=429, headers={"Retry-After": "7"}),
    Answer(kind=Kind.RESULTS, status=500),
    Answer(kind=Kind.RESULTS, status=200, body="<html>"),
    Answer(kind=Kind.RESULTS, status=302, headers={"Location": "https://[bad"}),
    Reset(kind=Kind.RESULTS, times=None),
    Reset(kind=Kind.RESULTS, at=At.BODY, after_bytes=5),
    Truncate(kind=Kind.RESULTS),
    Stall(kind=Kind.RESULTS, seconds=2),
    Stall(kind=Kind.RESULTS, at=At.BODY, seconds=2),
    Oversize(kind=Kind.RESULTS, size=1_000_000),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.effect} {getattr(fault, 'status', '')}")
async def test_failures_are_of_the_same_kind_as_the_hooks(emulator, reconnect, image, fault, monkeypatch):
    from qure_provider.hooks import retry

    monkeypatch.setattr(retry, "MAX_TRIES", 1)
    hook = reconnect(read_timeout=0.2, max_answer_bytes=100_000)
    found = []
    for say in (lambda: ask(image), lambda: asyncio.to_thread(hook.result, image)):
        emulator.control.clear_faults()
        emulator.control.inject(fault)
        try:
            found.append((await say()).outcome)
        except QureError as error:
            found.append((type(error), getattr(error, "retry_after", None)))

    assert found[0] == found[1]


GARBAGE = [
    b"",
    b"\r\n\r\n",
    b"garbage\r\n\r\n",
    b"HTTP/1.1 abc OK\r\n\r\n",
    b"HTTP/1.1 99999 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: nonsense\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}",
    b"HTTP/1.1 200 OK\r\nX: \xff\xfe\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\n: no name\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n{}",
    b"HTTP/1.1 302 Found\r\nLocation: \xff://\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: /\x00\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: /a b?c#d\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://user:pw@127.0.0.1:99999/\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 429 X\r\nRetry-After: \xff\r\nContent-Length: 0\r\n\r\n",
    b"SSH-2.0-OpenSSH\r\n",
]


@pytest.mark.parametrize("raw", GARBAGE, ids=lambda raw: repr(raw[:60]))
async def test_whatever_comes_over_the_wire_is_an_error_of_ours_in_both(scripted, raw, monkeypatch):
    from qure_provider.hooks import retry

    monkeypatch.setattr(retry, "MAX_TRIES", 1)

    def answer(handler):
        handler.wfile.write(raw)
        handler.close_connection = True

    scripted(read_timeout=2).answer = answer

    with pytest.raises(QureError):
        await ask(XRAY)
    with QureHook() as hook, pytest.raises(QureError):
        await asyncio.to_thread(hook.result, XRAY)


async def test_an_answer_that_drips_for_ever_is_given_up(emulator, reconnect, image, monkeypatch):
    reconnect(connect_timeout=0.2, read_timeout=0.3)
    monkeypatch.setattr(qure_async, "ANSWER_SECONDS", 0.5)
    emulator.control.inject(Drip(kind=Kind.RESULTS, chunk=1, seconds=0.1, times=None))

    with pytest.raises(QureTransientError, match="too long"):
        async with asyncio.timeout(10):
            await ask(image)


async def test_a_retry_after_is_handed_up(emulator, hook, image):
    emulator.control.inject(Answer(kind=Kind.RESULTS, status=503, headers={"Retry-After": "90"}))

    with pytest.raises(QureTransientError) as caught:
        await ask(image)
    assert caught.value.retry_after == 90


async def test_what_is_no_uid_asks_nothing(scripted):
    wire = scripted()

    with pytest.raises(QureRejectedError):
        await ask(ResourceRef("../1", Route.CT))
    assert not wire.requests


async def test_wrong_fields_of_the_connection_are_named(connect):
    connect("http://qure.example")

    with pytest.raises(QureSettingsError, match="field host"):
        await ask(CT)


async def test_the_token_goes_to_no_other_host(scripted, second_wire):
    wire = scripted()
    wire.answer = lambda handler: handler.reply(302, Location=second_wire.url + "/steal")

    with pytest.raises(QureSettingsError):
        await ask(CT)
    assert not second_wire.requests


async def test_a_slash_more_or_less_is_followed(scripted):
    wire = scripted()
    wire.answer = lambda handler: (
        handler.reply(202, {"reason": "x"})
        if handler.path.endswith("/")
        else handler.reply(301, Location=handler.path + "/")
    )

    assert (await ask(XRAY)).outcome is Outcome.PENDING


async def test_tls_follows_the_same_settings(tls_wire, misnamed_tls_wire, connect, certificates):
    for wire in (tls_wire, misnamed_tls_wire):
        wire.answer = lambda handler: handler.reply(202, {"reason": "x"})

    connect(tls_wire.url, ca_bundle=str(certificates[0]))
    assert (await ask(XRAY)).outcome is Outcome.PENDING
    connect(tls_wire.url)
    with pytest.raises(QureSettingsError, match=r"authority.*CA bundle"):
        await ask(XRAY)
    connect(misnamed_tls_wire.url, ca_bundle=str(certificates[0]))
    with pytest.raises(QureSettingsError, match="another"):
        await ask(XRAY)
    connect(misnamed_tls_wire.url, verify=False)
    assert (await ask(XRAY)).outcome is Outcome.PENDING


async def test_what_cannot_be_reached_is_transient(connect, wire):
    for url, said in (("http://127.0.0.1:9", "ECONNREFUSED"), ("https://qure.invalid", "resolved")):
        connect(url)
        with pytest.raises(QureTransientError, match=said):
            await ask(CT)
    connect(wire.url.replace("http:", "https:"))
    with pytest.raises(QureSettingsError, match="no TLS could be agreed on"):
        await ask(CT)


async def test_a_proxy_is_used_where_one_is_set(wire, connect):
    wire.answer = lambda handler: handler.reply(202, {"reason": "x"})
    connect("http://qure.invalid", allow_plain_http=True, proxies=wire.url)

    assert (await ask(XRAY)).outcome is Outcome.PENDING
    assert [request.path for request in wire.requests] == ["http://qure.invalid/results/v2/1.2.3"]


class TestSharing:
    async def test_all_share_one_client_that_the_last_one_closes(self, scripted, monkeypatch):
        scripted()
        opened = []
        opening = qure_async._open

        async def counted(*args):
            opened.append(await opening(*args))
            return opened[-1]

        monkeypatch.setattr(qure_async, "_open", counted)

        async def use():
            async with shared_client("qure_default") as client:
                await client.result(XRAY)
                return client

        clients = await asyncio.gather(*(use() for _ in range(50)))

        assert len(opened) == len(set(map(id, clients))) == 1
        assert opened[0]._session.closed
        await use()
        assert len(opened) == 2

    async def test_it_stays_open_while_anybody_uses_it(self, scripted):
        scripted()
        async with shared_client("qure_default") as client:
            await ask(XRAY)
            assert (await client.result(XRAY)).outcome is Outcome.PENDING

    async def test_an_opening_that_fails_or_is_given_up_hinders_no_later_one(self, scripted, connect, monkeypatch):
        connect("not a url")
        results = await asyncio.gather(*(ask(CT) for _ in range(3)), return_exceptions=True)
        assert {type(result) for result in results} == {QureSettingsError}

        scripted()
        opening = qure_async._open

        async def slow(*args):
            await asyncio.sleep(0.2)
            return await opening(*args)

        monkeypatch.setattr(qure_async, "_open", slow)
        first, second = asyncio.create_task(ask(XRAY)), asyncio.create_task(ask(XRAY))
        await asyncio.sleep(0.05)
        first.cancel()
        assert (await second).outcome is Outcome.PENDING

    async def test_connections_are_told_apart(self, scripted, second_wire, monkeypatch):
        first = scripted()
        second_wire.answer = lambda handler: handler.reply(202, {"reason": "x"})
        monkeypatch.setenv(
            "AIRFLOW_CONN_OTHER", f'{{"conn_type": "qure", "host": "{second_wire.url}", "password": "other"}}'
        )

        await asyncio.gather(ask(XRAY), ask(XRAY, "other"))

        assert first.requests[0].headers["Authorization"] == "Token t0ken"
        assert second_wire.requests[0].headers["Authorization"] == "Token other"

    def test_each_event_loop_has_its_own(self, scripted):
        scripted()

        assert asyncio.run(ask(XRAY)).outcome is Outcome.PENDING
        assert asyncio.run(ask(XRAY)).outcome is Outcome.PENDING
        gc.collect()
        assert len(qure_async._by_loop) <= 1

    async def test_no_second_holds_more_requests_than_the_ceiling_whoever_asks(self, scripted):
        wire = scripted(requests_per_second=60, triggerers=3)
        starts = []

        def answer(handler):
            starts.append(time.monotonic())
            handler.reply(202, {"reason": "x"})

        wire.answer = answer

        async def trigger():
            async with shared_client("qure_default") as client:
                for _ in range(4):
                    await client.result(XRAY)

        await asyncio.gather(*(trigger() for _ in range(5)))
        await asyncio.gather(*(trigger() for _ in range(5)))  # the ceiling outlives the client

        starts.sort()
        assert len(starts) == 40
        most = max(sum(start <= other < start + 1 for other in starts) for start in starts)
        # one more than the ceiling, for what the way to the server does to the distances
        assert most <= 21


async def test_the_ceiling_holds_where_the_service_breaks_connections(scripted):
    wire = scripted(requests_per_second=20)
    starts = []

    def answer(handler):
        starts.append(time.monotonic())
        handler.close_connection = True

    wire.answer = answer
    async with shared_client("qure_default") as client:
        await asyncio.gather(*(client.result(XRAY) for _ in range(5)), return_exceptions=True)

    assert len(starts) > 5, "aiohttp asks once more by itself"
    assert starts[-1] - starts[0] > (len(starts) - 1) / 20 * 0.9


async def test_the_event_loop_is_never_held_up(tls_wire, connect, certificates):
    tls_wire.answer = lambda handler: handler.reply(202, {"reason": "x"})
    connect(tls_wire.url, ca_bundle=str(certificates[0]), requests_per_second=1000)
    await ask(XRAY)  # what a process imports and looks up once
    longest = 0.0

    async def watch():
        nonlocal longest
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - begun)

    watcher = asyncio.create_task(watch())
    for _ in range(3):
        await asyncio.gather(*(ask(XRAY) for _ in range(20)))
    watcher.cancel()

    assert longest < 0.1


async def test_a_poll_costs_little_more_than_the_bare_request(emulator, hook, image):
    """By the CPU of this thread alone: the emulator runs in another."""
    emulator.control.plan(image.uid, outcome=PlannedOutcome.STUCK)
    polls = 100

    async def cost(poll):
        begun = time.thread_time()
        for _ in range(polls):
            await poll()
        return (time.thread_time() - begun) / polls

    async with shared_client("qure_default") as client, aiohttp.ClientSession() as session:
        client._pace.requests_per_second = 1_000_000

        async def ours():
            assert (await client.result(image)).outcome is Outcome.PENDING

        async def bare():
            async with session.get(f"{emulator.base_url}/results/v2/{image.uid}", headers=emulator.headers) as response:
                assert (await response.json())["reason"]

        costs = [(await cost(ours), await cost(bare)) for _ in range(5)]

    mine, theirs = (min(column) for column in zip(*costs, strict=True))
    assert mine < 2 * theirs
