"""Every hour: deliver what earlier runs still owe to the PACS, the RIS/EHR and others."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG, Param

from qure_provider import settings
from qure_provider.operators.redeliver import QureRedeliverOperator

with DAG(
    dag_id="qure_redeliver",
    description="What is still owed goes out",
    schedule="@hourly",
    start_date=pendulum.datetime(2026, 1, 1, tz=settings.timezone()),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    doc_md=__doc__,
    tags=["qure", "radiology"],
    params={
        "destinations": Param(
            None,
            type=["null", "string"],
            title="Destinations",
            description="Connection ids, separated by spaces. Empty: all that something is owed to.",
        ),
        "states": Param(
            None,
            type=["null", "string"],
            enum=[None, "held", "dead", "held dead"],
            values_display={"null": "none", "held dead": "held and dead"},
            title="Open again",
            description="'held' checks held deliveries again, 'dead' tries given-up ones again.",
        ),
        "since": Param(
            None,
            type=["null", "string"],
            format="date",
            title="Since",
            description="Of held or dead deliveries only those enqueued since this date.",
        ),
        "even_if_not_due": Param(
            False,
            type="boolean",
            title="At once",
            description="Also try what waits for its next try.",
        ),
    },
) as dag:
    QureRedeliverOperator(
        task_id="redeliver",
        destinations="{{ params.destinations or '' }}",
        states="{{ params.states or '' }}",
        since="{{ params.since or '' }}",
        even_if_not_due="{{ params.even_if_not_due }}",
        notifiers=settings.notifiers(),
        **settings.placement("redeliver"),
    )
