"""``python -m fuzz``: damages real files and answers, and looks whether anything but a named outcome comes of it."""

import argparse
import json
import logging
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from fuzz.targets import TARGETS

CASE_SECONDS = 10.0
"""Of processor time that one case may take."""
MEMORY = 768 * 1024 * 1024
"""How much a process may grow, in bytes: what is read is bounded at 16 MiB, and parsers take a multiple of that."""


class TooSlowError(BaseException):
    """A case took too long. No parser catches it."""


@dataclass
class Tally:
    """What came of some cases of one target."""

    cases: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    outcomes: Counter = field(default_factory=Counter)
    failures: list = field(default_factory=list)

    def add(self, other):
        self.cases += other.cases
        self.seconds += other.seconds
        self.slowest = max(self.slowest, other.slowest)
        self.outcomes += other.outcomes
        self.failures += other.failures


def run_cases(name, seed, numbers):
    """Run some cases; the same seed and number is the same case."""
    tally = Tally()
    signal.signal(signal.SIGVTALRM, _too_slow)
    logging.disable()
    try:
        _run_cases(tally, name, seed, numbers)
    finally:
        logging.disable(logging.NOTSET)
    return tally


def _run_cases(tally, name, seed, numbers):
    for number in numbers:
        began = time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, CASE_SECONDS)
        try:
            tally.outcomes[TARGETS[name].run(random.Random(f"{seed}/{name}/{number}"))] += 1
        except (Exception, TooSlowError):
            tally.failures.append((number, traceback.format_exc(limit=-12)))
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        took = time.process_time() - began
        tally.cases += 1
        tally.seconds += took
        tally.slowest = max(tally.slowest, took)


def _too_slow(*_):
    raise TooSlowError(f"a case took more than {CASE_SECONDS:g} s of processor time")


def _bounded():
    """Let a process that grows too large fail where it does."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with open("/proc/self/statm") as statm:  # noqa: PTH123
        size = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (max(size, used) + MEMORY,) * 2)


def run_all(cases, seed, *, only="", processes=2):
    """Run all targets, each by its share.

    Returns:
        Target to its tally.
    """
    chosen = {name: target for name, target in TARGETS.items() if only in ("", name)}
    shares = sum(target.share for target in chosen.values())
    tallies = {name: Tally() for name in chosen}
    with ProcessPoolExecutor(processes, initializer=_bounded) as pool:
        waiting = []
        for name, target in chosen.items():
            count = max(1, cases * target.share // shares)
            step = max(1, min(2000, count // processes or 1))
            waiting += [
                (name, pool.submit(run_cases, name, seed, range(begin, min(begin + step, count))))
                for begin in range(0, count, step)
            ]
        for name, future in waiting:
            tallies[name].add(future.result())
    return tallies


def main():
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000, help="how many, over all targets (100000)")
    parser.add_argument("--seed", default=str(random.SystemRandom().randrange(10**9)), help="decides them (random)")
    parser.add_argument("--target", default="", choices=["", *TARGETS], help="only this one")
    parser.add_argument("--case", type=int, help="run one case of the target again, in this process")
    options = parser.parse_args()
    if options.case is not None:
        tally = run_cases(options.target, options.seed, [options.case])
        print(*tally.outcomes, *(text for _, text in tally.failures))
        return bool(tally.failures)
    began = time.monotonic()
    tallies = run_all(options.cases, options.seed, only=options.target)
    print(f"seed {options.seed}")
    for name, tally in tallies.items():
        rate = tally.cases / max(tally.seconds, 0.001)
        print(f"{name:9}{tally.cases:8} cases {rate:8.0f}/s  slowest {tally.slowest:6.3f} s", end="  ")
        print(", ".join(f"{count} {outcome}" for outcome, count in tally.outcomes.most_common(6)))
        for number, text in tally.failures[:3]:
            again = f"python -m fuzz --seed {options.seed} --target {name} --case {number}"
            print(f"FAILED: {json.dumps(again)}\n{text}")
    total = sum(tally.cases for tally in tallies.values())
    failed = sum(len(tally.failures) for tally in tallies.values())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    print(f"{total} cases in {time.monotonic() - began:.0f} s, peak memory of a process {peak} MiB, {failed} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
