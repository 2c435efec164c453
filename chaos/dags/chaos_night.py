"""The nightly DAG with waits that a scenario can afford, and several nights at once."""

from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.sdk import DAG
from airflow.sdk.definitions.callback import AsyncCallback

from qure_provider import settings
from qure_provider.sensors.export import QureExportSensor
from qure_provider.task_groups.process_export import process_export

EXPORT = settings.export_root() + "/{night}"

with DAG(
    dag_id="chaos_night",
    schedule="0 2 * * *",
    start_date=pendulum.datetime(2026, 1, 1, tz=settings.timezone()),
    catchup=False,
    max_active_runs=4,
    default_args={"retry_delay": timedelta(seconds=2), "max_retry_delay": timedelta(seconds=4)},
) as dag:
    complete = QureExportSensor(
        task_id="export_is_complete", export=EXPORT, quiet_seconds=4, poll_seconds=1, limit_seconds=300
    )
    complete >> process_export(
        export=EXPORT,
        deliver_to=settings.deliver_to(),
        notifiers=[AsyncCallback("chaos.pager.FilePager", kwargs={"message": "{{ alert.study_ref }}"})],
        completeness="{{ ti.xcom_pull(task_ids='export_is_complete') }}",
        wait_seconds=600,
        least_share_of_usual=0,
    )
