"""What Airflow learns about this provider; it must import nothing."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return the provider's description, for the ``apache_airflow_provider`` entry point."""
    return {
        "package-name": "airflow-provider-qure",
        "name": "Qure.ai",
        "description": "Send radiology studies to the Qure.ai Platform API and bring the results back.",
        "integrations": [
            {
                "integration-name": "Qure.ai Platform API",
                "external-doc-url": "https://docs.qure.ai/platform-api",
                "tags": ["service"],
            }
        ],
        "operators": [
            {
                "integration-name": "Qure.ai Platform API",
                "python-modules": [
                    f"qure_provider.operators.{name}"
                    for name in ("upload", "compute", "fetch", "plan", "collect", "redeliver", "summarize")
                ],
            }
        ],
        "sensors": [
            {
                "integration-name": "Qure.ai Platform API",
                "python-modules": ["qure_provider.sensors.results", "qure_provider.sensors.export"],
            }
        ],
        "hooks": [{"integration-name": "Qure.ai Platform API", "python-modules": ["qure_provider.hooks.qure"]}],
        "triggers": [
            {
                "integration-name": "Qure.ai Platform API",
                "python-modules": ["qure_provider.triggers.results", "qure_provider.triggers.export"],
            }
        ],
        "connection-types": [
            {
                "connection-type": "qure",
                "hook-class-name": "qure_provider.hooks.qure.QureHook",
                "hook-name": "Qure.ai",
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "schema", "port", "extra"],
                    "relabeling": {"host": "Base URL", "password": "Token"},
                    "placeholders": {
                        "host": "https://… as issued by Qure for this environment",
                        "password": "the token issued by Qure",
                    },
                },
                "conn-fields": _QURE_CONN_FIELDS,
            }
        ],
        "cli": ["qure_provider.cli.get_qure_cli_commands"],
        "config": {"qure": {"description": "Settings of the Qure.ai provider.", "options": _CONFIG_OPTIONS}},
    }


_QURE_CONN_FIELDS: dict[str, Any] = {
    "source": {
        "label": "Source",
        "description": "The Source that Qure issued together with the token; it names your workspace.",
        "schema": {"type": ["string", "null"]},
    },
    "verify": {
        "label": "Verify TLS",
        "description": "Check the server's certificate. Switch off only for a test server.",
        "schema": {"type": ["boolean", "null"], "default": True},
    },
    "ca_bundle": {
        "label": "CA bundle",
        "description": "Path of a PEM file with the certificate authority to trust, on every worker and triggerer.",
        "schema": {"type": ["string", "null"]},
    },
    "proxies": {
        "label": "Proxies",
        "description": 'A proxy URL, or JSON such as {"https": "http://proxy:3128"}.',
        "schema": {"type": ["string", "null"]},
    },
    "connect_timeout": {
        "label": "Connect timeout (s)",
        "description": "Seconds to wait for a connection.",
        "schema": {"type": ["number", "null"], "default": 10, "minimum": 0.1},
    },
    "read_timeout": {
        "label": "Idle timeout (s)",
        "description": "Seconds without a single byte after which a request is given up.",
        "schema": {"type": ["number", "null"], "default": 120, "minimum": 0.1},
    },
    "requests_per_second": {
        "label": "Polling ceiling (requests/s)",
        "description": "At most so many questions for results a second, all triggerers together.",
        "schema": {"type": ["number", "null"], "default": 10, "minimum": 0.01},
    },
    "triggerers": {
        "label": "Triggerers",
        "description": "How many triggerers run; each takes an equal share of the polling ceiling.",
        "schema": {"type": ["integer", "null"], "default": 1, "minimum": 1},
    },
    "xray_results": {
        "label": "X-ray results",
        "description": "v2 is the current endpoint; v1 is deprecated by the vendor.",
        "schema": {"type": ["string", "null"], "default": "v2", "enum": ["v2", "v1"]},
    },
    "upload_dialect": {
        "label": "Upload dialect",
        "description": "form-data is the current one; related is that of the vendor's older pages.",
        "schema": {"type": ["string", "null"], "default": "form-data", "enum": ["form-data", "related"]},
    },
    "max_request_bytes": {
        "label": "Largest upload request (bytes)",
        "description": "The vendor recommends no more than 100 MB a request.",
        "schema": {"type": ["integer", "null"], "default": 100_000_000, "minimum": 1_000_000, "maximum": 100_000_000},
    },
    "parallel_uploads": {
        "label": "Parallel uploads",
        "description": "Upload requests under way at once in one task.",
        "schema": {"type": ["integer", "null"], "default": 4, "minimum": 1, "maximum": 32},
    },
    "max_answer_bytes": {
        "label": "Largest answer (bytes)",
        "description": "A longer answer of the service is refused.",
        "schema": {"type": ["integer", "null"], "default": 16_777_216, "minimum": 1024, "maximum": 1_073_741_824},
    },
    "max_asset_bytes": {
        "label": "Largest result file (bytes)",
        "description": "A longer file of a result is refused.",
        "schema": {"type": ["integer", "null"], "default": 2_147_483_648, "minimum": 1024, "maximum": 2**40},
    },
    "max_assets": {
        "label": "Most files of one result",
        "description": "A result that offers more is refused.",
        "schema": {"type": ["integer", "null"], "default": 1000, "minimum": 1, "maximum": 1_000_000},
    },
    "allow_plain_http": {
        "label": "Allow plain http",
        "description": "Needed for any host but this machine without TLS; patient data is then readable on the way.",
        "schema": {"type": ["boolean", "null"], "default": False},
    },
}


def _option(description: str, default: str | None, *, kind: str = "string", **more: Any) -> dict[str, Any]:
    return {
        "description": description,
        "version_added": "0.1.0",
        "type": kind,
        "default": default,
        "example": None,
        **more,
    }


_CONFIG_OPTIONS: dict[str, Any] = {
    "identity_policy": _option(
        "Whether studies are sent as exported ('identified'). There is no default: unset, nothing is sent.", ""
    ),
    "store_root": _option(
        "Where results are kept: a folder, or a URL that ObjectStoragePath understands. Empty: 'qure' beside the DAGs.",
        "",
        example="/var/lib/qure",
    ),
    "export_root": _option(
        "The folder in which the PACS makes one export folder a night, named by date.", "", example="/exports"
    ),
    "timezone": _option(
        "The hospital's time zone, by which nights are named. Empty: Airflow's default.", "", example="Asia/Kolkata"
    ),
    "ledger_conn_id": _option(
        "A database connection for the ledger. Empty: SQLite beside a local store.", "", example="qure_ledger"
    ),
    "max_batches": _option("Into how many mapped tasks a night is divided at most.", "32", kind="integer"),
    "deferrable": _option(
        "Whether QureResultsSensor waits in the triggerer. Results take minutes to hours, so the default is True "
        "whatever [operators] default_deferrable says.",
        "True",
        kind="boolean",
    ),
    "first_poll_seconds": _option(
        "Seconds between deferring and the first question for a result; below 15, LocalExecutor may fail tasks "
        "spuriously.",
        "15",
        kind="float",
    ),
    "max_poll_seconds": _option("The longest time between two questions for a result, in seconds.", "60", kind="float"),
    "settle_seconds": _option(
        "Seconds after which a ready result is asked for again, to see whether files were added.", "15", kind="float"
    ),
    "pseudonym_key": _option(
        "Key of the short pseudonyms in logs and tables. Empty: Airflow's Fernet key.", "", sensitive=True
    ),
}
