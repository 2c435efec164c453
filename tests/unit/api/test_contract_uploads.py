"""What an upload's answer acknowledges, file by file and series by series."""

import json

import pytest

from qure_provider.api.answers import RawAnswer, parse_upload
from qure_provider.api.errors import QureTransientError

UID = "1.2.826.0.1.3680043.8.498.1"
OTHER = "1.2.826.0.1.3680043.8.498.2"


def upload(**body):
    return parse_upload(RawAnswer(200, "application/json", json.dumps(body).encode()))


def one_file(**entry):
    return upload(messages={"file0": entry}).files["file0"]


def test_every_file_is_accounted_for_under_its_form_key():
    answer = upload(
        message="Success",
        status="success",
        messages={
            "file0": {
                "message": "DICOM registered successfully.",
                "created": True,
                "license_expired": False,
                "metadata": {"PatientName": "nobody"},
            },
            "file1": {"message": "Not a DICOM file.", "created": False, "license_expired": False, "metadata": {}},
        },
        series_instance_uids=[UID],
        detailed_info=[{"SeriesInstanceUID": UID, "NumberOfSeriesRelatedInstances": 1}],
    )

    assert {key: file.accepted for key, file in answer.files.items()} == {"file0": True, "file1": False}
    assert answer.files["file1"].message == "Not a DICOM file."
    assert answer.series_instance_uids == (UID,)
    assert answer.series_counts == {UID: 1}
    assert "nobody" not in repr(answer)


def test_the_older_pages_answer_speaks_of_series_alone():
    answer = upload(
        message="Success",
        series_instance_uids=[UID, OTHER],
        detailed_info=[
            {"SeriesInstanceUID": UID, "NumberOfSeriesRelatedInstances": "50"},
            {"SeriesInstanceUID": OTHER, "NumberOfSeriesRelatedInstances": 2.0},
        ],
    )

    assert answer.files == {}
    assert answer.series_counts == {UID: 50, OTHER: 2}


@pytest.mark.parametrize(
    ("created", "message", "accepted"),
    [
        (True, "DICOM registered successfully.", True),
        (True, None, True),
        (True, "", True),
        (False, "DICOM registered successfully.", True),
        (False, "Instance already exists.", True),
        (None, "Registered", True),
        # Nothing positive, or two minds about it: sent again, and reported if it stays so.
        (False, "", False),
        (False, None, False),
        (None, None, False),
        (None, "Received", False),
        (True, "Could not be registered", False),
        (True, "Failed to register", False),
        (True, "Registration error", False),
        (None, "Unsuccessful", False),
        ("true", None, False),
        (1, 5, False),
    ],
)
def test_a_file_is_accepted_only_where_the_service_says_so(created, message, accepted):
    assert one_file(created=created, message=message).accepted is accepted


def test_a_flag_that_is_no_boolean_is_not_known():
    assert one_file(created="yes").created is None
    assert one_file(created=False).created is False


def test_an_expired_license_inside_a_success_is_seen_for_each_file():
    answer = upload(
        status="success",
        messages={
            "a": {"message": "DICOM registered successfully.", "created": True, "license_expired": True},
            "b": {"message": "DICOM registered successfully.", "created": True},
        },
    )

    assert (answer.files["a"].accepted, answer.files["a"].license_expired) == (True, True)
    assert answer.files["b"].license_expired is False


def test_an_entry_that_is_only_a_text_is_read_as_its_message():
    answer = upload(messages={"a": "DICOM registered successfully.", "b": "Rejected", "c": None, "d": 7, "e": []})

    assert [key for key, file in answer.files.items() if file.accepted] == ["a"]


@pytest.mark.parametrize("message", [f"Registered {UID}", "Registered DOE^JANE", "see https://example.org/a", "x" * 81])
def test_a_message_with_anything_but_plain_words_is_not_kept(message):
    assert one_file(created=True, message=message).message == ""


@pytest.mark.parametrize(
    "detail",
    [
        None,
        "text",
        {},
        {"SeriesInstanceUID": UID},
        {"SeriesInstanceUID": UID, "NumberOfSeriesRelatedInstances": "INTEGER"},
        {"SeriesInstanceUID": UID, "NumberOfSeriesRelatedInstances": True},
        {"SeriesInstanceUID": UID, "NumberOfSeriesRelatedInstances": -1},
        {"SeriesInstanceUID": UID, "NumberOfSeriesRelatedInstances": 1.5},
        {"SeriesInstanceUID": UID, "NumberOfSeriesRelatedInstances": [1]},
        {"SeriesInstanceUID": "../x", "NumberOfSeriesRelatedInstances": 1},
        {"SeriesInstanceUID": [UID], "NumberOfSeriesRelatedInstances": 1},
    ],
)
def test_a_count_that_is_none_counts_nothing(detail):
    assert upload(series_instance_uids=[UID], detailed_info=[detail]).series_counts == {}


def test_of_two_counts_of_a_series_the_smaller_is_believed():
    details = [{"SeriesInstanceUID": UID, "NumberOfSeriesRelatedInstances": n} for n in (3, 2, 4)]

    assert upload(series_instance_uids=[UID], detailed_info=details).series_counts == {UID: 2}


def test_what_is_no_uid_is_no_series():
    assert upload(series_instance_uids=[UID, "../x", 5, None]).series_instance_uids == (UID,)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"message": "Success"},
        {"message": "Success", "status": "success"},
        {"messages": [], "series_instance_uids": [UID]},
        {"messages": "ok"},
        {"series_instance_uids": UID},
        {"status": "error", "series_instance_uids": [UID]},
        {"status": " Failed ", "messages": {"a": {"created": True}}},
        {"success": False, "messages": {"a": {"created": True}}},
        {"sucess": False, "series_instance_uids": [UID]},
    ],
)
def test_a_success_that_acknowledges_nothing_or_denies_itself_is_tried_later(body):
    with pytest.raises(QureTransientError):
        upload(**body)
