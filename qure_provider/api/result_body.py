"""Read the body of a result, whichever product and generation of the API wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from qure_provider.api.files import read_files
from qure_provider.api.model import Meaning, Outcome, Report, ResultAnswer, ResultsVersion, Route
from qure_provider.api.payload import NotUnderstoodError, keepable, success_flags

_T = TypeVar("_T")

_URGENCY = {"critical": Meaning.URGENT, "routine": Meaning.NO_FINDING}
_PRESENCE = {"critical": Meaning.ABNORMAL, "routine": Meaning.NO_FINDING}
_MEANINGS: Mapping[tuple[Route, ResultsVersion], Mapping[str, Meaning]] = {
    (Route.CT, ResultsVersion.V1): _URGENCY,
    (Route.CT, ResultsVersion.V2): _URGENCY,
    (Route.XRAY, ResultsVersion.V1): _URGENCY,
    (Route.XRAY, ResultsVersion.V2): _PRESENCE,
}


def meaning_of(triage: str | None, route: Route, version: ResultsVersion) -> Meaning:
    """Tell what a triage word says on the route that it came by.

    v1 and CT speak of urgency, X-ray v2 only of whether anything was found (OpenAPI, ``triage_status``). The case of
    the word differs between the vendor's own pages.

    Args:
        triage: The vendor's word; None where missing.
        route: Of the resource.
        version: Which results endpoint answers for X-rays; makes no difference for CT.

    Returns:
        The meaning; ``UNKNOWN`` for any word that is not documented.
    """
    return _MEANINGS[route, version].get((triage or "").strip().lower(), Meaning.UNKNOWN)


def read_result(payload: dict[str, Any], route: Route, version: ResultsVersion) -> ResultAnswer:
    """Read the body of a 200.

    "No finding" needs an answer that is of one mind and read whole: where a decision is positive, or any of the
    findings could not be read, "Routine" means ``UNKNOWN``.

    Args:
        payload: The JSON object.
        route: Of the resource.
        version: Which results endpoint answers for X-rays.

    Returns:
        ``READY``; or ``UNSUPPORTED`` where the use case is "not implemented"; or ``INVALID`` where the legacy format
        says that the image is no chest X-ray. The meaning is ``UNKNOWN`` unless it is ``READY``.

    Raises:
        NotUnderstoodError: If it is of no known shape, or says itself that it is no success.
    """
    if "result" in payload:
        # X-ray v2's flag is deprecated, "do not use" (OpenAPI, results v2); everywhere else it is what it says.
        if not (route is Route.XRAY and version is ResultsVersion.V2):
            _refuse_failure(payload)
        if not _is_result(payload["result"]):
            raise NotUnderstoodError("no result in it")
    else:
        _refuse_failure(payload)
        if route is not Route.XRAY or not _is_legacy(payload):
            raise NotUnderstoodError("no result in it")

    answer, is_whole = read_content(payload)
    if "result" not in payload and payload.get("integrity") is False:
        return replace(answer, outcome=Outcome.INVALID, reason="not a chest X-ray")
    if (answer.usecase or "").strip().lower().replace(" ", "_") == "not_implemented":
        return replace(answer, outcome=Outcome.UNSUPPORTED, reason="no product of the account handles this scan")
    meaning = meaning_of(answer.triage, route, version)
    if meaning is Meaning.NO_FINDING and (not is_whole or any(answer.decisions.values())):
        meaning = Meaning.UNKNOWN
    return replace(answer, outcome=Outcome.READY, meaning=meaning)


def read_content(payload: dict[str, Any]) -> tuple[ResultAnswer, bool]:
    """Read all that an answer says, without judging it.

    Args:
        payload: The JSON object.

    Returns:
        An answer whose outcome and meaning nobody has decided (``INVALID`` and ``UNKNOWN``), and whether all of its
        findings could be read.

    Raises:
        NotUnderstoodError: If it is nested too deeply.
    """
    kept = keepable(payload)
    is_modern = isinstance(kept.get("result"), dict)
    # Everything is read from the copy without URLs, so that none can hide in a text; only the files need the original.
    source = kept["result"] if is_modern else kept
    files, file_warnings = read_files((payload["result"] if is_modern else payload).get("files"))
    warnings: list[str] = []
    report = _report(source.get("report"), warnings)
    if is_modern and kept.get("report"):
        warnings.append("report outside of the result not read")
    answer = ResultAnswer(
        outcome=Outcome.INVALID,
        triage=_text(kept.get("triage_status")),
        usecase=_text(kept.get("usecase")),
        report=report,
        scores=_table("scores", source.get("scores"), _number, warnings),
        decisions=_table("decisions", source.get("decisions"), _boolean, warnings),
        model_version=_text(source.get("qure_model_version")),
        files=files,
        content=kept,
        warnings=(*warnings, *file_warnings),
    )
    return answer, not warnings


def _refuse_failure(payload: dict[str, Any]) -> None:
    if any(flag is not True for flag in success_flags(payload)):
        raise NotUnderstoodError("says that it is no success")


def _is_result(result: Any) -> bool:
    return isinstance(result, dict) and (
        isinstance(result.get("files"), dict) or isinstance(result.get("report"), str | list | dict)
    )


def _is_legacy(payload: dict[str, Any]) -> bool:
    has_tags = isinstance(payload.get("tags"), list)
    if "integrity" not in payload:
        return has_tags
    integrity = payload["integrity"]
    return integrity is False or (integrity is True and (has_tags or isinstance(payload.get("report"), str)))


def _report(sent: Any, warnings: list[str]) -> Report:
    if sent is None:
        return Report()
    if isinstance(sent, str):
        return Report(lines=tuple(line for line in sent.splitlines() if line.strip()))
    if isinstance(sent, list):
        lines = tuple(line for line in sent if isinstance(line, str))
        if len(lines) < len(sent):
            warnings.append("lines of the report not read: not text")
        return Report(lines=lines)
    if isinstance(sent, dict):
        return Report(
            impression=_report_text("impression", sent.get("impression"), warnings),
            findings=_report_text("findings", sent.get("findings"), warnings),
            findings_list=_pairs(sent.get("findings_list"), warnings),
        )
    warnings.append("report not read: neither text, list nor object")
    return Report()


def _report_text(name: str, sent: Any, warnings: list[str]) -> str:
    if sent is not None and not isinstance(sent, str):
        warnings.append(f"{name} of the report not read: not text")
    return sent if isinstance(sent, str) else ""


def _pairs(sent: Any, warnings: list[str]) -> tuple[tuple[str, str], ...]:
    if sent is None:
        return ()
    if not isinstance(sent, list):
        warnings.append("findings_list of the report not read: not a list")
        return ()
    pairs = tuple(
        (item[0], item[1])
        for item in sent
        if isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) for text in item)
    )
    if len(pairs) < len(sent):
        warnings.append("items of findings_list not read: not a key and a text")
    return pairs


def _table(name: str, sent: Any, read: Callable[[Any], _T | None], warnings: list[str]) -> dict[str, _T]:
    if sent is None:
        return {}
    if not isinstance(sent, dict):
        warnings.append(f"{name} not read: not an object")
        return {}
    table = {key: value for key, item in sent.items() if (value := read(item)) is not None}
    if len(table) < len(sent):
        warnings.append(f"some {name} not read: not of the documented type")
    return table


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _boolean(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
