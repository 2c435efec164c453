"""Those who read an export, each in a process of its own that waits to be told.

``python -m benchmarks.scanners NAME FOLDER``.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.children import orders, say, timed

Scan = Callable[[Path], int]
"""Reads a whole export; returns how many images it found."""


def ours(root: Path) -> int:
    """The provider's scan, as it comes: it accounts for every file, copies and truncated ones too."""
    from qure_provider.dicom.scan import scan

    found = scan(root)
    return sum(len(series.instances) for series in found.series)


def listing(root: Path) -> int:
    """The part of our scan that lists the files."""
    from qure_provider.dicom.export import export_at

    return len(export_at(root).list_all(1_000_000).files)


def headers(root: Path) -> int:
    """The parts of our scan that list the files, open them and read their headers; one thread."""
    from qure_provider.dicom.export import export_at
    from qure_provider.dicom.reader import read_header
    from qure_provider.dicom.record import WANTED

    export = export_at(root)
    count = 0
    for path in export.list_all(1_000_000).files:
        with export.open(path) as file:
            count += read_header(file, WANTED, limit=1_000_000).whole
    return count


def loop(root: Path) -> int:
    """What one would write: pydicom reads each file up to its pixels; images are put together by series."""
    import pydicom

    series: dict[str, list[str]] = defaultdict(list)
    for path in _files(root):
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        series[dataset.SeriesInstanceUID].append(dataset.SOPInstanceUID)
    return sum(map(len, series.values()))


def limit(root: Path) -> int:
    """What the machine can do: open each file and read 4 KB."""
    count = 0
    for path in _files(root):
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - the limit takes no detour
            count += bool(file.read(4096))
    return count


def _files(root: Path) -> Iterator[str]:
    for folder, _, names in os.walk(root):
        for name in names:
            yield f"{folder}/{name}"


SCANNERS: Mapping[str, Scan] = {
    "ours": ours,
    "listing": listing,
    "headers": headers,
    "loop": loop,
    "limit": limit,
}


def main() -> None:
    """Scan whenever told."""
    name, folder = sys.argv[1:]
    run, root = SCANNERS[name], Path(folder)
    run(next(path for path in root.iterdir()))  # what is only done the first time is not measured
    say({"ready": name})
    for _ in orders():
        say(timed(lambda: {"images": run(root)}))


if __name__ == "__main__":
    main()
