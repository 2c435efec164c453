"""How much another side may make us take, each limit a field of the connection."""

import asyncio
import gzip

import pytest

from qure_provider.api.errors import QureRejectedError, QureSettingsError, QureTransientError
from qure_provider.api.model import ResourceRef, Route
from qure_provider.hooks.qure import QureHook
from qure_provider.hooks.qure_async import shared_client

CT = ResourceRef("1.2", Route.CT)


@pytest.fixture
def circle(wire):
    """A service that sends everybody on, to itself."""
    wire.answer = lambda handler: handler.reply(302, Location=handler.path)
    return wire


async def ask():
    async with shared_client("qure_default") as client:
        return await client.result(CT)


@pytest.mark.parametrize("most", [0, 1, 7])
def test_R8_redirects_are_counted(circle, connect, tmp_path, most):
    connect(circle.url, max_redirects=most)

    with QureHook() as hook:
        for asks, error in (
            (lambda: hook.result(CT), QureSettingsError),
            (lambda: hook.download(circle.url + "/x", tmp_path / "x"), QureRejectedError),
            (lambda: asyncio.run(ask()), QureSettingsError),
        ):
            circle.requests.clear()
            with pytest.raises(error):
                asks()
            assert len(circle.requests) == most + 1


@pytest.mark.parametrize("squeezed", [False, True])
def test_R8_no_more_of_an_answer_is_read_than_its_limit(wire, connect, squeezed):
    body = b'{"reason": "' + b"x" * 50_000_000 + b'"}'
    sent = gzip.compress(body, compresslevel=1) if squeezed else body
    more = {"Content_Encoding": "gzip"} if squeezed else {}
    wire.answer = lambda handler: handler.reply(202, sent, **more)
    connect(wire.url, max_answer_bytes=2048)

    with QureHook() as hook:
        for asks in (lambda: hook.result(CT), lambda: asyncio.run(ask())):
            with pytest.raises(QureTransientError):
                asks()
