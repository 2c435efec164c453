"""Where requests go, and that nothing but a UID becomes part of a path."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qure_provider.api.model import ResourceRef, ResultsVersion, Route
from qure_provider.api.routes import UPLOAD_PATH, compute_path, is_uid, recompute_body, results_path

UID = "1.2.840.10008.1"


def test_an_upload_goes_to_the_path_of_the_vendors_samples():
    assert UPLOAD_PATH == "studies/"


def test_a_series_is_computed_by_its_uid():
    assert compute_path(UID) == "compute/1.2.840.10008.1"


@pytest.mark.parametrize(
    ("route", "version", "path"),
    [
        (Route.XRAY, ResultsVersion.V2, f"results/v2/{UID}"),
        (Route.XRAY, ResultsVersion.V1, f"results/{UID}"),
        (Route.CT, ResultsVersion.V2, f"results/{UID}"),
        (Route.CT, ResultsVersion.V1, f"results/{UID}"),
    ],
)
def test_only_x_rays_are_asked_by_version(route, version, path):
    assert results_path(ResourceRef(UID, route), version) == path


@pytest.mark.parametrize("uid", ["1", "1.2.3", "1.02.3", "00.1", "9" * 64, "1." * 31 + "22"])
def test_a_uid_is_digits_and_dots(uid):
    assert is_uid(uid)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "1.",
        ".1",
        "1..2",
        "9" * 65,
        "1.2\n",
        " 1.2",
        "1.2/3",
        "../1",
        "1.2?x=1",
        "1.2%2e",
        "1.a",
        "\u0661.\u0662",
        "1.2\x00",
        "-1",
    ],
)
def test_what_is_no_uid_never_becomes_a_path(text):
    assert not is_uid(text)
    with pytest.raises(ValueError, match="Not a UID"):
        compute_path(text)
    with pytest.raises(ValueError, match="Not a UID"):
        results_path(ResourceRef(text, Route.XRAY), ResultsVersion.V2)


def test_the_refusal_does_not_repeat_what_it_refused():
    with pytest.raises(ValueError, match="Not a UID") as caught:
        compute_path("DOE^JANE")

    assert "DOE" not in str(caught.value)


@settings(deadline=None)
@given(st.text())
def test_a_path_holds_nothing_but_its_own_words_and_a_uid(text):
    try:
        path = compute_path(text)
    except ValueError:
        return
    assert set(path.removeprefix("compute/")) <= set("0123456789.")


def test_a_body_is_sent_only_to_compute_again():
    assert recompute_body(True) == {"recompute": True}
    assert recompute_body(False) is None
