"""What may happen to Airflow's own processes, and to its runs."""

from __future__ import annotations

import time

from chaos.own_faults import OURSELVES
from chaos.place import expect
from chaos.plant import COMPONENTS, Export, Plant
from chaos.scenario import Layer, scenario
from qure_provider.emulator.model import At, Kind, Stall
from tests.integration.pipeline.pipeline_kit import slices


@scenario(
    OURSELVES,
    "the worker is killed (kill -9) in the plan, an upload, a compute, a collect and the summary, one after the other",
    "each step goes on where it was; nothing that was acknowledged is sent again",
    layer=Layer.AIRFLOW,
)
def airflow_worker_killed_in_each_step(plant: Plant) -> None:
    export = plant.usual()
    run = plant.start(export.night)
    _killed_while_locked(plant, run, "plan")
    head = export.head
    _killed_while_stalled(plant, run, export, "ct.upload", Stall(kind=Kind.UPLOAD, at=At.REQUEST, uid=head, skip=1))
    _killed_while_stalled(plant, run, export, "ct.compute", Stall(kind=Kind.COMPUTE, at=At.ANSWER, uid=head))
    _killed_while_stalled(plant, run, export, "ct.collect", Stall(kind=Kind.ASSET, at=At.BODY, uid=head))
    _killed_while_locked(plant, run, "summarize")
    plant.ends(run)


@scenario(
    OURSELVES,
    "the triggerer is killed while results are waited for",
    "the waits go on in the next one, and end",
    layer=Layer.AIRFLOW,
)
def triggerer_killed(plant: Plant) -> None:
    plant.service.control.configure(processing_seconds=20)
    export = plant.usual()
    run = plant.start(export.night)
    plant.wait_for(lambda: plant.count(run, "deferred") == 2, "the tasks do not wait")
    plant.kill("triggerer")
    plant.restart("triggerer")
    plant.service.control.configure(processing_seconds=1)
    plant.ends(run)


@scenario(
    OURSELVES,
    "the scheduler is killed in the middle of an upload, and its tasks live on",
    "the next scheduler runs them again; the orphan stops when it has lost its lease",
    layer=Layer.AIRFLOW,
)
def scheduler_killed(plant: Plant) -> None:
    export = plant.usual()
    stalled = plant.strike(Stall(kind=Kind.UPLOAD, at=At.REQUEST, seconds=25, uid=export.head, skip=1))
    run = plant.start(export.night)
    plant.wait_for(stalled, "no upload stalls")
    plant.kill("scheduler")
    plant.restart("scheduler")
    plant.resent = 2
    plant.ends(run)


@scenario(
    OURSELVES,
    "the API server is killed in the middle of a night, and comes back",
    "the night goes on",
    layer=Layer.AIRFLOW,
)
def api_server_killed(plant: Plant) -> None:
    export = plant.usual()
    stalled = plant.strike(Stall(kind=Kind.UPLOAD, at=At.REQUEST, seconds=8, uid=export.head, skip=1))
    run = plant.start(export.night)
    plant.wait_for(stalled, "no upload stalls")
    plant.kill("api-server")
    plant.restart("api-server")
    plant.resent = 2
    plant.ends(run)


@scenario(
    OURSELVES,
    "the power fails: every process of Airflow is killed in the middle of a night",
    "once started again the night goes on; nothing that was acknowledged is sent again",
    layer=Layer.AIRFLOW,
)
def power_cut(plant: Plant) -> None:
    export = plant.usual()
    stalled = plant.strike(Stall(kind=Kind.UPLOAD, at=At.REQUEST, seconds=None, uid=export.head, skip=1))
    run = plant.start(export.night)
    plant.wait_for(stalled, "no upload stalls")
    plant.kill_everything()
    plant.restart(*COMPONENTS)
    plant.ends(run)


@scenario(
    OURSELVES,
    "the run is cleared, from its first task on, in the middle of an upload",
    "it begins anew, and sends and delivers nothing twice",
    layer=Layer.AIRFLOW,
)
def cleared_half_way(plant: Plant) -> None:
    export = plant.usual()
    stalled = plant.strike(Stall(kind=Kind.UPLOAD, at=At.REQUEST, seconds=None, uid=export.head, skip=1))
    run = plant.start(export.night)
    plant.wait_for(stalled, "no upload stalls")
    plant.clear(run)
    plant.ends(run)


@scenario(
    OURSELVES,
    "a whole night is cleared and run again when it is over",
    "nothing is sent, computed, delivered or told a second time",
    layer=Layer.AIRFLOW,
)
def cleared_when_over(plant: Plant) -> None:
    export = plant.usual()
    run = plant.start(export.night)
    plant.ends(run)
    plant.clear(run)
    plant.wait_for(lambda: not plant.ended(run), "the run does not begin again")
    plant.ends(run)


@scenario(
    OURSELVES,
    "two runs of the same night at once",
    "each file is sent once, each result delivered once, by one of them",
    layer=Layer.AIRFLOW,
)
def two_runs_at_once(plant: Plant) -> None:
    export = plant.usual()
    runs = [plant.start(export.night, minute=minute) for minute in (1, 2)]
    for run in runs:
        plant.ends(run)


@scenario(
    OURSELVES,
    "a backfill of three nights",
    "each night gets its own run, its own results and its own summary",
    layer=Layer.AIRFLOW,
)
def backfill_of_three_nights(plant: Plant) -> None:
    nights = [plant.usual().night for _ in range(3)]
    for run in plant.backfill(nights):
        plant.ends(run)
    for night in nights:
        expect(len(list((plant.store / "runs" / night).glob("*/summary.json"))) == 1, f"no summary of {night}")


@scenario(
    OURSELVES,
    "the export still arrives when the run begins",
    "it is waited for until nothing was added for the quiet time, and sent once",
    layer=Layer.AIRFLOW,
)
def export_still_arrives(plant: Plant) -> None:
    night = plant.next_night()
    head = slices(12, **plant.patient())
    run = plant.start(night)
    for number, each in enumerate(head):
        plant.put(night, f"head/{number}", [each])
        time.sleep(0.7)
    plant.ends(run)
    held = plant.service.control.resources(head[0].SeriesInstanceUID)
    expect([each.computed_images for each in held] == [12], "it was computed before it was whole")


def _killed_while_locked(plant: Plant, run: str, task: str) -> None:
    found = plant.wait_for(lambda: plant.find(run, task), f"{task} does not run")
    with plant.ledger_locked():
        plant.kill_worker(found)


def _killed_while_stalled(plant: Plant, run: str, export: Export, task: str, fault: Stall) -> None:
    stalled = plant.strike(fault)
    plant.wait_for(stalled, f"no {task} stalls")
    label = plant.label(export, export.head)
    plant.kill_worker(plant.wait_for(lambda: plant.find(run, task, label), f"{task} does not run"))
