import pytest

from chaos.document import BEGIN, END, NOT_YET, not_passed, write_table
from chaos.scenario import Layer, Scenario

SCENARIOS = [
    Scenario("one-thing", "A", "it breaks", "it mends", Layer.STEPS, print, {}),
    Scenario("another", "B", "it stops", "it goes on", Layer.AIRFLOW, print, {}),
]
PASSED, FAILED = ("lost=0 doubled=0", "passed"), ("lost=1 doubled=0", "FAILED")


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "reliability.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    return path


def test_the_table_stands_between_the_marks(document):
    write_table(document, SCENARIOS, {"one-thing": PASSED, "another": FAILED})
    text = document.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "1 of 2 passed." in text
    assert "| `one-thing` | it breaks | it mends | steps | lost=0 doubled=0 | passed |" in text
    assert "| `another` | it stops | it goes on | Airflow | lost=1 doubled=0 | FAILED |" in text


def test_the_same_results_make_the_same_bytes(document):
    write_table(document, SCENARIOS, {"one-thing": PASSED, "another": FAILED})
    once = document.read_bytes()
    write_table(document, SCENARIOS, {"another": FAILED, "one-thing": PASSED})
    assert document.read_bytes() == once


def test_what_was_not_played_this_time_keeps_its_result(document):
    write_table(document, SCENARIOS, {"one-thing": PASSED})
    assert "| `another` | it stops | it goes on | Airflow |  | not played yet |" in document.read_text()
    write_table(document, SCENARIOS, {"another": PASSED})
    assert "2 of 2 passed." in document.read_text()


def test_a_scenario_that_is_no_more_leaves_the_table(document):
    write_table(document, SCENARIOS, {"one-thing": PASSED, "another": PASSED})
    write_table(document, SCENARIOS[:1], {})
    assert "another" not in document.read_text()


def test_a_document_without_marks_is_left_alone(document):
    document.write_text("no marks")
    with pytest.raises(ValueError, match="marks"):
        write_table(document, SCENARIOS, {})
    assert document.read_text() == "no marks"


def test_what_failed_was_not_reached_or_is_new_remains(document):
    third = Scenario("third", "B", "it is late", "it is waited for", Layer.STEPS, print, {})
    fourth = Scenario("fourth", "B", "it is gone", "it is made anew", Layer.STEPS, print, {})
    assert not_passed(document, SCENARIOS) == SCENARIOS
    write_table(document, [*SCENARIOS, third], {"one-thing": PASSED, "another": FAILED, "third": PASSED})
    assert not_passed(document, [*SCENARIOS, third, fourth]) == [SCENARIOS[1], fourth]
    write_table(document, [*SCENARIOS, third], {"third": NOT_YET})
    assert not_passed(document, [*SCENARIOS, third]) == [SCENARIOS[1], third]
