"""What may happen to what we keep: the store and the ledger."""

from __future__ import annotations

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from chaos.disk import small_disk
from chaos.place import Batch, NotPossibleError, Place, expect
from chaos.scenario import scenario
from qure_provider.emulator.model import At, Kind, Stall
from qure_provider.ledger.ledger import Ledger
from qure_provider.store import ledger_url
from tests.support.postgresql import PROGRAMS, running_postgresql

OURSELVES = "Ourselves"


@scenario(
    OURSELVES,
    "the store's disk is full in the middle of a night",
    "the run is red; once there is room the next night brings everything home",
)
def disk_full(place: Place) -> None:
    place.usual()
    grow = place.stack.enter_context(small_disk(place.root, kilobytes=400))
    place.night()
    expect(place.red, "the run is green")
    grow(100_000)
    place.a_quarter_of_an_hour_passes()
    place.redelivered()
    place.resent = 15  # what was acknowledged and could not be recorded
    place.repeated = 20  # idem
    place.night()
    place.a_quarter_of_an_hour_passes()
    place.redelivered()  # what was in doubt when the disk was full has its answer by now
    place.night()
    place.must_be_whole()


@scenario(
    OURSELVES,
    "the ledger's database (PostgreSQL) is gone in the middle of a night",
    "every step stops, none guesses; once it is back the next night goes on from what it knows",
)
def ledger_database_gone(place: Place) -> None:
    if not PROGRAMS.exists():
        raise NotPossibleError("PostgreSQL is not installed")
    server = place.stack.enter_context(running_postgresql())
    place.move_ledger(server.port)
    place.usual()
    place.meanwhile = server.stop
    place.night()
    expect(place.red, "the run is green")
    server.start()
    place.meanwhile = lambda: None
    place.repeated = 20  # what was sent, and could not be recorded
    place.night()
    place.a_quarter_of_an_hour_passes()
    place.redelivered()
    place.night()
    place.must_be_whole()


@scenario(
    OURSELVES,
    "the ledger's file (SQLite) is gone, and the store is not",
    "no new ledger is begun beside the old results; once it is back all is as it was",
)
def ledger_file_gone(place: Place) -> None:
    place.usual()
    place.night()
    ledger = place.root / "ledger.sqlite3"
    hidden = ledger.rename(ledger.with_name("hidden"))
    sent = place.sent()
    place.night()
    expect("ledger" in place.red, f"the run does not say that its ledger is gone: {place.red}")
    expect(place.sent() == sent, "files were sent again")
    hidden.rename(ledger)
    place.night()
    place.must_be_whole()


@scenario(
    OURSELVES,
    "the worker is killed (kill -9) in the plan, an upload, a compute, a collect and the summary, one after the other",
    "the next try of each goes on where it was; what was acknowledged is not sent again",
    max_request_bytes=6000,
    parallel_uploads=1,
)
def worker_killed_in_each_step(place: Place) -> None:
    _, _, head = place.usual()
    place.recomputed = 1  # what went in parts is asked for with recompute, and the first answer is lost
    place.begin()
    _killed_while_locked(place, "plan")
    batches = place.planned() or []
    (ct,) = [batch for batch in batches if batch["route"] == "ct"]
    _killed_while_stalled(place, "upload", ct, Stall(kind=Kind.UPLOAD, at=At.REQUEST, uid=head, skip=2))
    place.attempt(lambda: place.upload(ct))
    _killed_while_stalled(place, "compute", ct, Stall(kind=Kind.COMPUTE, at=At.ANSWER, uid=head))
    place.attempt(lambda: place.compute(ct))
    _killed_while_stalled(place, "collect_onward", ct, Stall(kind=Kind.ASSET, at=At.BODY, uid=head))
    for batch in batches:
        place.process_batch(batch)
    _killed_while_locked(place, "end")
    place.end()
    place.must_be_whole()


def _killed_while_stalled(place: Place, step: str, batch: Batch, fault: Stall) -> None:
    """Kill a step's process when a request of it is under way that gets no answer, and no alert is just being sent."""
    place.control.inject(fault)
    with place.in_process(step, batch) as process:
        until = time.monotonic() + 60
        while place.control.pending_faults() or _is_telling(place):
            expect(process.poll() is None and time.monotonic() < until, f"{step} does not stall")
            time.sleep(0.05)
        process.kill()


def _is_telling(place: Place) -> bool:
    with place.ledger() as ledger:
        return bool(ledger.unsent_alerts(row.id for row in place.rows().values()))


def _killed_while_locked(place: Place, step: str) -> None:
    """Kill a step's process while it waits for the ledger."""
    url = ledger_url(str(place.root))
    with Ledger.open(url, create=True) as ledger, ledger._engine.begin(), place.in_process(step) as process:
        process.stdout.readline()
        time.sleep(1)
        expect(process.poll() is None, f"{step} does not wait for the ledger")
        process.kill()


@scenario(
    OURSELVES,
    "two runs of the same night at once, step by step beside each other",
    "both may send a series before either has its answer; it is computed, delivered and told once",
)
def two_runs_of_one_night(place: Place) -> None:
    place.usual()
    place.begin()
    other = copy.copy(place)
    other.begin()
    plans = [(run, batch) for run in (place, other) for batch in run.planned() or ()]
    place.resent = 13  # both may begin with a series before either has an answer
    with ThreadPoolExecutor(len(plans)) as pool:
        list(pool.map(lambda each: each[0].process_batch(each[1]), plans))
    for run in (place, other):
        run.end()
    place.redelivered()
    place.night()
    place.must_be_whole()


@scenario(
    OURSELVES,
    "every step of a night is run twice, and then the whole night again, and the deliveries",
    "nothing is sent, computed, delivered or told a second time",
)
def every_step_twice(place: Place) -> None:
    place.usual()
    place.begin()
    place.planned()
    for batch in place.planned() or ():
        for step in (place.upload, place.compute, place.collect_onward):
            for _ in range(2):
                place.attempt(partial(step, batch))
    place.end()
    place.end()
    place.must_be_whole()
    place.redelivered()
    place.night()
    place.must_be_whole()
