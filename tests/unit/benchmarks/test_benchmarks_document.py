"""What was measured, as the guide and the README tell it."""

import json

import pytest

from benchmarks import document
from benchmarks.document import GUIDE, README, figures_table, put, ratios_table
from benchmarks.figures import Figure, Target
from benchmarks.model import MEASURED

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


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_run_that_lacks_a_part_is_told_of_and_leaves_the_model_as_it_was(monkeypatch, tmp_path, is_whole):
    guide, readme, measured, run = (tmp_path / name for name in ("guide.md", "readme.md", "measured.jsonl", "run"))
    for path, names in ((guide, ("figures", "model")), (readme, ("ratios",))):
        path.write_text("".join(f"<!-- {name}: -->\n\nold\n\n<!-- end of {name} -->\n" for name in names))
    lines = MEASURED.read_text().splitlines() if is_whole else map(json.dumps, LINES)
    run.write_text("\n".join(lines))
    for name, path in (("GUIDE", guide), ("README", readme), ("MEASURED", measured)):
        monkeypatch.setattr(document, name, path)
    monkeypatch.setattr("sys.argv", ["document", str(run)])

    document.main()

    assert guide.read_text().count("old") == (0 if is_whole else 1)
    assert "old" not in readme.read_text()
    assert measured.exists() == is_whole
