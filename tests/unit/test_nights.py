from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from qure_provider.nights import in_night, local_time, midnight, night_of, safe_name


def context(*, partition_key=None, logical_date=None, run_after=None):
    return {"dag_run": SimpleNamespace(partition_key=partition_key, logical_date=logical_date, run_after=run_after)}


TWO_IN_KOLKATA = datetime(2026, 11, 19, 20, 30, tzinfo=UTC)


class TestANightIsNamedByTheHospitalsClock:
    def test_two_in_the_morning_in_kolkata_is_that_day_although_utc_still_has_yesterday(self):
        assert night_of(context(logical_date=TWO_IN_KOLKATA), "Asia/Kolkata") == "2026-11-20"
        assert night_of(context(logical_date=TWO_IN_KOLKATA), "UTC") == "2026-11-19"

    def test_evening_in_los_angeles_is_that_day_although_utc_has_tomorrow(self):
        moment = datetime(2026, 11, 21, 4, 0, tzinfo=UTC)
        assert night_of(context(logical_date=moment), "America/Los_Angeles") == "2026-11-20"

    def test_without_a_logical_date_the_time_it_was_due_counts(self):
        assert night_of(context(run_after=TWO_IN_KOLKATA), "Asia/Kolkata") == "2026-11-20"

    def test_a_partition_key_is_the_name(self):
        named = context(partition_key="2026-11-18", logical_date=TWO_IN_KOLKATA)
        assert night_of(named, "Asia/Kolkata") == "2026-11-18"

    def test_a_partition_key_cannot_lead_out_of_the_folder(self):
        assert night_of(context(partition_key="../../etc/passwd"), "UTC") == "_.._etc_passwd"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("2026-11-20", "2026-11-20"),
        ("manual__2026-11-20T02:00:00+00:00", "manual__2026-11-20T02_00_00_00_00"),
        ("", "_"),
        ("..", "_"),
        ("a/b", "a_b"),
        ("nächte", "n_chte"),
    ],
)
def test_a_name_is_one_harmless_part_of_a_path(text, name):
    assert safe_name(text) == name
    assert "/" not in safe_name(text)


def test_a_name_is_not_longer_than_file_systems_take():
    assert len(safe_name("x" * 1000)) <= 120


def test_the_nights_name_goes_where_the_template_says():
    assert in_night("/exports/{night}/out", "2026-11-20") == "/exports/2026-11-20/out"
    assert in_night("/exports/{other}", "2026-11-20") == "/exports/{other}"


@pytest.mark.parametrize(
    ("template", "folder"),
    [
        ("/exports/{night:YYYYMMDD}", "/exports/20261120"),
        ("/exports/{night:YYYY/MM}/{night}", "/exports/2026/11/2026-11-20"),
        ("/exports/export_{night:DD.MM.YY}", "/exports/export_20.11.26"),
    ],
)
def test_its_date_is_written_as_the_pacs_does(template, folder):
    assert in_night(template, "2026-11-20") == folder


def test_a_night_without_a_date_has_no_other_form():
    assert in_night("/exports/{night}", "ward-3") == "/exports/ward-3"
    with pytest.raises(ValueError, match="'ward-3' is not named by a date"):
        in_night("/exports/{night:YYYY}", "ward-3")


def test_a_day_begins_at_the_hospitals_midnight():
    begins = midnight("2026-11-20", "Asia/Kolkata")
    assert begins == datetime(2026, 11, 19, 18, 30, tzinfo=UTC).timestamp()
    assert local_time(begins + 0.9, "Asia/Kolkata") == "2026-11-20 00:00:00+05:30"


@pytest.mark.parametrize("day", ["yesterday", "20.11.2026", "2026-02-30", ""])
def test_what_is_no_day_is_refused_in_words(day):
    with pytest.raises(ValueError, match=f"'{day}' is no date: write it as YYYY-MM-DD"):
        midnight(day, "UTC")
