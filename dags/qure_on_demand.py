"""By hand: send a folder, or some files of it, and bring the results home."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG, Param

from qure_provider import settings
from qure_provider.task_groups.process_export import process_export

with DAG(
    dag_id="qure_on_demand",
    description="Chosen studies in, AI results out",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz=settings.timezone()),
    catchup=False,
    doc_md=__doc__,
    tags=["qure", "radiology"],
    params={
        "export": Param(
            type="string",
            minLength=1,
            title="Folder",
            description="A folder of DICOM files, read with everything below it; a path or an object-storage URL.",
        ),
        "files": Param(
            None,
            type=["null", "string"],
            format="multiline",
            title="Only these files",
            description="Paths relative to the folder, one a line. Empty: all of it.",
        ),
        "qure_conn_id": Param(
            "qure_default",
            type="string",
            minLength=1,
            title="Qure connection",
            description="The id of an Airflow connection of type Qure.ai.",
        ),
        "selection": Param(
            settings.selection(),
            type="object",
            title="Selection",
            description='Rules in place of the safe defaults, such as {"modalities": ["CT"], "minimum_slices": 5}.',
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
    process_export(
        export="{{ params.export }}",
        files="{{ params.files or '' }}",
        selection="{{ params.selection | tojson }}",
        qure_conn_id="{{ params.qure_conn_id }}",
        recompute="{{ params.recompute }}",
        dry_run="{{ params.dry_run or '' }}",
        deliver_to="{{ params.deliver_to or '' }}",
        rules=settings.rules(),
        notifiers=settings.notifiers(),
        page_on=settings.page_on(),
        page_findings=settings.page_findings(),
        catch_up=False,
        wait_seconds=6 * 3600,
        least_share_of_usual=0,
    )
