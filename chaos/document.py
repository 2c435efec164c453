"""The table of scenarios in a document, between two marks, written by each run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from chaos.scenario import Scenario

BEGIN = "<!-- scenarios: written by make chaos -->"
END = "<!-- end of scenarios -->"
NOT_YET = ("", "not played yet")
PASSED = "passed"

Results = Mapping[str, tuple[str, str]]
"""Name of a scenario to what was counted and what it came to."""


def write_table(document: Path, scenarios: Iterable[Scenario], results: Results) -> None:
    """Write the results of a run between the marks; what was not played this time keeps what it had.

    The same results make the same bytes.

    Args:
        document: The document, which has both marks.
        scenarios: All that there are.
        results: Of those that were played.

    Raises:
        ValueError: A mark is missing.
    """
    before, begin, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    old, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{document.name} lacks the marks between which the table stands")
    table = _table(list(scenarios), {**_results(old), **results})
    document.write_text(f"{before}{BEGIN}\n\n{table}\n{END}{after}", encoding="utf-8")


def not_passed(document: Path, scenarios: Iterable[Scenario]) -> list[Scenario]:
    """Return the scenarios that the last run to play them, or to be about to, did not see pass.

    Args:
        document: The document, which has both marks.
        scenarios: Which to look for.

    Returns:
        Those, in their order; all where the table has none.
    """
    results = _results(document.read_text(encoding="utf-8"))
    return [each for each in scenarios if results.get(each.name, NOT_YET)[1] != PASSED]


def _results(table: str) -> dict[str, tuple[str, str]]:
    rows = re.findall(r"(?m)^\| `([\w-]+)` \|.*\| ([^|]*) \| ([^|]*) \|$", table)
    return {name: (counts, result) for name, counts, result in rows}


def _table(scenarios: list[Scenario], results: Results) -> str:
    found = [results.get(each.name, NOT_YET) for each in scenarios]
    passed = sum(result == PASSED for _, result in found)
    lines = [f"{passed} of {len(scenarios)} passed.", ""]
    for group in dict.fromkeys(scenario.group for scenario in scenarios):
        lines += [f"### {group}", "", "| scenario | what goes wrong | what comes of it | layer | counted | result |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [
            f"| `{each.name}` | {each.what} | {each.then} | {each.layer} | {counts} | {result} |"
            for each, (counts, result) in zip(scenarios, found, strict=True)
            if each.group == group
        ]
        lines += [""]
    return "\n".join(lines)
