"""The bodies of every answer, word for word where the documentation has the words.

Its placeholders are filled in (``series_instance_uid`` in compute's messages is literal there and here). "sucess" is
how the OpenAPI spells the key of 404 bodies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qure_provider.emulator.findings import SIMULATED
from qure_provider.emulator.header import QCT, QER, XRAY_PRODUCTS
from qure_provider.emulator.service import State
from qure_provider.emulator.settings import Answers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qure_provider.emulator.service import Verdict

Json = dict[str, Any]
Files = dict[str, list[str]]

INVALID_TOKEN: Json = {
    "message": "Invalid token header. No credentials provided.",
    "next": "/accounts/login/",
    "authenticated": False,
}
ACCESS_DENIED: Json = {"success": False, "message": "Access denied!"}
NO_FILES: Json = {"message": "No DICOM files were uploaded!"}
NOT_IMPLEMENTED: Json = {"message": "Use case not implemented."}
NO_USER_AGENT: Json = {"message": "User-Agent header is missing."}
"""The documentation says that errors may follow, and names none."""
QUEUED: Json = {"message": "series_instance_uid successfully pushed for computation!", "success": True}
V2_PENDING: Json = {"reason": "processing not started"}
V2_FORBIDDEN = "Forbidden"
V2_NOT_IMPLEMENTED = "not implemented"
TOO_LARGE = (
    "<html>\r\n<head><title>413 Request Entity Too Large</title></head>\r\n<body>\r\n"
    "<center><h1>413 Request Entity Too Large</h1></center>\r\n</body>\r\n</html>\r\n"
)
REGISTERED = "DICOM registered successfully."
NOT_DICOM = "Not a valid DICOM file."
"""Made up: no message for a file that is not registered is documented."""
VALIDITY_REASON = "Validity not determined yet!"


def not_uploaded(uid: str, answers: Answers) -> Json:
    """404 of compute, results v1 and CT."""
    if answers is Answers.OLDER:
        return {"success": False, "message": f"Series with SeriesInstanceUID {uid} is not yet uploaded!"}
    return {"sucess": False, "message": f"Resource with SeriesInstanceUID {uid} is not yet uploaded!"}


def under_process(uid: str, answers: Answers) -> Json:
    """202 of results v1 and CT; it says sopInstanceUID of a series too."""
    what = "Image Series with resource_uid" if answers is Answers.OLDER else "Resource with sopInstanceUID"
    return {"success": False, "message": f"{what} {uid} is under process. Please check back in some time."}


def not_computed(uid: str) -> Json:
    """409 of results v1 and CT."""
    return {
        "success": False,
        "message": (
            f"Series with resource_uid{uid} has not yet been invoked for computation. "
            f"You can invoke by doing a GET on base_url/compute/{uid}."
        ),
    }


def no_result(verdict: Verdict, answers: Answers) -> Json:
    """400 of results v1 and CT. Of its reasons only the one about validity is documented."""
    reasons = {
        State.VALIDITY: VALIDITY_REASON,
        State.INVALID: "Invalid scan",
        State.UNSUPPORTED: "Unsupported modality",
    }
    header = verdict.resource.header
    if answers is Answers.OLDER:
        return {
            "success": False,
            "message": "Not a valid use case",
            "debug_info": {"reason": reasons[verdict.state]},
            "remarks": "{}",
            "result": {},
        }
    return {
        "success": False,
        "message": "Use case not implemented.",
        "seriesInstanceUID": header.series_instance_uid,
        "accessionNumber": header.accession_number,
        "debug_info": {"reason": reasons[verdict.state]},
        "result": {},
    }


def report_lines(verdict: Verdict) -> list[str]:
    """The report, line by line, each marked as simulated."""
    if verdict.state is State.INVALID:
        return [f"{SIMULATED}.", "SIMULATED: Invalid X-Ray"]
    images = f"{verdict.images} image{'s' if verdict.images != 1 else ''} analysed, revision {verdict.revision}."
    sentences = [sentence for _, sentence in verdict.findings.sentences] or ["SIMULATED: No abnormality detected."]
    return [f"{SIMULATED}. {images}", *sentences]


def impression(verdict: Verdict) -> str:
    """The conclusion, marked as simulated."""
    return f"{SIMULATED}. Uploaded Invalid X-RAY" if verdict.state is State.INVALID else verdict.findings.impression


def result(verdict: Verdict, files: Files, answers: Answers, *, v2: bool) -> Json:
    """200 (and 206) of every results endpoint.

    Args:
        verdict: A resource that is ready or invalid.
        files: Kind to URLs.
        answers: Which generation.
        v2: Whether it is X-ray v2.

    Returns:
        The body.
    """
    if answers is Answers.LEGACY and not v2 and verdict.resource.header.is_xray:
        return _patched(_legacy(verdict, files), verdict.plan.patch)
    # The examples have the word capitalised on v2 and in lower case elsewhere.
    triage = verdict.triage if v2 or answers is Answers.OLDER or verdict.plan.triage else verdict.triage.lower()
    body: Json = {
        "success": True,
        "message": "Results retrieved successfully!",
        "triage_status": triage,
        "result": _content(verdict, answers) | {"files": files},
        "usecase": verdict.usecase,
    }
    if answers is Answers.OLDER:
        body["report"] = []
    return _patched(body, verdict.plan.patch)


def _content(verdict: Verdict, answers: Answers) -> Json:
    lines = report_lines(verdict)
    if answers is Answers.OLDER:
        return {"report": "\n".join(lines)}
    product = verdict.findings.usecase
    if product == QCT:
        return {}
    if product == QER:
        return {
            "report": lines,
            "scores": verdict.findings.scores,
            "decisions": verdict.findings.decisions,
            "reporting_params": [],
            "qure_model_version": "Latest",
        }
    return {
        "report": {
            "findings": "\n\n".join(lines),
            "impression": impression(verdict),
            "findings_list": [[key, f"{sentence}\n\n"] for key, sentence in verdict.findings.sentences],
        }
    }


def _legacy(verdict: Verdict, files: Files) -> Json:
    """The legacy shape; the inner keys of ``metadata`` and ``tags`` are not published, and made up here."""
    present = set(verdict.findings.present)
    return {
        "success": True,
        "message": "Results retrieved successfully!",
        "files": {kind: urls[0] for kind, urls in files.items() if urls},
        "metadata": {"simulated": SIMULATED},
        "tags": [
            {"tag": key, "presence": key in present, "metrics": {"score": score}}
            for key, score in verdict.findings.scored
        ],
        "patient": verdict.resource.header.patient_id,
        "report": "\n\n".join(report_lines(verdict)),
        "raw": verdict.resource.uid,
        "integrity": verdict.state is State.READY and verdict.findings.usecase in XRAY_PRODUCTS,
    }


def _patched(body: Json, patch: Mapping[str, Any]) -> Json:
    """Merge a patch as RFC 7396 says."""
    merged = dict(body)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            inner = merged.get(key)
            merged[key] = _patched(inner if isinstance(inner, dict) else {}, value)
        else:
            merged[key] = value
    return merged
