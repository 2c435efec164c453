"""The way from a task to its page."""

from types import SimpleNamespace

import pytest

from qure_provider.links import NightSummaryLink, page_address

FOLDER = "runs/2026-11-20/qure_nightly__scheduled"


@pytest.mark.parametrize(
    ("base_url", "address"),
    [
        ("", f"/qure/{FOLDER}/"),
        ("https://airflow.example.org", f"/qure/{FOLDER}/"),
        ("https://example.org/airflow/", f"/airflow/qure/{FOLDER}/"),
    ],
)
def test_an_address_lies_below_the_ui_whatever_its_host_is_called(monkeypatch, base_url, address):
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)

    assert page_address(FOLDER) == address
    assert NightSummaryLink().get_link(SimpleNamespace(page_folder=FOLDER), ti_key=None) == address


def test_a_task_that_wrote_no_page_has_no_link():
    assert NightSummaryLink().get_link(SimpleNamespace(page_folder=""), ti_key=None) == ""


def test_a_name_stays_one_part_of_an_address():
    assert page_address("runs/a b/c?d#e") == "/qure/runs/a%20b/c%3Fd%23e/"
