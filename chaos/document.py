"""The table of scenarios in a document, between two marks, written by the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chaos.scenario import Scenario

BEGIN = "<!-- scenarios: written by make chaos -->"
END = "<!-- end of scenarios -->"

Row = tuple[Scenario, str, bool]


def write_table(document: Path, rows: Sequence[Row]) -> None:
    """Replace what stands between the marks; the same results make the same bytes.

    Args:
        document: The document, which has both marks.
        rows: Each scenario, what was counted, and whether it passed.

    Raises:
        ValueError: A mark is missing.
    """
    before, begin, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{document.name} lacks the marks between which the table stands")
    document.write_text(f"{before}{BEGIN}\n\n{_table(rows)}\n{END}{after}", encoding="utf-8")


def _table(rows: Sequence[Row]) -> str:
    passed = sum(is_passed for _, _, is_passed in rows)
    lines = [f"{passed} of {len(rows)} passed.", ""]
    for group in dict.fromkeys(scenario.group for scenario, _, _ in rows):
        lines += [f"### {group}", "", "| scenario | what goes wrong | what comes of it | layer | counted | result |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [
            f"| `{each.name}` | {each.what} | {each.then} | {each.layer} | {counts} | {_word(is_passed)} |"
            for each, counts, is_passed in rows
            if each.group == group
        ]
        lines += [""]
    return "\n".join(lines)


def _word(is_passed: bool) -> str:
    return "passed" if is_passed else "**FAILED**"
