"""Write what was measured into docs/scale.md and README.md.

``python -m benchmarks.document [FIGURES]``, after ``make bench`` on a machine that does nothing else. The figures are
kept beside this file, for the model; where one that it needs is missing, it stays as it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.model import MEASURED, check, fit, forecast, read_figures

ROOT = Path(__file__).resolve().parent.parent
GUIDE, README = ROOT / "docs" / "scale.md", ROOT / "README.md"

RATIOS: Sequence[tuple[str, str, str, str]] = (
    ("Upload of a CT series, speed", "the vendor's sample", "512 KB: speed, against the vendor's sample", "MB/s"),
    ("", "`sendfile` on raw sockets, the limit", "512 KB: speed, against sendfile", "MB/s"),
    ("Upload of a CT series de-identified, speed", "as it is", "512 KB: speed, de-identified against", "MB/s"),
    ("Upload of small images, speed", "the vendor's sample", "10 KB: speed, against the vendor's sample", "MB/s"),
    ("Scan of an export, speed", "a plain `pydicom.dcmread` loop", "against a plain pydicom.dcmread loop", "files/s"),
    ("Waiting, CPU a poll", "the http provider's deferrable `HttpSensor`", "resources: CPU a poll", "µs"),
    ("Waiting, memory a resource", "the same", "resources: memory a resource", "bytes"),
    ("A night of 1,000 X-ray studies, time", "a bare script, the limit", "of 1,000 X-ray studies: against a bare", "s"),
    ("", "a mapped chain of tasks a series", "of 1,000 X-ray studies: against a mapped chain", "s"),
    ("A night of 3,000, time", "one of 1,000", "3,000 X-ray studies, against 1,000", "s"),
)
"""What the README tells: what, against what, and which figure says it."""


def figures_table(lines: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """All figures as a Markdown table.

    Args:
        lines: As ``make bench`` writes them.

    Yields:
        Its lines.
    """
    yield from _head("figure", "ours", "theirs", "unit", "ratio", "target", "met")
    for line in lines:
        met = {True: "yes", False: "**no**", None: ""}[line["met"]]
        numbers = [_number(line[name]) for name in ("ours", "theirs", "ratio")]
        yield _row(line["name"], *numbers[:2], line["unit"], numbers[2], line["target"] or "", met)


def ratios_table(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The ratios that the README tells; what was not measured is left out.

    Args:
        lines: As ``make bench`` writes them.

    Yields:
        The lines of a Markdown table.
    """
    yield from _head("what", "against", "ratio", "ours", "asked for")
    for what, against, name, unit in RATIOS:
        for line in (line for line in lines if name in line["name"] and line["unit"] == unit):
            yield _row(what, against, _number(line["ratio"]), f"{_number(line['ours'])} {unit}", line["target"] or "")
            break


def model_tables(figures: Mapping[str, float]) -> Iterator[str]:
    """What the model makes of the measured nights and of bigger ones.

    Args:
        figures: See ``read_figures``.

    Yields:
        The lines of two Markdown tables.
    """
    costs = fit(figures)
    for number, rows in enumerate((check(figures, costs), forecast(costs))):
        if number:
            yield ""
        yield from _head(*next(rows))
        yield from (_row(*row) for row in rows)


def put(text: str, name: str, lines: Iterable[str]) -> str:
    """Put lines between the two comments of a name.

    Args:
        text: Markdown.
        name: Of the comments, ``<!-- name: ... -->`` and ``<!-- end of name -->``.
        lines: What comes between them.

    Returns:
        The new text.

    Raises:
        ValueError: If the text has no such comments.
    """
    before, opening, rest = text.partition(f"<!-- {name}:")
    comment, closing, old = rest.partition("-->")
    _, ending, after = old.partition(f"<!-- end of {name} -->")
    if not (opening and closing and ending):
        raise ValueError(f"there is no place for {name}")
    return "\n".join([f"{before}{opening}{comment}{closing}", "", *lines, "", f"{ending}{after}"])


def _head(*names: str) -> Iterator[str]:
    yield _row(*names)
    yield _row(*("---" for _ in names))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.document", description=__doc__)
    parser.add_argument("figures", nargs="?", type=Path, default=ROOT / "build" / "bench.jsonl")
    path = parser.parse_args().figures
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    guide = put(GUIDE.read_text(encoding="utf-8"), "figures", figures_table(lines))
    try:
        guide = put(guide, "model", model_tables(read_figures(path)))
    except KeyError as error:
        print(f"The model stays as it was: {error.args[0]}")
    else:
        if path.resolve() != MEASURED:
            shutil.copy(path, MEASURED)
    GUIDE.write_text(guide, encoding="utf-8")
    README.write_text(put(README.read_text(encoding="utf-8"), "ratios", ratios_table(lines)), encoding="utf-8")


if __name__ == "__main__":
    main()
