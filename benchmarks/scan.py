"""Scan: reading an export's headers, against a plain loop with pydicom, and against opening and reading 4 KB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.children import Child
from benchmarks.data import Image, write_series
from benchmarks.figures import Figure, Target, WrongResultError, alternate
from benchmarks.scanners import SCANNERS

_SLICES = 200
_PEERS = {
    "loop": ("a plain pydicom.dcmread loop", Target("ratio", ">=", 1.7)),
    "limit": ("opening and reading 4 KB, the limit", None),
    "headers": ("listing and headers alone, one thread", None),
    "listing": ("listing alone", None),
}


def measure(folder: Path, *, fast: bool) -> Iterator[Figure]:
    """Measure it: 60 CT series of 200 images, and 8,000 X-ray studies of one.

    Args:
        folder: For the files; about 200 MB.
        fast: Whether to take a fifth of it, and fewer rounds.

    Yields:
        The figures.

    Raises:
        WrongResultError: If an image was lost.
    """
    share, rounds = (5, 2) if fast else (1, 5)
    slices, studies = 60 // share, 8_000 // share
    with TemporaryDirectory(dir=folder) as scratch, ExitStack() as stack:
        root = Path(scratch)
        count = 0
        for number in range(slices + studies):
            is_ct = number < slices
            image, images = (Image("CT", 43), _SLICES) if is_ct else (Image("DX", 43), 1)
            target = root / "CT" if is_ct else root / "XR"
            count += sum(1 for _ in write_series(target, image, series=number, count=images, first=count))
        scanners = {name: stack.enter_context(_Scanner(name, root, count)) for name in SCANNERS}
        speed = alternate({name: scanner.files_a_second for name, scanner in scanners.items()}, rounds)
    for name, (peer, target_ratio) in _PEERS.items():
        yield Figure(f"scan of {count:,} files: against {peer}", speed["ours"], "files/s", speed[name], target_ratio)


class _Scanner(Child):
    def __init__(self, name: str, root: Path, count: int) -> None:
        super().__init__("scanners", name, str(root))
        self._count = count
        self.hear()

    def files_a_second(self) -> float:
        """Scan everything once."""
        said = self.ask("scan")
        if said["images"] != self._count:
            raise WrongResultError(f"{self.name}: {said['images']} images found of {self._count}")
        return float(self._count / said["seconds"])
