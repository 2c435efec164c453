"""The connection types' forms in the Airflow UI, as data; it must import nothing."""

from __future__ import annotations

from typing import Any


def _field(label: str, description: str, kind: str = "string", default: Any = None, **more: Any) -> dict[str, Any]:
    schema = {"type": [kind, "null"], **more}
    if default is not None:
        schema["default"] = default
    return {"label": label, "description": description, "schema": schema}


QURE: dict[str, Any] = {
    "source": _field("Source", "The Source that Qure issued together with the token; it names your workspace."),
    "verify": _field(
        "Verify TLS", "Check the server's certificate. Switch off only for a test server.", "boolean", True
    ),
    "ca_bundle": _field(
        "CA bundle", "Path of a PEM file with the certificate authority to trust, on every worker and triggerer."
    ),
    "proxies": _field("Proxies", 'A proxy URL, or JSON such as {"https": "http://proxy:3128"}.'),
    "connect_timeout": _field("Connect timeout (s)", "Seconds to wait for a connection.", "number", 10, minimum=0.1),
    "read_timeout": _field(
        "Idle timeout (s)",
        "Seconds without a single byte after which a request is given up.",
        "number",
        120,
        minimum=0.1,
    ),
    "requests_per_second": _field(
        "Polling ceiling (requests/s)",
        "At most so many questions for results a second, all triggerers together.",
        "number",
        10,
        minimum=0.01,
    ),
    "triggerers": _field(
        "Triggerers",
        "How many triggerers run; each takes an equal share of the polling ceiling.",
        "integer",
        1,
        minimum=1,
    ),
    "xray_results": _field(
        "X-ray results",
        "v2 is the current endpoint; v1 is deprecated by the vendor.",
        "string",
        "v2",
        enum=["v2", "v1"],
    ),
    "upload_dialect": _field(
        "Upload dialect",
        "form-data is the current one; related is that of the vendor's older pages.",
        "string",
        "form-data",
        enum=["form-data", "related"],
    ),
    "max_request_bytes": _field(
        "Largest upload request (bytes)",
        "The vendor recommends no more than 100 MB a request.",
        "integer",
        100000000,
        minimum=1000000,
        maximum=100000000,
    ),
    "parallel_uploads": _field(
        "Parallel uploads", "Upload requests under way at once in one task.", "integer", 4, minimum=1, maximum=32
    ),
    "max_answer_bytes": _field(
        "Largest answer (bytes)",
        "A longer answer of the service is refused.",
        "integer",
        16777216,
        minimum=1024,
        maximum=1073741824,
    ),
    "max_asset_bytes": _field(
        "Largest result file (bytes)",
        "A longer file of a result is refused.",
        "integer",
        2147483648,
        minimum=1024,
        maximum=1099511627776,
    ),
    "max_assets": _field(
        "Most files of one result", "A result that offers more is refused.", "integer", 1000, minimum=1, maximum=1000000
    ),
    "max_redirects": _field(
        "Most redirects", "How often one request is sent elsewhere.", "integer", 3, minimum=0, maximum=20
    ),
    "allow_plain_http": _field(
        "Allow plain http",
        "Needed for any host but this machine without TLS; patient data is then readable on the way.",
        "boolean",
        False,
    ),
}

DEIDENTIFY: dict[str, Any] = {
    "profile": _field(
        "Profile",
        'JSON: what is kept, removed or replaced beside the standard\'s Basic Profile, such as {"shift_dates": false, '
        '"remove": ["StudyDescription"]}. Empty: the default profile.',
    ),
}

MLLP: dict[str, Any] = {
    "processing_id": _field(
        "Processing ID",
        "MSH-11: P for production, T while the interface is tested. Nothing is sent until it is set.",
        enum=["P", "T"],
    ),
    "version": _field("HL7 version", "MSH-12.", "string", "2.5.1", enum=["2.5.1", "2.4", "2.3.1"]),
    "sending_application": _field("Sending application", "MSH-3; components divided by ^.", "string", "QURE-AI"),
    "sending_facility": _field("Sending facility", "MSH-4."),
    "receiving_application": _field("Receiving application", "MSH-5."),
    "receiving_facility": _field("Receiving facility", "MSH-6."),
    "acknowledgement": _field(
        "Acknowledgement",
        "original: the application's; enhanced: commit and application on one connection; commit: only commit.",
        "string",
        "original",
        enum=["original", "enhanced", "commit"],
    ),
    "character_set": _field(
        "Character set",
        "MSH-18. A report that it cannot hold is not sent.",
        "string",
        "UNICODE UTF-8",
        enum=[
            "UNICODE UTF-8",
            "ASCII",
            "8859/1",
            "8859/2",
            "8859/3",
            "8859/4",
            "8859/5",
            "8859/6",
            "8859/7",
            "8859/8",
            "8859/9",
            "8859/15",
        ],
    ),
    "report_status": _field(
        "Result status",
        "OBR-25 and OBX-11: R not verified, P preliminary. There is no final.",
        "string",
        "R",
        enum=["R", "P"],
    ),
    "withdrawn_status": _field(
        "Status of a withdrawal",
        "OBR-25 of a withdrawal; its observations always have W. C correction, M the same from HL7 2.8 on.",
        "string",
        "C",
        enum=["C", "M", "X", "W"],
    ),
    "include_scores": _field("Send scores", "Scores, and decisions made by them, as observations.", "boolean", False),
    "include_pdf": _field("Send the PDF", "The report's PDF as OBX of type ED.", "boolean", False),
    "places": _field(
        "Field places", 'JSON: what stands where, such as {"OBR-19": "{accession_number}", "OBR-18": ""}.'
    ),
    "retry_codes": _field(
        "Retried refusals",
        "Which of AE AR CE CR are tried again, where the receiver gives no error condition.",
        "string",
        "AE CE",
    ),
    "tls": _field("TLS", "Encrypt the connection.", "boolean", False),
    "verify": _field("Verify TLS", "Check the receiver's certificate.", "boolean", True),
    "check_hostname": _field(
        "Check host name", "Whether the receiver's certificate must name its host.", "boolean", True
    ),
    "ca_bundle": _field(
        "CA bundle", "PEM file or folder of the authority to trust, on every worker. Empty: the system's."
    ),
    "client_certificate": _field("Client certificate", "PEM file, if the receiver wants one."),
    "client_key": _field("Client key", "PEM file of its key, if apart."),
    "connect_timeout": _field(
        "Connect timeout (s)", "For TCP, and again for TLS.", "number", 10, minimum=0.1, maximum=600
    ),
    "response_timeout": _field(
        "Response timeout (s)",
        "From the first byte sent to the acknowledgement.",
        "number",
        60,
        minimum=0.1,
        maximum=3600,
    ),
}

DICOM: dict[str, Any] = {
    "called_ae_title": _field("Called AE title", "The archive's AE title. Required."),
    "calling_ae_title": _field("Calling AE title", "Ours; the archive may have to know it.", default="QURE_AIRFLOW"),
    "ask_first": _field(
        "Ask first", "Send only if the archive has the study, for the same patient, now (C-FIND).", "boolean", False
    ),
    "prove": _field(
        "Prove", "Ask afterwards whether every object is there (C-FIND), not only its status.", "boolean", False
    ),
    "parallel_associations": _field("Parallel associations", "At once, at most.", "integer", 2, minimum=1, maximum=8),
    "max_pdu": _field("Largest PDU (bytes)", "That we take; 0 for any.", "integer", 16382, minimum=0),
    "tls": _field("TLS", "Encrypt the association.", "boolean", False),
    "verify": _field("Verify TLS", "Check the archive's certificate.", "boolean", True),
    "check_hostname": _field(
        "Check host name", "Whether the archive's certificate must name its host.", "boolean", True
    ),
    "ca_bundle": _field("CA bundle", "PEM file or folder of the authority to trust, on every worker."),
    "client_certificate": _field("Client certificate", "PEM file, if the archive wants one."),
    "client_key": _field("Client key", "PEM file of its key, if apart."),
    "connect_timeout": _field("Connect timeout (s)", "Seconds to wait for the connection.", "number", 10, minimum=0.1),
    "association_timeout": _field(
        "Association timeout (s)", "Seconds to wait for the association.", "number", 30, minimum=0.1
    ),
    "response_timeout": _field(
        "Response timeout (s)", "Seconds without a byte, or without an answer.", "number", 60, minimum=0.1
    ),
}

_WEB: dict[str, Any] = {
    "auth": _field(
        "Authentication",
        "How we show who we are; basic with a login, else none.",
        enum=["none", "basic", "bearer", "oauth2"],
    ),
    "token_url": _field("Token URL", "OAuth2 token endpoint (client credentials)."),
    "scope": _field("Scope", "OAuth2 scope."),
    "verify": _field("Verify TLS", "Check the server's certificate.", "boolean", True),
    "ca_bundle": _field("CA bundle", "PEM file or folder of the authority to trust, on every worker."),
    "proxies": _field("Proxies", 'A proxy URL, or JSON such as {"https": "http://proxy:3128"}.'),
    "connect_timeout": _field("Connect timeout (s)", "Seconds to wait for a connection.", "number", 10, minimum=0.1),
    "read_timeout": _field("Idle timeout (s)", "Seconds without a single byte.", "number", 60, minimum=0.1),
    "allow_plain_http": _field(
        "Allow plain http", "Needed for any host but this machine without TLS.", "boolean", False
    ),
}

DICOMWEB: dict[str, Any] = {
    "ask_first": _field(
        "Ask first", "Send only if the archive has the study, for the same patient, now (QIDO-RS).", "boolean", False
    ),
    "prove": _field(
        "Prove", "Ask afterwards whether every object is there (QIDO-RS), not only its status.", "boolean", False
    ),
    "max_request_bytes": _field(
        "Largest request (bytes)",
        "Of one store request; a larger object goes alone.",
        "integer",
        100000000,
        minimum=1000,
        maximum=10000000000,
    ),
    **_WEB,
}

FHIR: dict[str, Any] = {
    "patient_identifier_system": _field(
        "Patient identifier system", "System of the hospital's patient IDs in Patient records, such as urn:oid:1.2.3."
    ),
    "patient_identifier_systems": _field(
        "Systems by issuer", "JSON from IssuerOfPatientID to system; once set, studies of other issuers are held."
    ),
    "accession_system": _field("Accession system", "System of accession numbers in references to orders."),
    "report_status": _field("Report status", "There is no final.", default="partial", enum=["partial", "preliminary"]),
    "include_pdf": _field("Include PDF", "Attach the report's PDF.", "boolean", True),
    "include_scores": _field("Include scores", "Also send scores and negative decisions.", "boolean", False),
    "mode": _field(
        "How reports are put",
        "auto goes by the server's CapabilityStatement.",
        default="auto",
        enum=["auto", "transaction", "single", "document"],
    ),
    **_WEB,
}
