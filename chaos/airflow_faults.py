"""What may happen to Airflow's own processes, and to its runs."""

from __future__ import annotations

from functools import partial

from chaos.airflow_place import SLICES, AirflowPlace
from chaos.own_faults import OURSELVES
from chaos.place import expect
from chaos.scenario import Layer, scenario
from qure_provider.emulator.model import At, Kind, Stall

airflow_scenario = partial(scenario, OURSELVES, layer=Layer.AIRFLOW)


@airflow_scenario(
    "the triggerer is killed (kill -9) while results are waited for",
    "the waits go on in the next one, and end",
)
def triggerer_killed(place: AirflowPlace) -> None:
    place.service.control.configure(processing_seconds=20)
    night, _ = place.usual()
    run = place.start(night)
    place.wait_for(lambda: place.waiting(run) == 2, "the tasks do not wait")
    place.airflow.kill("triggerer")
    place.ends_well(run)


@airflow_scenario(
    "the scheduler is killed (kill -9) in the middle of an upload, and its tasks live on",
    "the next scheduler runs them again, and the orphan is stopped; what was acknowledged is not sent again",
)
def scheduler_killed(place: AirflowPlace) -> None:
    run = _in_the_middle_of_an_upload(place)
    orphan = place.process_of(run, "ct.upload")
    place.airflow.kill("scheduler")
    place.ends_well(run)
    expect(not orphan.is_running(), "the orphan still runs")


@airflow_scenario(
    "a run is cleared in the middle of an upload, from its first task on, and once more when it is over",
    "it begins anew each time; nothing is sent, computed, delivered or told a second time",
)
def run_cleared(place: AirflowPlace) -> None:
    run = _in_the_middle_of_an_upload(place)
    place.clear(run)
    place.ends_well(run)
    place.clear(run)
    place.wait_for(lambda: place.state(run) not in ("", "success"), "the run does not begin again")
    place.ends_well(run)


@airflow_scenario(
    "the API server, without which no task can begin, go on or end, is killed (kill -9) in the middle of an upload",
    "the night goes on when it is back",
)
def api_server_killed(place: AirflowPlace) -> None:
    run = _in_the_middle_of_an_upload(place, seconds=8)
    place.airflow.kill("api-server")
    place.ends_well(run)


@airflow_scenario(
    "a task and its worker are killed (kill -9) in the middle of an upload",
    "the task is missed and begun again where it was; what was acknowledged is not sent again",
)
def worker_killed_in_an_upload(place: AirflowPlace) -> None:
    run = _in_the_middle_of_an_upload(place)
    place.kill_worker(run, "ct.upload")
    place.ends_well(run)


@airflow_scenario(
    "two runs of the same night at once",
    "both may send a series before either has its answer; it is computed, delivered and told once",
)
def two_runs_at_once(place: AirflowPlace) -> None:
    night, _ = place.usual()
    place.resent = 1 + SLICES
    for run in [place.start(night, minute=minute) for minute in (1, 2)]:
        place.ends_well(run)


@airflow_scenario(
    "a backfill of three nights at once",
    "each night gets its own run, its own results and its own summary",
)
def backfill_of_three_nights(place: AirflowPlace) -> None:
    nights = [place.usual()[0] for _ in range(3)]
    for run in place.backfill(nights):
        place.ends_well(run)
    for night in nights:
        expect(len(list((place.store / "runs" / night).glob("*/summary.json"))) == 1, f"no summary of {night}")


@airflow_scenario(
    "files still arrive when the run begins",
    "they are waited for until none came for the quiet time; the series is sent and computed once, whole",
)
def export_still_arrives(place: AirflowPlace) -> None:
    night = place.next_night()
    head = place.urgent_head()
    run = place.start(night)
    place.put(night, head, pause=1)
    expect(place.states(run, "export_is_complete") == ["deferred"], "the export is not waited for")
    place.ends_well(run)
    (held,) = place.service.control.resources(head[0].SeriesInstanceUID)
    expect((held.computed_images, held.revision) == (SLICES, 1), "it was not computed once, whole")


def _in_the_middle_of_an_upload(place: AirflowPlace, seconds: float | None = None) -> str:
    """Run a usual night until the second request of the head's upload gets no answer, for so long.

    Returns:
        The run's id.
    """
    night, head = place.usual()
    stall = Stall(kind=Kind.UPLOAD, at=At.REQUEST, seconds=seconds, uid=head, skip=1)
    place.service.control.inject(stall)
    run = place.start(night)
    place.strikes(stall)
    return run
