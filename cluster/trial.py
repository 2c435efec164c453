"""The settings of a trial: what a person would write into ``.env`` and ``docker-compose.override.yaml``."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from pathlib import Path
from zoneinfo import ZoneInfo

USER = "admin"
ZONE = ZoneInfo("Asia/Kolkata")  # where 02:00 is still the day before in UTC

OVERRIDES: Mapping[str, str] = {
    # Only what is asked for runs: no run of a schedule begins beside it.
    "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",
    # How soon a loss is noticed; where nothing is set it takes 300 s for a worker and 30 s for a triggerer.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
    # Few tasks and short waits, for a night of few studies.
    "AIRFLOW__QURE__MAX_BATCHES": "8",
    "AIRFLOW__QURE__FIRST_POLL_SECONDS": "5",
    "AIRFLOW__QURE__MAX_POLL_SECONDS": "5",
    "AIRFLOW__QURE__SETTLE_SECONDS": "5",
}
"""What a trial changes of Airflow's settings."""


def make_variables(exports: Path) -> dict[str, str]:
    """Fill in ``.env``: fresh secrets, and the emulator as the service.

    Args:
        exports: Where the PACS would write.

    Returns:
        The variables.
    """
    return {
        **{f"{name}_PASSWORD": secrets.token_hex(32) for name in ("POSTGRES", "LEDGER", "REDIS", "ADMIN")},
        **{name: secrets.token_hex(32) for name in ("API_SECRET_KEY", "JWT_SECRET", "QURE_PSEUDONYM_KEY")},
        "FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "AIRFLOW_URL": "http://api-server:8080",
        "API_WORKERS": "1",
        "WORKER_CONCURRENCY": "4",
        "QURE_DELIVER_TO": (exports.parent / "onward").as_uri(),
        "QURE_EXPORTS": str(exports),
        "QURE_IDENTITY_POLICY": "identified",
        "QURE_ALLOW_QUARANTINED": "True",
        "QURE_SOURCE": f"personal-user-{secrets.token_hex(6)}",
        "QURE_TIMEZONE": ZONE.key,
        "QURE_TOKEN": secrets.token_hex(20),
        "QURE_URL": "http://emulator:8080",
        # A series then takes several requests, so that some of it is acknowledged when a worker is lost.
        "QURE_MAX_REQUEST_BYTES": "250000",
    }
