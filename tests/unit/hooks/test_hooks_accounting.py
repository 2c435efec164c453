from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qure_provider.api.errors import QureRejectedError, QureSettingsError
from qure_provider.api.model import FileAcknowledgement, UploadAnswer
from qure_provider.hooks.accounting import SeriesCount, take_account
from qure_provider.hooks.outgoing import OutgoingFile


def files(*series):
    return [OutgoingFile(f"{uid}.{index}", uid, f"/x/{index}", 1) for index, uid in enumerate(series)]


def says(keys, *, accepted=True, license_expired=False):
    return {key: FileAcknowledgement(key, accepted, license_expired=license_expired) for key in keys}


def account(sent, messages=None, *, listed=None, counts=None, known=None):
    uids = {file.series_instance_uid for file in sent}
    answer = UploadAnswer(
        files=messages or {},
        series_instance_uids=tuple(uids if listed is None else listed),
        series_counts=counts or {},
    )
    return take_account(sent, answer, defaultdict(SeriesCount, known or {}))


@pytest.mark.parametrize(
    "keys",
    [
        ("file0", "file1"),
        ("file0.dcm", "file1.dcm"),
        ("1.2.0", "1.2.1"),
        ("whatever", "else"),
    ],
)
def test_messages_are_matched_by_key_name_uid_or_order(keys):
    assert account(files("1.2", "1.2"), says(keys)).acknowledged == (0, 1)


def test_order_of_the_answer_does_not_matter_where_keys_are_echoed():
    messages = says(["file1"], accepted=False) | says(["file0"])

    found = account(files("1.2", "1.2"), messages)

    assert found.acknowledged == (0,)
    assert isinstance(found.refused[1], QureRejectedError)


def test_unknown_keys_with_differing_verdicts_vouch_for_nothing():
    found = account(files("1.2", "1.2"), says(["a"]) | says(["b"], accepted=False))

    assert found.unclear == (0, 1)


def test_unknown_keys_that_are_too_few_vouch_for_nothing():
    assert account(files("1.2", "1.2"), says(["a"])).unclear == (0, 1)


def test_a_file_without_a_message_is_not_acknowledged():
    found = account(files("1.2", "1.2", "1.2"), says(["file0", "file2"]))

    assert (found.acknowledged, found.unclear) == ((0, 2), (1,))


def test_an_expired_license_inside_a_good_answer_is_a_failure_that_says_so():
    found = account(files("1.2"), says(["file0"], license_expired=True))

    assert isinstance(found.refused[0], QureSettingsError)
    assert "license" in str(found.refused[0])


def test_messages_are_not_believed_of_a_series_that_the_answer_does_not_list():
    found = account(files("1.2", "3.4"), says(["file0", "file1"]), listed=["3.4"])

    assert (found.acknowledged, found.unclear) == ((1,), (0,))


@pytest.mark.parametrize(
    ("count", "known", "clear"),
    [
        (3, SeriesCount(), True),
        (2, SeriesCount(), False),
        (0, SeriesCount(), False),
        # either reading of the count: of this request, or of all that is held
        (3, SeriesCount(acknowledged=10, counted=10), True),
        (13, SeriesCount(acknowledged=10, counted=10), True),
        (12, SeriesCount(acknowledged=10, counted=10), False),
        (500, SeriesCount(acknowledged=10, counted=10), True),
        # counts are known to be of all: the other reading is out
        (3, SeriesCount(acknowledged=10, counted=10, is_of_all=True), False),
        # the answer of a request that overtook this one counted its files already
        (11, SeriesCount(acknowledged=10, counted=13, is_of_all=True), True),
    ],
)
@pytest.mark.parametrize("messages", [True, False])
def test_counts_must_fit(count, known, clear, messages):
    sent = files("1.2", "1.2", "1.2")

    found = account(
        sent, says(["file0", "file1", "file2"]) if messages else None, counts={"1.2": count}, known={"1.2": known}
    )

    assert bool(found.acknowledged) is clear
    assert bool(found.unclear) is not clear


def test_refused_files_are_not_missed_in_the_count():
    messages = says(["file0", "file1"]) | says(["file2"], accepted=False)

    found = account(files("1.2", "1.2", "1.2"), messages, counts={"1.2": 2})

    assert found.acknowledged == (0, 1)
    assert set(found.refused) == {2}


def test_the_older_answer_vouches_by_series_and_count_only():
    sent = files("1.2", "1.2", "3.4", "3.4", "5.6", "5.6")

    found = account(sent, listed=["1.2", "3.4"], counts={"1.2": 2})

    assert found.acknowledged == (0, 1)
    assert found.unclear == (2, 3, 4, 5)


def test_a_request_of_one_file_leaves_no_doubt():
    assert account(files("1.2"), counts={"1.2": 0}).acknowledged == (0,)
    assert account(files("1.2")).acknowledged == (0,)
    assert account(files("1.2"), listed=[]).unclear == (0,)


@given(st.data())
def test_every_file_ends_in_exactly_one_group(data):
    sent = files(*data.draw(st.lists(st.sampled_from(["1.2", "3.4"]), max_size=6)))
    keys = st.sampled_from(["file0", "file1", "file2", "file0.dcm", "x", "y", "1.2.0"])
    entries = st.builds(
        lambda accepted, expired: FileAcknowledgement("k", accepted, license_expired=expired),
        st.booleans(),
        st.booleans(),
    )
    found = account(
        sent,
        data.draw(st.dictionaries(keys, entries)),
        listed=data.draw(st.lists(st.sampled_from(["1.2", "3.4", "9.9"]))),
        counts=data.draw(st.dictionaries(st.sampled_from(["1.2", "3.4", "9.9"]), st.integers(0, 9))),
    )

    assert sorted([*found.acknowledged, *found.refused, *found.unclear]) == list(range(len(sent)))
