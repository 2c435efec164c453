"""Who may ask: token, Source, User-Agent."""

import pytest
from emulator_images import an_xray
from urllib3.util import SKIP_HEADER

PATHS = ["/compute/1.2.3", "/results/1.2.3", "/results/v2/1.2.3"]
INVALID_TOKEN = {
    "message": "Invalid token header. No credentials provided.",
    "next": "/accounts/login/",
    "authenticated": False,
}


@pytest.mark.parametrize("authorization", [None, "Token wrong", "Bearer {token}", "token {token}", "{token}"])
@pytest.mark.parametrize("path", PATHS)
def test_a_wrong_token_is_401(client, emulator, path, authorization):
    value = authorization and authorization.format(token=emulator.token)
    answer = client.get(path, headers={"Authorization": value})
    assert answer.status_code == 401
    if "v2" in path:
        assert answer.content == b""
    else:
        assert answer.json() == INVALID_TOKEN


def test_an_upload_with_a_wrong_token_is_401_and_keeps_nothing(client, control):
    answer = client.upload(an_xray(), headers={"Authorization": "Token wrong"})
    assert (answer.status_code, answer.json()) == (401, INVALID_TOKEN)
    assert control.received() == []
    assert control.resources() == []


@pytest.mark.parametrize("source", [None, "personal-user-wrong"])
@pytest.mark.parametrize("path", PATHS)
def test_a_wrong_source_is_403(client, path, source):
    answer = client.get(path, headers={"Source": source})
    assert answer.status_code == 403
    if "v2" in path:
        assert (answer.text, answer.headers["content-type"]) == ("Forbidden", "text/plain; charset=utf-8")
    else:
        assert answer.json() == {"success": False, "message": "Access denied!"}


def test_user_agent_is_required_unless_set_otherwise(client, control):
    nameless = {"User-Agent": SKIP_HEADER}
    assert client.get("/results/1.2.3", headers=nameless).status_code == 400
    assert client.get("/results/v2/1.2.3", headers=nameless).headers["content-type"].startswith("text/plain")
    control.configure(require_user_agent=False)
    assert client.get("/results/1.2.3", headers=nameless).status_code == 404


def test_what_nobody_documents_is_404(client):
    assert client.get("/studies/1.2.3").status_code == 404
    assert client.get("/docs").status_code == 404
