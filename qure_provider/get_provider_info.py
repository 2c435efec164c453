"""What Airflow learns about this provider; it must import nothing heavy."""

from __future__ import annotations

from typing import Any

from qure_provider import connection_forms

_PORT_HINT = "such as 443; Airflow 3.3.1 and 3.3.2 cannot test a connection without"


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
                    for name in ("upload", "compute", "fetch", "plan", "collect", "deliver", "redeliver", "summarize")
                ],
            }
        ],
        "sensors": [
            {
                "integration-name": "Qure.ai Platform API",
                "python-modules": ["qure_provider.sensors.results", "qure_provider.sensors.export"],
            }
        ],
        "hooks": [
            {
                "integration-name": "Qure.ai Platform API",
                "python-modules": [
                    f"qure_provider.hooks.{name}"
                    for name in ("qure", "deidentify", "dicom", "dicomweb", "mllp", "fhir")
                ],
            }
        ],
        "triggers": [
            {
                "integration-name": "Qure.ai Platform API",
                "python-modules": [f"qure_provider.triggers.{name}" for name in ("results", "export", "deliver")],
            }
        ],
        "connection-types": [
            {
                "connection-type": "qure",
                "hook-class-name": "qure_provider.hooks.qure.QureHook",
                "hook-name": "Qure.ai",
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "schema", "extra"],
                    "relabeling": {"host": "Base URL", "password": "Token"},
                    "placeholders": {
                        "host": "https://… as issued by Qure for this environment",
                        "password": "the token issued by Qure",
                        "port": _PORT_HINT,
                    },
                },
                "conn-fields": connection_forms.QURE,
            },
            {
                "connection-type": "qure_deidentify",
                "hook-class-name": "qure_provider.hooks.deidentify.DeidentifyHook",
                "hook-name": "Qure.ai de-identification",
                "ui-field-behaviour": {
                    "hidden-fields": ["host", "login", "schema", "extra"],
                    "relabeling": {"password": "Secret key"},
                    "placeholders": {
                        "password": "what 'openssl rand -base64 32' prints",
                        "port": "such as 1; Airflow 3.3.1 and 3.3.2 cannot test a connection without",
                    },
                },
                "conn-fields": connection_forms.DEIDENTIFY,
            },
            {
                "connection-type": "mllp",
                "hook-class-name": "qure_provider.hooks.mllp.MllpHook",
                "hook-name": "HL7 v2 (MLLP)",
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "schema", "extra"],
                    "relabeling": {"password": "Client key passphrase"},
                    "placeholders": {"host": "ris.hospital.example", "port": "2575 (default)"},
                },
                "conn-fields": connection_forms.MLLP,
            },
            {
                "connection-type": "dicom",
                "hook-class-name": "qure_provider.hooks.dicom.DicomHook",
                "hook-name": "DICOM (C-STORE)",
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "schema", "extra"],
                    "relabeling": {"password": "Client key passphrase"},
                    "placeholders": {"host": "pacs.hospital.example", "port": "104"},
                },
                "conn-fields": connection_forms.DICOM,
            },
            {
                "connection-type": "dicomweb",
                "hook-class-name": "qure_provider.hooks.dicomweb.DicomWebHook",
                "hook-name": "DICOMweb (STOW-RS)",
                "ui-field-behaviour": {
                    "hidden-fields": ["schema", "extra"],
                    "relabeling": {
                        "host": "Base URL",
                        "login": "User or client id",
                        "password": "Password, token or client secret",
                    },
                    "placeholders": {"host": "https://pacs.hospital.example/dicom-web", "port": _PORT_HINT},
                },
                "conn-fields": connection_forms.DICOMWEB,
            },
            {
                "connection-type": "fhir",
                "hook-class-name": "qure_provider.hooks.fhir.FhirHook",
                "hook-name": "FHIR R4",
                "ui-field-behaviour": {
                    "hidden-fields": ["schema", "extra"],
                    "relabeling": {
                        "host": "Base URL",
                        "login": "User or client id",
                        "password": "Password, token or client secret",
                    },
                    "placeholders": {"host": "https://ehr.hospital.example/fhir", "port": _PORT_HINT},
                },
                "conn-fields": connection_forms.FHIR,
            },
        ],
        "extra-links": ["qure_provider.links.NightSummaryLink"],
        "cli": ["qure_provider.cli.get_qure_cli_commands"],
        "config": {"qure": {"description": "Settings of the Qure.ai provider.", "options": _CONFIG_OPTIONS}},
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
        "Whether studies are de-identified before they leave ('deidentify') or sent as exported ('identified'). There "
        "is no default: unset, nothing is sent.",
        "",
    ),
    "deidentify_conn_id": _option(
        "The connection of type qure_deidentify that holds the secret key for pseudonyms.", "qure_deidentify_default"
    ),
    "store_root": _option(
        "Where results are kept: a folder, or a URL that ObjectStoragePath understands. Workers write it; the API "
        "server reads it to show the nights. Empty: 'qure' beside the DAGs.",
        "",
        example="/var/lib/qure",
    ),
    "export_root": _option(
        "The folder in which the PACS makes one export folder a night, named by date: 2026-11-20. Where folders are "
        "named otherwise, {night:...} in it says how: /exports/{night:YYYYMMDD}, /exports/{night:YYYY/MM/DD}.",
        "",
        example="/exports",
    ),
    "selection": _option(
        "What the provider's own DAGs send of an export, in place of the safe defaults, as a JSON object: see Rules of "
        "selection in docs/settings.md.",
        "",
        example='{"minimum_slices": 20, "reconstructions": "all"}',
    ),
    "deliver_to": _option(
        "Where the provider's own DAGs deliver results: ids of connections of type dicom, dicomweb, mllp or fhir, or "
        "folders' URLs, separated by spaces. Empty: results stay in the store.",
        "",
        example="pacs ris",
    ),
    "rules": _option(
        "What the provider's own DAGs deliver where, as JSON: an ordered list of objects with 'when', 'send' and 'to', "
        "of which the first that applies to a destination decides; deliver_to gets everything that none decides.",
        "",
        example='[{"when": {"product": ["qxr"]}, "send": ["sc"], "to": ["pacs"]}]',
    ),
    "notifiers": _option(
        "Whom the provider's own DAGs tell of urgent results, as JSON: a list of Airflow notifiers, each with its "
        "class's path and its arguments, in which {{ alert.text }} and the other fields of Alert can be used. Empty: "
        "nobody is told.",
        "",
        sensitive=True,
        example='[{"path": "airflow.providers.smtp.notifications.smtp.SmtpNotifier", "kwargs": '
        '{"from_email": "airflow@hospital.example", "to": "duty@hospital.example", "subject": "AI result", '
        '"html_content": "{{ alert.text }}"}}]',
    ),
    "page_on": _option(
        "The triage meanings that people are told of, separated by commas: urgent, abnormal, unknown, no finding of "
        "this product.",
        "urgent",
    ),
    "page_findings": _option(
        "Finding or decision keys that people are told of besides, as the service writes them, in upper or lower case, "
        "separated by commas; X-ray results have no urgent ones of their own. Empty: none.",
        "",
        example="pneumothorax",
    ),
    "timezone": _option(
        "The hospital's time zone, by which nights are named. Empty: Airflow's default.", "", example="Asia/Kolkata"
    ),
    "ledger_conn_id": _option(
        "A database connection for the ledger. Empty: SQLite beside a local store.", "", example="qure_ledger"
    ),
    "allow_quarantined": _option(
        "Whether a night is in order although files that may be images could not be read, or lack what sending needs. "
        "They are listed with the reason either way; contradictions about a patient never are in order.",
        "False",
        kind="boolean",
    ),
    "max_batches": _option(
        "Into how many batches a night's own series are divided at most, 2 or more; each is two mapped tasks, three "
        "for CT. What earlier nights still owe comes on top, one batch for each route and export.",
        "16",
        kind="integer",
    ),
    "max_files": _option(
        "How many files an export may hold. One of more is refused whole: it is the wrong folder, as a rule.",
        "2000000",
        kind="integer",
    ),
    "max_header_bytes": _option(
        "How many bytes of one file's header are read. A file of more is quarantined.", "16777216", kind="integer"
    ),
    "pools": _option(
        "Which pool the tasks of a step take a slot of, as JSON; steps are plan, upload, compute, collect (results, "
        "and the delivery of urgent ones), deliver (all others), summarize and redeliver. A pool must exist: tasks of "
        "one that does not never start. Empty: Airflow's default pool.",
        "",
        example='{"upload": "qure_upload", "collect": "qure_collect", "deliver": "qure_deliver"}',
    ),
    "queues": _option(
        "Which Celery queue the tasks of a step go to, as JSON, by the same steps. A worker must listen to it. "
        "Empty: Airflow's default queue.",
        "",
        example='{"upload": "qure_upload"}',
    ),
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
