"""The whole pipeline as one task group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from airflow.sdk import TaskGroup, TriggerRule, task, task_group
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.xcom_arg import XComArg

from qure_provider import settings
from qure_provider.operators.collect import QureCollectBatchOperator
from qure_provider.operators.compute import QureComputeBatchOperator
from qure_provider.operators.deliver import QureDeliverOperator
from qure_provider.operators.plan import QurePlanOperator
from qure_provider.operators.summarize import QureSummarizeOperator
from qure_provider.operators.upload import QureUploadBatchOperator


def process_export(
    *,
    export: str,
    group_id: str = "process_export",
    qure_conn_id: str = "qure_default",
    files: Sequence[str] | str | None = None,
    selection: Mapping[str, Any] | str | None = None,
    identity_policy: str | None = None,
    store_root: str | None = None,
    max_batches: int | None = None,
    parallel_uploads: int = 4,
    pools: Mapping[str, str] | None = None,
    queues: Mapping[str, str] | None = None,
    wait_seconds: float = 8 * 3600,
    recompute: bool | str = False,
    catch_up: bool = True,
    completeness: str | None = None,
    notifiers: Sequence[AsyncCallback] = (),
    page_on: Sequence[str] = ("urgent",),
    page_findings: Sequence[str] = (),
    deliver_to: Sequence[str] | str = (),
    rules: Sequence[Mapping[str, Any]] = (),
    dry_run: str | None = None,
    first_poll_seconds: float | None = None,
    max_poll_seconds: float | None = None,
    settle_seconds: float | None = None,
    least_share_of_usual: float = 0.5,
    allow_empty: bool = False,
) -> TaskGroup:
    """Turn an export into results: plan, then upload, compute (CT) and collect each batch, then summarize.

    Where something goes onward, the collect tasks deliver what is urgent, and one task beside them all the rest.

    Call it inside a DAG. One bad series never holds back the others: each step takes its work from the ledger, does all
    that it can, and fails at its end for what it could not do; the steps after it run all the same.

    Args:
        export: The export's folder; ``{night}`` in it becomes the night's name.
        group_id: The group's name in the DAG.
        qure_conn_id: The Qure connection.
        files: Paths relative to ``export``, to take only these.
        selection: Rules as ``SelectionRules.from_mapping`` takes them, or their JSON; None for the safe defaults.
        identity_policy: ``deidentify`` or ``identified``; None for ``[qure] identity_policy``, which has no default.
        store_root: The store's root; None for ``[qure] store_root``.
        max_batches: Into how many batches a night is divided at most; None for ``[qure] max_batches``.
        parallel_uploads: How many batches of each route upload at once; keep it below the worker slots, so that resumed
            tasks always find one.
        pools: Step (``plan``, ``upload``, ``compute``, ``collect``, ``deliver``, ``summarize``) to the pool of its
            tasks, which must exist; None for ``[qure] pools``.
        queues: Step to the queue that its tasks go to; None for ``[qure] queues``.
        wait_seconds: How long after the plan results are waited for, in seconds.
        recompute: Whether to send and compute again what earlier runs finished.
        catch_up: Whether to take on, too, what earlier runs to the same destinations left waiting or could not upload.
        completeness: How the export was judged complete: what ``QureExportSensor`` returned.
        notifiers: Who is told of an urgent result: ``AsyncCallback(Notifier, kwargs={...})`` each.
        page_on: Triage meanings that people are told of.
        page_findings: Finding or decision keys that people are told of.
        deliver_to: Destinations that get everything: connection ids (DICOM, DICOMweb, MLLP, FHIR), or folders' URLs; a
            list, or separated by blanks.
        rules: What goes where, as ``delivery.rules.rules_from`` takes it; they stand before ``deliver_to``.
        dry_run: ``upload`` writes what would leave the hospital into the run's folder in the store and sends nothing;
            ``deliver`` does all but deliver, and writes the exact messages there.
        first_poll_seconds: See ``QureCollectBatchOperator``.
        max_poll_seconds: See ``QureCollectBatchOperator``.
        settle_seconds: See ``QureCollectBatchOperator``.
        least_share_of_usual: See ``QureSummarizeOperator``.
        allow_empty: See ``QureSummarizeOperator``.

    Returns:
        The group.

    Raises:
        ValueError: If a pool or queue is named for something that is no step, if ``[qure]`` has an option that does
            not exist, or an argument is not understood.
    """
    settings.check_options()
    place = partial(settings.placement, pools=pools, queues=queues)
    common: dict[str, Any] = {"qure_conn_id": qure_conn_id, "store_root": store_root}
    upload_arguments: dict[str, Any] = {
        "identity_policy": identity_policy,
        "show_only": dry_run,
        "max_active_tis_per_dagrun": parallel_uploads,
        "map_index_template": _LABEL,
        **place("upload"),
        **common,
    }
    onward: dict[str, Any] = {
        "deliver_to": deliver_to,
        "rules": rules,
        "notifiers": notifiers,
        "page_on": page_on,
        "page_findings": page_findings,
        "show_only": dry_run,
    }
    goes_onward = bool(deliver_to or rules)
    collect_arguments: dict[str, Any] = {
        **onward,
        "only_urgent": goes_onward,
        "first_poll_seconds": first_poll_seconds,
        "max_poll_seconds": max_poll_seconds,
        "settle_seconds": settle_seconds,
        "trigger_rule": TriggerRule.ALL_DONE,
        "map_index_template": _LABEL,
        **place("collect"),
        **common,
    }

    bringers: list[str] = []

    @task
    def batches_of(route: str, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [batch for batch in batches if batch["route"] == route]

    @task_group
    def xray(batch: XComArg) -> None:
        upload = QureUploadBatchOperator(task_id="upload", batch=batch, **upload_arguments)
        collect = QureCollectBatchOperator(task_id="collect", batch=batch, **collect_arguments)
        bringers.append(collect.task_id)
        upload >> collect

    @task_group
    def ct(batch: XComArg) -> None:
        upload = QureUploadBatchOperator(task_id="upload", batch=batch, **upload_arguments)
        compute = QureComputeBatchOperator(
            task_id="compute",
            batch=batch,
            trigger_rule=TriggerRule.ALL_DONE,
            map_index_template=_LABEL,
            **place("compute"),
            **common,
        )
        collect = QureCollectBatchOperator(task_id="collect", batch=batch, **collect_arguments)
        bringers.append(collect.task_id)
        upload >> compute >> collect

    with TaskGroup(group_id=group_id) as group:
        plan = QurePlanOperator(
            task_id="plan",
            export=export,
            files=files,
            selection=selection,
            identity_policy=identity_policy,
            max_batches=max_batches,
            wait_seconds=wait_seconds,
            recompute=recompute,
            catch_up=catch_up,
            deliver_to=deliver_to,
            rules=rules,
            show_only=dry_run,
            completeness=completeness,
            run_group=group_id,
            **place("plan"),
            **common,
        )
        summarize = QureSummarizeOperator(
            task_id="summarize",
            run_group=group_id,
            least_share_of_usual=least_share_of_usual,
            allow_empty=allow_empty,
            trigger_rule=TriggerRule.ALL_DONE,
            **onward,
            **place("summarize"),
            **common,
        )
        for route, process in (("ct", ct), ("xray", xray)):
            batches = batches_of.override(task_id=f"{route}_batches")(route, plan.output)  # type: ignore[arg-type]
            process.expand(batch=batches) >> summarize
        if goes_onward:
            deliver = QureDeliverOperator(
                task_id="deliver",
                bringers=bringers,
                run_group=group_id,
                deliver_to=deliver_to,
                rules=rules,
                notifiers=notifiers,
                show_only=dry_run,
                first_poll_seconds=first_poll_seconds,
                **place("deliver"),
                **common,
            )
            plan >> deliver >> summarize
    return group


_LABEL = "{{ task.batch['label'] }}"
