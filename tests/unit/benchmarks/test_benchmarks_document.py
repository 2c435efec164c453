"""What was measured, as the guide and the README tell it."""

import json

import pytest

from benchmarks.document import GUIDE, README, figures_table, put, ratios_table
from benchmarks.figures import Figure, Target

LINES = [
    json.loads(figure.to_json(""))
    for figure in (
        Figure(
            "a CT series of 2,000 images of 512 KB: speed, against the vendor's sample",
            1234.5,
            "MB/s",
            300.0,
            Target("ratio", ">=", 3),
        ),
        Figure("3,000 X-ray studies, against 1,000", 700.0, "s", 200.0, Target("ratio", "<=", 3.3)),
        Figure("3,000 X-ray studies, against 1,000", 900.0, "s of CPU", 300.0),
        Figure("open files", 8, "files"),
    )
]


def test_every_figure_is_a_row_and_a_missed_target_stands_out():
    head, rule, *rows = figures_table(LINES)

    assert len(rows) == len(LINES)
    assert {row.count("|") for row in (head, rule, *rows)} == {8}
    assert "| 1,234 | 300 | MB/s | 4.12 | ratio >= 3 | yes |" in rows[0]
    assert rows[1].endswith("| ratio <= 3.3 | **no** |")


def test_the_readme_tells_ratios_of_what_was_measured_and_nothing_else():
    _, _, *rows = ratios_table(LINES)

    assert rows == [
        "| Upload of a CT series, speed | the vendor's sample | 4.12 | 1,234 MB/s | ratio >= 3 |",
        "| A night of 3,000, time | one of 1,000 | 3.5 | 700 s | ratio <= 3.3 |",
    ]


def test_lines_take_the_place_of_older_ones():
    text = "before\n<!-- figures: by make bench -->\n\nold\n\n<!-- end of figures -->\nafter\n"

    once = put(text, "figures", ["new"])

    assert once == "before\n<!-- figures: by make bench -->\n\nnew\n\n<!-- end of figures -->\nafter\n"
    assert put(once, "figures", ["new"]) == once
    with pytest.raises(ValueError, match="model"):
        put(text, "model", [])


@pytest.mark.parametrize(("path", "names"), [(GUIDE, ("figures", "model")), (README, ("ratios",))])
def test_both_have_the_places(path, names):
    text = path.read_text(encoding="utf-8")

    for name in names:
        assert put(text, name, ["x"]) != text
