"""Every night: read the PACS's export, let Qure compute it, bring the results home."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG, Param

from qure_provider import settings
from qure_provider.sensors.export import QureExportSensor
from qure_provider.task_groups.process_export import process_export

with DAG(
    dag_id="qure_nightly",
    description="A night's export in, AI results out",
    schedule="0 2 * * *",
    start_date=pendulum.datetime(2026, 1, 1, tz=settings.timezone()),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["qure", "radiology"],
    params={
        "export": Param(
            settings.night_export(),
            type="string",
            minLength=1,
            title="Export folder",
            description="Where the PACS wrote the studies; {night} becomes the night's date, 2026-11-20, and "
            "{night:YYYYMMDD} 20261120.",
        ),
        "quiet_seconds": Param(
            300,
            type="number",
            minimum=0,
            title="Quiet time (s)",
            description="The export is complete when nothing was added for so long.",
        ),
        "marker": Param(
            None,
            type=["null", "string"],
            title="Marker file",
            description="Or when a file of this name lies in the folder. Empty: the quiet time decides.",
        ),
        "deliver_to": Param(
            " ".join(settings.deliver_to()) or None,
            type=["null", "string"],
            title="Deliver to",
            description="Connection ids or folders' URLs (file:///...), separated by blanks. Empty: only what "
            "[qure] rules send.",
        ),
        "dry_run": Param(
            None,
            type=["null", "string"],
            enum=[None, "upload", "deliver"],
            values_display={"null": "no", "upload": "of the upload", "deliver": "of the delivery"},
            title="Dry run",
            description="Of the upload: nothing goes to Qure. Of the delivery: nothing goes onward. The store gets it.",
        ),
        "recompute": Param(
            False,
            type="boolean",
            title="Send again",
            description="Send and compute again what an earlier run finished: a new revision, delivered again.",
        ),
    },
) as dag:
    complete = QureExportSensor(
        task_id="export_is_complete",
        export="{{ params.export }}",
        quiet_seconds="{{ params.quiet_seconds }}",
        marker="{{ params.marker or '' }}",
        limit_seconds=2 * 3600,
    )
    complete >> process_export(
        export="{{ params.export }}",
        selection=settings.selection() or None,
        recompute="{{ params.recompute }}",
        dry_run="{{ params.dry_run or '' }}",
        deliver_to="{{ params.deliver_to or '' }}",
        rules=settings.rules(),
        notifiers=settings.notifiers(),
        page_on=settings.page_on(),
        page_findings=settings.page_findings(),
        completeness="{{ ti.xcom_pull(task_ids='export_is_complete') }}",
        wait_seconds=18 * 3600,
    )
