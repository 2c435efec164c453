import json

import pytest

from qure_provider.api.model import Meaning, Outcome, Report, ResultAnswer, Route
from qure_provider.reports.result import Asset, Result, ResultFormatError

ASSET = Asset("report_pdf", "report_pdf.pdf", "application/pdf", 3, "ab" * 32)
ANSWER = ResultAnswer(
    Outcome.READY,
    triage="critical",
    meaning=Meaning.URGENT,
    usecase="qer",
    report=Report("impression", "findings", (("sdh", "Subdural ü"),), ("a", "b")),
    scores={"sdh": 0.9},
    decisions={"sdh": True},
    model_version="Latest",
    files={"report_pdf": ("https://secret.example/1",)},
)


def result(answer=ANSWER, **values):
    arguments = {"uid": "1.2", "route": Route.CT, "revision": 2, "study_instance_uid": "1.1", **values}
    return Result.of(answer, (ASSET,), **arguments)


def test_what_is_stored_comes_back_as_it_was():
    stored = json.loads(json.dumps(result().to_json()))
    assert Result.from_json(stored) == result()


def test_it_says_that_nobody_has_verified_it_and_holds_no_address():
    text = json.dumps(result().to_json())
    assert "not verified by a radiologist" in text
    assert "secret.example" not in text


def test_a_model_version_that_was_not_stated_is_said_so_and_stays_unknown():
    bare = result(ResultAnswer(Outcome.READY))
    assert bare.to_json()["model_version"] == "not stated by the service"
    assert Result.from_json(bare.to_json()).model_version is None


def test_a_result_without_a_report_of_its_own_points_to_the_files():
    assert result(ResultAnswer(Outcome.READY)).impression == "no inline report; see the files"
    assert result(ResultAnswer(Outcome.INVALID)).impression == ""
    assert result().impression == "impression"


@pytest.mark.parametrize(
    "content", [None, [], "text", 3, {}, {"schema": 2}, {"schema": "1"}, {"schema": 1}, {"schema": 1, "report": "x"}]
)
def test_what_is_no_result_of_this_version_is_refused(content):
    with pytest.raises(ResultFormatError, match=r"result\.json"):
        Result.from_json(content)


@pytest.mark.parametrize("name", ["uid", "route", "outcome", "meaning", "report", "assets", "triage"])
def test_a_result_that_lacks_something_is_damaged(name):
    content = result().to_json()
    del content[name]
    with pytest.raises(ResultFormatError, match="damaged"):
        Result.from_json(content)


@pytest.mark.parametrize(("name", "value"), [("meaning", "normal"), ("outcome", "fine"), ("route", "mr")])
def test_a_word_that_is_not_ours_is_damage(name, value):
    with pytest.raises(ResultFormatError, match="damaged"):
        Result.from_json({**result().to_json(), name: value})
