"""A model of big nights: a discrete-event simulation of the pipeline, fed with what ``make bench`` measured.

``python -m benchmarks.model [FIGURES]`` prints what it makes of the nights that were measured, then of bigger ones.

It knows queues for four things (cores, task slots, the line to the service, and the polling ceiling) and what each step
takes of them. Two costs cannot be measured alone and are fitted: the start of a task, to the CPU that the smallest
measured night took, and a result with all that is done about it, to that of 1,000 studies, or the biggest before them.
The other nights check it.
"""

from __future__ import annotations

import argparse
import heapq
import json
import re
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from math import ceil
from pathlib import Path

from rich.console import Console
from rich.table import Table

MEASURED = Path(__file__).parent / "measured.jsonl"
FIRST_POLL = SETTLE = 15.0
HOLD = 60.0
"""The provider's defaults, in seconds."""
_PIECE = 1.0
"""Seconds that one work keeps a core or the line before another has its turn."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What things cost on one core of the machine that was measured.

    Attributes:
        start: Seconds of a core for the start of a task, Airflow's own share included.
        scan: Seconds for a file of the export.
        image: Seconds to send one small image.
        byte: Seconds to send one byte of a large one.
        poll: Seconds for a question of the triggerer.
        result: Seconds for a result, with all that is done about it: asked for, fetched, recorded, accounted for.
        rows: In the ledger for a result; besides those of its images.
        row_bytes: Of one.
        objects: In the store for a result.
    """

    start: float
    scan: float
    image: float
    byte: float
    poll: float
    result: float
    rows: float
    row_bytes: float
    objects: float


@dataclass(frozen=True, slots=True)
class Night:
    """What a night brings.

    Attributes:
        xrays: Studies of one image.
        cts: CT series.
        slices: Of each.
        xray_bytes: Of an image.
        slice_bytes: Of a slice.
        processing: Seconds that the service takes for a result.
    """

    xrays: int
    cts: int = 0
    slices: int = 200
    xray_bytes: float = 10e6
    slice_bytes: float = 0.5e6
    processing: float = 60.0

    @property
    def results(self) -> int:
        """How many there are to be."""
        return self.xrays + self.cts

    @property
    def files(self) -> int:
        """How many images are sent."""
        return self.xrays + self.cts * self.slices

    @property
    def size(self) -> float:
        """In bytes."""
        return self.xrays * self.xray_bytes + self.cts * self.slices * self.slice_bytes


@dataclass(frozen=True, slots=True)
class Site:
    """What does the work.

    Attributes:
        cores: Of all machines.
        slots: Tasks at once.
        uploads: Uploads at once.
        batches: The most that a night is divided into.
        ceiling: Polls a second.
        line: Bytes a second to the service.
        exports: Into how many runs the night is divided.
    """

    cores: int
    slots: int
    uploads: int
    batches: int = 16
    ceiling: float = 10.0
    line: float = 100e6
    exports: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a night goes.

    Attributes:
        seconds: Until the last run is summarized.
        cpu: Seconds of cores.
        starts: Of tasks.
        polls: Of the triggerers.
        busy: What is queued for, to the share of the night in which it is taken.
    """

    seconds: float
    cpu: float
    starts: int
    polls: int
    busy: Mapping[str, float]

    @property
    def limit(self) -> str:
        """What is taken most."""
        return max(self.busy, key=self.busy.__getitem__)


class _Servers:
    """So many of the same, each for one at a time; whoever comes first is served first."""

    def __init__(self, number: int) -> None:
        self._free = [0.0] * number
        self.busy = 0.0
        self.number = number

    def reserve(self, now: float, seconds: float) -> float:
        """Take one as soon as there is one; returns when it is done with."""
        end = max(now, heapq.heappop(self._free)) + seconds
        heapq.heappush(self._free, end)
        self.busy += seconds
        return end


class _Slots:
    def __init__(self, number: int) -> None:
        self.left = number
        self.waiting: deque[_Process] = deque()


_Step = float | tuple[_Servers, float] | _Slots
"""Wait so many seconds; take a server for so long; take a slot."""
_Process = Generator[_Step, None, None]


class _Simulation:
    """One night at one site."""

    def __init__(self, night: Night, site: Site, costs: Costs) -> None:
        self._night, self._site, self._costs = night, site, costs
        self._now = 0.0
        self._due: list[tuple[float, int, _Process]] = []
        self._order = count()
        self._cores, self._line, self._asking = _Servers(site.cores), _Servers(1), _Servers(1)
        self._slots, self._uploads = _Slots(site.slots), _Slots(site.uploads)
        self._starts = self._polls = 0

    def run(self) -> Outcome:
        """Let it happen."""
        for number in range(self._site.exports):
            self._begin(self._export(number))
        while self._due:
            self._now, _, process = heapq.heappop(self._due)
            self._advance(process)
        seconds = self._now
        servers = {"cores": self._cores, "line": self._line, "polling ceiling": self._asking}
        busy = {name: each.busy / each.number / seconds for name, each in servers.items()}
        return Outcome(seconds, self._cores.busy, self._starts, self._polls, busy)

    def _begin(self, process: _Process, at: float | None = None) -> None:
        heapq.heappush(self._due, (self._now if at is None else at, next(self._order), process))

    def _advance(self, process: _Process) -> None:
        step = next(process, None)
        if isinstance(step, tuple):
            servers, seconds = step
            self._begin(process, servers.reserve(self._now, seconds))
        elif isinstance(step, _Slots):
            if step.left:
                step.left -= 1
                self._begin(process)
            else:
                step.waiting.append(process)
        elif step is not None:
            self._begin(process, self._now + step)

    def _give(self, slots: _Slots) -> None:
        if slots.waiting:
            self._begin(slots.waiting.popleft())
        else:
            slots.left += 1

    def _export(self, number: int) -> _Process:
        """Is it complete, plan, and name the batches; each goes its way, and the last one has the night summed up."""
        night = _share(self._night, number, self._site.exports)
        for _ in range(3):
            yield from self._task()
        yield from self._task(night.files * self._costs.scan)
        jobs = []
        for is_ct, parts in _divide(night, max(2, self._site.batches // self._site.exports)).items():
            results = night.cts if is_ct else night.xrays
            jobs += [(is_ct, results // parts + (part < results % parts)) for part in range(parts)]
        left = [len(jobs)]
        for is_ct, results in jobs:
            self._begin(self._batch(is_ct, results, left))

    def _task(self, seconds: float = 0.0) -> _Process:
        yield self._slots
        yield from self._work(seconds)
        self._give(self._slots)

    def _work(self, seconds: float) -> _Process:
        self._starts += 1
        yield from _in_pieces(self._cores, seconds + self._costs.start)

    def _batch(self, is_ct: bool, results: int, left: list[int]) -> _Process:
        night, costs = self._night, self._costs
        size = results * (night.slices * night.slice_bytes if is_ct else night.xray_bytes)
        images = results * (night.slices if is_ct else 1)
        yield self._uploads
        yield self._slots
        yield from self._work(images * costs.image + size * costs.byte)
        yield from _in_pieces(self._line, size / self._site.line)
        self._give(self._slots)
        self._give(self._uploads)
        if is_ct:
            yield from self._task()
        ready = self._now + night.processing
        yield from self._task()
        yield max(FIRST_POLL, ready - self._now)
        is_whole = yield from self._watch(results)
        yield from self._task(results * costs.result)
        if not is_whole:  # what is left is settled by the task's own second look, which costs less than the first
            yield FIRST_POLL + HOLD
            yield from self._task(results * costs.result)
        left[0] -= 1
        if not left[0]:
            yield from self._task()

    def _watch(self, results: int) -> Generator[_Step, None, bool]:
        """Look twice at each; returns whether that was done before what was there first had waited long enough."""
        begun = self._now
        for earliest in (begun, begun + SETTLE):
            yield max(0.0, earliest - self._now)
            left = results
            while left > 0:
                if self._now - begun > SETTLE + HOLD:
                    return False
                some = min(left, ceil(self._site.ceiling * _PIECE))
                yield self._asking, some / self._site.ceiling
                yield self._cores, some * self._costs.poll
                self._polls += some
                left -= some
        return True


def _in_pieces(servers: _Servers, seconds: float) -> _Process:
    while seconds > 0:
        yield servers, min(seconds, _PIECE)
        seconds -= _PIECE


def _divide(night: Night, batches: int) -> dict[bool, int]:
    """How many batches X-ray (False) and CT (True) get: the next one goes where batches are fullest."""
    results = {False: night.xrays, True: night.cts}
    loads = {False: night.xrays * night.xray_bytes, True: night.cts * night.slices * night.slice_bytes}
    shares = {is_ct: min(1, number) for is_ct, number in results.items()}
    for _ in range(batches - sum(shares.values())):
        if wanting := [is_ct for is_ct in shares if shares[is_ct] < results[is_ct]]:
            shares[max(wanting, key=lambda is_ct: loads[is_ct] / shares[is_ct])] += 1
    return shares


def _share(night: Night, number: int, parts: int) -> Night:
    xrays, cts = (each // parts + (number < each % parts) for each in (night.xrays, night.cts))
    return replace(night, xrays=xrays, cts=cts)


def simulate(night: Night, site: Site, costs: Costs) -> Outcome:
    """Let a night happen.

    Args:
        night: What it brings.
        site: What does the work.
        costs: What that costs.

    Returns:
        How it goes.
    """
    return _Simulation(night, site, costs).run()


BENCH = Site(cores=2, slots=4, uploads=4, ceiling=100.0, line=1e12)
"""Where the nights were measured: on one machine with the service, over its loopback interface."""
SMALL_XRAY, SMALL_SLICE, PROCESSING = 115e3, 34e3, 5.0


def measured_night(studies: int) -> Night:
    """The measured night of so many studies, with the three CT series that every one has."""
    return Night(studies + 3, 3, 61, SMALL_XRAY, SMALL_SLICE, PROCESSING)


def measured_ct(series: int, slices: int) -> Night:
    """The measured night of CT series alone."""
    return Night(0, series, slices, SMALL_XRAY, SMALL_SLICE, PROCESSING)


def read_figures(path: Path) -> dict[str, float]:
    """Read what was measured: name and unit of a figure, to ours."""
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {f"{line['name']} [{line['unit']}]": line["ours"] for line in lines}


def fit(figures: Mapping[str, float]) -> Costs:
    """Find the costs.

    Args:
        figures: See ``read_figures``.

    Returns:
        Those under which two of the nights take the CPU that they took.

    Raises:
        KeyError: If a figure is missing, or there are not two nights.
    """
    from_biggest = dict(reversed(figures.items()))
    rows = _find(from_biggest, "X-ray studies: the ledger, a result [rows]")
    costs = Costs(
        start=1.0,
        scan=1 / _find(figures, "scan of ", "the limit [files/s]"),
        image=10e3 / 1e6 / _find(figures, "images of 10 KB: speed, against the vendor's sample"),
        byte=1 / 1e6 / _find(figures, "images of 512 KB: speed, against the vendor's sample"),
        poll=1e-6 * _find(figures, "resources: CPU a poll"),
        result=0.05,
        rows=rows,
        row_bytes=_find(from_biggest, "X-ray studies: the ledger, a result [bytes]") / rows,
        objects=_find(from_biggest, "X-ray studies: the store, a result [objects]"),
    )
    cpu = _measured(figures, "s of CPU")
    few, many = min(cpu, default=0), max((studies for studies in cpu if studies <= _REFERENCE), default=0)
    if few == many:
        raise KeyError("no two nights of different size are measured: run make bench")
    for _ in range(12):
        costs = replace(costs, start=_solve(few, cpu[few], costs, "start"))
        costs = replace(costs, result=_solve(many, cpu[many], costs, "result"))
    return costs


_REFERENCE = 1_000


def _measured(figures: Mapping[str, float], unit: str) -> dict[int, float]:
    """The measured nights of X-ray studies: how many, to what they took."""
    found = {}
    for name, value in figures.items():
        if match := re.fullmatch(rf"a night of ([\d,]+) X-ray studies: against .*\[{unit}\]", name):
            found[int(match[1].replace(",", ""))] = value
    return found


def _find(figures: Mapping[str, float], *parts: str) -> float:
    for name, value in figures.items():
        if all(part in name for part in parts):
            return value
    raise KeyError(f"no figure says {' ... '.join(parts)}: run make bench")


def _solve(studies: int, cpu: float, costs: Costs, field: str) -> float:
    """Find the cost under which a measured night takes so much CPU, by halving."""
    low, high = 0.0, 10.0
    for _ in range(30):
        middle = (low + high) / 2
        took = simulate(measured_night(studies), BENCH, replace(costs, **{field: middle})).cpu
        low, high = (middle, high) if took < cpu else (low, middle)
    return (low + high) / 2


Rows = Iterator[tuple[str, ...]]
"""A table: its head, then its rows."""


def check(figures: Mapping[str, float], costs: Costs) -> Rows:
    """Compare the nights that were measured with what the model makes of them."""
    yield "night", "CPU measured, s", "simulated, s", "off", "time measured, s", "simulated, with both cores free, s"
    cpu, seconds = (_measured(figures, unit) for unit in ("s of CPU", "s"))
    nights = [
        (f"{studies:,} X-ray studies", measured_night(studies), cpu[studies], seconds[studies]) for studies in cpu
    ]
    with suppress(KeyError):
        name = "40 CT series of 200 slices"
        took = (_find(figures, f"a night of {name}: against", f"[{unit}]") for unit in ("s of CPU", "s"))
        nights.append((name, measured_ct(40, 200), *took))
    for name, night, cpu_then, seconds_then in sorted(nights, key=lambda each: each[1].results):
        outcome = simulate(night, BENCH, costs)
        off = f"{outcome.cpu / cpu_then - 1:+.0%}"
        yield name, f"{cpu_then:.0f}", f"{outcome.cpu:.0f}", off, f"{seconds_then:.0f}", f"{outcome.seconds:.0f}"


def forecast(costs: Costs) -> Rows:
    """Say how the bigger nights go."""
    yield "night", "files", "data", "hours", "task starts", "polls", "what is taken most", "ledger", "objects"
    for name, night, site in nights():
        outcome = simulate(night, site, costs)
        rows = night.results * (costs.rows - 1) + night.files
        yield (
            name,
            f"{night.files:,}",
            f"{night.size / 1e12:.2g} TB",
            f"{outcome.seconds / 3600:.1f}",
            f"{outcome.starts:,}",
            f"{outcome.polls:,}",
            f"{outcome.limit}, {outcome.busy[outcome.limit]:.0%}",
            f"{rows / 1e6:.2g} M rows, {rows * costs.row_bytes / 1e9:.2g} GB",
            f"{night.results * costs.objects / 1e6:.2g} M",
        )


def nights() -> Iterator[tuple[str, Night, Site]]:
    """The bigger nights: nine X-rays for each CT series; each with the file as it comes, then with what is turned."""
    as_it_comes = Site(cores=8, slots=16, uploads=6)
    for results, turned in (
        (10_000, replace(as_it_comes, ceiling=50.0)),
        (100_000, replace(as_it_comes, cores=32, slots=64, uploads=24, ceiling=100.0, line=1e9, batches=64, exports=2)),
        (
            1_000_000,
            replace(as_it_comes, cores=192, slots=384, uploads=96, ceiling=500.0, line=4e9, batches=640, exports=20),
        ),
    ):
        night = Night(results * 9 // 10, results // 10)
        yield f"{results:,} series, as it comes", night, as_it_comes
        yield f"{results:,} series, turned", night, turned


def main() -> None:
    """Print the check and the nights."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__)
    parser.add_argument("figures", nargs="?", type=Path, default=MEASURED, help="JSON lines of make bench")
    figures = read_figures(parser.parse_args().figures)
    costs = fit(figures)
    console = Console(width=160)
    console.print(costs)
    for rows in (check(figures, costs), forecast(costs)):
        table = Table(*next(rows))
        for row in rows:
            table.add_row(*row)
        console.print(table)


if __name__ == "__main__":
    main()
