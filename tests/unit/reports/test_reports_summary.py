"""A night's summary as data and as a page."""

import json
import re

import pytest

from qure_provider.reports.result import UNVERIFIED
from qure_provider.reports.summary import Summary, SummaryFormatError, SummaryRow


def row(**values):
    plain = {
        "study": "1111111111",
        "resource": "aaaaaaaaaa",
        "route": "ct",
        "modality": "CT",
        "product": "qer",
        "outcome": "ready",
        "is_resolved": True,
        "reason": "",
        "triage": "Routine",
        "meaning": "no finding of this product",
        "impression": "nothing",
        "doubt": "",
        "revision": 1,
        "why": "new",
        "folder": "studies/1.2/1.2.3/r1",
        "files": 2,
        "image": "studies/1.2/1.2.3/r1/sc.png",
        "seconds_to_ready": None,
    }
    return SummaryRow(**plain | values)


def summary(*rows, **values):
    plain = {
        "night": "2026-11-20",
        "dag_id": "qure_nightly",
        "run_id": "scheduled",
        "began_at": "2026-11-20T02:00:00.123456+05:30",
        "finished_at": "2026-11-20T02:10:00+05:30",
        "completeness": "nothing was added for the quiet time",
        "counts": {"found": 3, "selected": 1, "not_selected": 1, "duplicate": 0, "quarantined": 1},
        "rows": rows,
        "alerts": {"sent": 1, "failed": 2},
        "deliveries": {"pacs": {"delivered": 4, "held": 1}},
        "problems": (),
    }
    return Summary(**plain | values)


def words(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page[page.index("<body>") :]))


def tag_of(page, text):
    """The classes of the tag that says something."""
    (classes,) = re.findall(rf'<span class="tag([^"]*)">{re.escape(text)}</span>', page)
    return classes.split()


def test_what_is_written_is_read_again():
    written = summary(row(), row(resource="b", is_resolved=False, outcome="timed out"), problems=("b has no answer",))

    assert Summary.from_json(json.loads(json.dumps(written.to_json()))) == written


@pytest.mark.parametrize(
    "value",
    [{}, [], None, {"schema": 2}, {"schema": 1}, {**summary(row()).to_json(), "resources": [{"study": "x"}]}],
)
def test_what_is_no_summary_of_this_schema_is_refused(value):
    with pytest.raises(SummaryFormatError):
        Summary.from_json(value)


def test_every_page_says_that_nobody_verified_it_and_that_no_finding_is_not_normal():
    text = words(summary().to_html())

    assert UNVERIFIED in text
    assert "does not mean “normal”" in text.replace("&ldquo;", "“").replace("&rdquo;", "”")


def test_no_finding_is_marked_by_no_colour_and_unknown_by_its_own():
    page = summary(row(), row(meaning="unknown"), row(meaning="urgent"), row(meaning="abnormal")).to_html()
    style = page[: page.index("</style>")]

    for meaning in ("unknown", "urgent", "abnormal"):
        assert tag_of(page, meaning) == [meaning]
        assert f".tag.{meaning}" in style
    assert tag_of(page, "no finding of this product") == ["no-finding-of-this-product"]
    assert "no-finding" not in style
    assert "green" not in style


def test_what_needs_somebody_comes_first():
    rows = [
        row(resource="r4", meaning="no finding of this product"),
        row(resource="r3", meaning="unknown"),
        row(resource="r1", meaning="urgent"),
        row(resource="r2", meaning="abnormal"),
        row(resource="r0", meaning="unknown", outcome="timed out", is_resolved=False),
    ]
    page = summary(*rows, problems=("r0 timed out",)).to_html()

    assert re.findall(r"resource <code>(\w+)</code>", page) == ["r0", "r1", "r2", "r3", "r4"]
    assert tag_of(page, "needs somebody") == ["needs-somebody"]
    assert "r0 timed out" in words(page)
    assert "without an answer 1" in words(page)


def test_only_results_that_came_are_counted_by_meaning():
    value = summary(row(meaning="unknown", outcome="pending", is_resolved=False), row(meaning="urgent"))

    assert value.meanings == {"urgent": 1}
    assert value.unanswered == 1


@pytest.mark.parametrize(("impression", "says"), [("SIMULATED: nothing", True), ("nothing", False)])
def test_what_an_emulator_made_is_said_to_be_simulated(impression, says):
    value = summary(row(), row(impression=impression))

    assert value.is_simulated is says
    assert ("SIMULATED: this comes from an emulator" in words(value.to_html())) is says


def test_links_lead_from_the_page_to_the_files_in_the_store():
    page = summary(row()).to_html()

    assert 'src="../../../studies/1.2/1.2.3/r1/sc.png"' in page
    assert 'href="../../../studies/1.2/1.2.3/r1/result.json"' in page


def test_a_server_gives_other_addresses():
    page = summary(row()).to_html(lambda row, name: f"at/{row.resource}/{name}", index="", links={"Up": "/up"})

    assert 'src="at/aaaaaaaaaa/sc.png"' in page
    assert 'href="at/aaaaaaaaaa/"' in page
    assert '<a href="/up">Up</a>' in page


def test_the_sums_alerts_and_deliveries_are_shown():
    text = words(summary(row()).to_html())

    assert "Every file is accounted for" in text
    assert "found 3 selected 1 not selected 1 duplicate 0 quarantined 1" in text
    assert "sent 1 never got through 2" in text
    assert "pacs delivered 4 pacs held 1" in text
    assert "2026-11-20 02:00:00+05:30" in text


def test_sums_that_are_off_are_shouted():
    assert "NOT every file is accounted for" in words(summary(row(), counts={"found": 3, "selected": 1}).to_html())


def test_an_empty_night_says_so():
    assert "No series of this night was selected" in words(summary().to_html())


def test_what_is_in_doubt_or_came_late_is_said():
    text = words(summary(row(doubt="may predate late images", revision=2, why="revision")).to_html())

    assert "in doubt may predate late images" in text
    assert "sending 2" in text


@pytest.mark.parametrize(
    ("meaning", "sent", "warns"), [("urgent", 0, True), ("urgent", 1, False), ("abnormal", 0, False)]
)
def test_urgent_results_that_nobody_was_told_of_stand_out(meaning, sent, warns):
    page = summary(row(meaning=meaning), alerts={"sent": sent, "failed": 0}).to_html()

    assert ("Nobody was alerted to the urgent results" in words(page)) is warns


class TestWhatPages:
    def page(self, **paging):
        return summary(row(), paging={"meanings": ["urgent"], "findings": [], "notifiers": 1, **paging}).to_html()

    def test_it_says_that_no_xray_finding_is_on_the_list(self):
        assert "Alerts are for urgent; findings: none listed, so no X-ray." in self.page()

    def test_or_which_are(self):
        assert "Alerts are for urgent; findings: pneumothorax, nodule." in self.page(
            findings=["pneumothorax", "nodule"]
        )

    def test_where_nobody_is_told_it_names_the_setting(self):
        page = summary(row(meaning="urgent"), alerts={"sent": 0, "failed": 0}).to_html()
        assert "Nobody was alerted to the urgent results" in page
        assert "[qure] notifiers" in page
        assert "Alerts are for" not in page

    def test_a_summary_of_before_can_still_be_read(self):
        value = summary(row()).to_json()
        del value["paging"]
        assert Summary.from_json(value).paging == {}
