"""The table of scenarios in a document, between two marks, written by the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chaos.scenario import Scenario

BEGIN = "<!-- scenarios: written by make chaos -->"
END = "<!-- end of scenarios -->"

Row = tuple[Scenario, str, str]


def write_table(document: Path, rows: Sequence[Row]) -> None:
    """Replace what stands between the marks; the same results make the same bytes.

    Args:
        document: The document, which has both marks.
        rows: Each scenario, what was counted, and what it came to.

    Raises:
        ValueError: A mark is missing.
    """
    before, begin, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{document.name} lacks the marks between which the table stands")
    document.write_text(f"{before}{BEGIN}\n\n{_table(rows)}\n{END}{after}", encoding="utf-8")


def _table(rows: Sequence[Row]) -> str:
    passed = sum(result == "passed" for _, _, result in rows)
    lines = [f"{passed} of {len(rows)} passed.", ""]
    for group in dict.fromkeys(scenario.group for scenario, _, _ in rows):
        lines += [f"### {group}", "", "| scenario | what goes wrong | what comes of it | layer | counted | result |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [
            f"| `{each.name}` | {each.what} | {each.then} | {each.layer} | {counts} | {result} |"
            for each, counts, result in rows
            if each.group == group
        ]
        lines += [""]
    return "\n".join(lines)
