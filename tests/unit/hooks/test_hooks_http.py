import re

import pytest

from qure_provider import __version__
from qure_provider.api.errors import QureRejectedError
from qure_provider.api.model import ResourceRef, ResultsVersion, Route
from qure_provider.hooks.connection import QureConnection
from qure_provider.hooks.http import compute_url, credentials, redirect_within, results_url, user_agent

CONNECTION = QureConnection("c", "https://qure.example/a/", "t0ken", source="s0urce")


def test_the_user_agent_names_provider_airflow_operator_and_python():
    agent = user_agent("QureUploadOperator")

    assert agent.startswith(f"airflow-provider-qure/{__version__} apache-airflow/3.")
    assert " operator/QureUploadOperator " in agent
    assert re.search(r" CPython/3\.\d+", agent)
    assert "operator/" not in user_agent("")


def test_an_odd_operator_name_cannot_break_the_header():
    assert "\n" not in user_agent("a\r\nX-Evil: 1")


def test_credentials_are_token_and_source():
    assert credentials(CONNECTION) == {"Authorization": "Token t0ken", "Source": "s0urce"}
    assert "Source" not in credentials(QureConnection("c", "https://qure.example/", "t"))


def test_addresses_stand_below_the_base_url():
    old = QureConnection("c", "https://qure.example/a/", "t", xray_results=ResultsVersion.V1)

    assert results_url(CONNECTION, ResourceRef("1.2", Route.XRAY)) == "https://qure.example/a/results/v2/1.2"
    assert results_url(old, ResourceRef("1.2", Route.XRAY)) == "https://qure.example/a/results/1.2"
    assert results_url(CONNECTION, ResourceRef("1.2", Route.CT)) == "https://qure.example/a/results/1.2"
    assert compute_url(CONNECTION, "1.2") == "https://qure.example/a/compute/1.2"


@pytest.mark.parametrize("uid", ["", "../upload", "1.2?x", "1.2/3", "1" * 65])
def test_what_cannot_be_a_uid_becomes_no_part_of_an_address(uid):
    with pytest.raises(QureRejectedError):
        results_url(CONNECTION, ResourceRef(uid, Route.CT))
    with pytest.raises(QureRejectedError):
        compute_url(CONNECTION, uid)


@pytest.mark.parametrize(
    ("method", "status", "location", "target"),
    [
        ("GET", 301, "/a/results/1.2/", "https://qure.example/a/results/1.2/"),
        ("GET", 302, "https://QURE.example:443/b", "https://QURE.example:443/b"),
        ("GET", 308, "x", "https://qure.example/a/x"),
        ("POST", 307, "/studies", "https://qure.example/studies"),
        ("POST", 301, "/studies", None),
        ("POST", 303, "/studies", None),
        ("GET", 301, "https://evil.example/a", None),
        ("GET", 301, "http://qure.example/a", None),
        ("GET", 301, "//evil.example/a", None),
        ("GET", 301, "https://qure.example:444/a", None),
        ("GET", 301, "https://[bad", None),
        ("GET", 301, None, None),
        ("GET", 304, "/a", None),
        ("GET", 200, "/a", None),
    ],
)
def test_redirects_are_followed_within_the_origin_only(method, status, location, target):
    assert redirect_within("https://qure.example/a/1", method, status, location) == target
