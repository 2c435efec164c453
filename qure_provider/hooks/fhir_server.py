"""Talking to a FHIR R4 server: what it offers, searching, putting resources, and what its refusals say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote

import requests

from qure_provider.hooks.fhir_connection import FhirMode
from qure_provider.hooks.receiver import ReceiverRefusedError, ReceiverSettingsError, ReceiverUnavailableError
from qure_provider.hooks.web import Answer, WebSession, refusal
from qure_provider.reports.fhir import Resource, as_object, objects

MEDIA_TYPE = "application/fhir+json"

_TRANSACTION_REFUSALS = frozenset({400, 413, 422})

_LOCATION = re.compile(r"(?:^|/)([A-Z][A-Za-z]+)/([A-Za-z0-9.-]{1,64})(?:/_history/([A-Za-z0-9.-]{1,64}))?/?$")
_SPECIAL = re.compile(r"([\\,$|])")
_PLACE = re.compile(
    r"(Bundle|DiagnosticReport|Observation|Device|Provenance|DocumentReference|Patient)(\.[a-z][A-Za-z]*(\[\d+\])?)*"
)
_ISSUE_CODES = frozenset(
    {"business-rule", "code-invalid", "conflict", "deleted", "duplicate", "exception", "expired", "extension"}
    | {"forbidden", "incomplete", "invalid", "invariant", "lock-error", "login", "multiple-matches", "no-store"}
    | {"not-found", "not-supported", "processing", "required", "security", "structure", "suppressed", "throttled"}
    | {"timeout", "too-costly", "too-long", "transient", "unknown", "value"}
)
"""FHIR R4, IssueType. Their texts may name the patient, so only the codes are repeated."""


class TransactionRefusedError(ReceiverRefusedError):
    """A transaction was refused as such, and nothing of it was carried out; its entries one by one may well be taken.

    Servers have limits that no CapabilityStatement tells: Medplum takes at most eight entries with conditions.
    """


@dataclass(frozen=True, slots=True)
class Placed:
    """A resource as the server has it now.

    Attributes:
        kind: Resource type.
        id: The server's id.
        version: The server's version; empty where it does not say.
    """

    kind: str
    id: str
    version: str = ""

    @property
    def reference(self) -> str:
        """What others refer to it by."""
        return f"{self.kind}/{self.id}"

    @property
    def versioned(self) -> str:
        """The reference with the version, where that is known."""
        return f"{self.reference}/_history/{self.version}" if self.version else self.reference

    @classmethod
    def from_location(cls, location: str) -> Placed | None:
        """Read a URL or reference, relative or absolute; None where it is none."""
        found = _LOCATION.search(location)
        return cls(found[1], found[2], found[3] or "") if found else None

    @classmethod
    def from_resource(cls, resource: Mapping[str, Any]) -> Placed | None:
        """Read a resource's own type, id and version; None where it has no id."""
        found = cls.from_location(f"{resource.get('resourceType')}/{resource.get('id')}")
        version = as_object(resource.get("meta")).get("versionId", "")
        return cls(found.kind, found.id, str(version)) if found and resource.get("id") else None


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        resources: The matches of the first page.
        is_all: Whether there is no other page.
    """

    resources: tuple[Resource, ...] = field(repr=False)
    is_all: bool = True


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server's CapabilityStatement says that it offers.

    Attributes:
        fhir_version: Such as ``4.0.1``; empty where it does not say.
        has_transactions: Whether it takes transactions.
        resources: Resource type to what can be done with it: codes of interactions, ``conditionalCreate`` and
            ``conditionalUpdate``.
    """

    fhir_version: str
    has_transactions: bool
    resources: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, statement: Mapping[str, Any]) -> Capabilities:
        """Read a CapabilityStatement."""
        rest = next((rest for rest in objects(statement.get("rest")) if rest.get("mode") == "server"), {})
        resources = {}
        for resource in objects(rest.get("resource")):
            flags = {flag for flag in ("conditionalCreate", "conditionalUpdate") if resource.get(flag) is True}
            resources[str(resource.get("type"))] = frozenset(flags | _codes(resource.get("interaction")))
        return cls(str(statement.get("fhirVersion", "")), "transaction" in _codes(rest.get("interaction")), resources)

    def creates_once(self, kind: str) -> bool:
        """Tell whether a resource can be created unless there is one."""
        return {"create", "conditionalCreate"} <= self.resources.get(kind, frozenset())

    def replaces(self, kind: str) -> bool:
        """Tell whether a resource can be replaced by its identifier, and created where there is none."""
        return {"update", "conditionalUpdate"} <= self.resources.get(kind, frozenset())

    @property
    def mode(self) -> FhirMode | None:
        """The best way to put a report that it offers; None where it offers none."""
        if self.creates_once("Device") and self.replaces("Observation") and self.replaces("DiagnosticReport"):
            return FhirMode.TRANSACTION if self.has_transactions else FhirMode.SINGLE
        return FhirMode.DOCUMENT if self.replaces("DocumentReference") else None


class FhirServer:
    """One FHIR R4 server.

    Its methods raise the errors of ``qure_provider.hooks.receiver``. Each request may be sent again: what is put is
    put conditionally, so that an answer that was lost is no doubt that lasts.

    Args:
        session: Gives the session that goes to the server.
    """

    def __init__(self, session: Callable[[], WebSession]) -> None:
        self._session = session

    @cached_property
    def capabilities(self) -> Capabilities:
        """What the server says that it offers.

        Raises:
            ReceiverSettingsError: It is no FHIR R4 server.
        """
        what = "Asking the FHIR server what it offers"
        statement = self._content(what, self._ask(what, "GET", "metadata"), "CapabilityStatement")
        capabilities = Capabilities.of(statement)
        if not capabilities.fhir_version.startswith(("4.0", "4.3")):
            raise ReceiverSettingsError(
                f"{what} failed: it is not of FHIR R4. Enter the base URL of the server's R4 (4.0.1) endpoint."
            )
        return capabilities

    def search(self, what: str, kind: str, parameter: str, value: str) -> Found:
        """Search by one parameter; by POST, since addresses are logged on the way.

        Args:
            what: What is being done, in fixed words.
            kind: Resource type.
            parameter: Its name.
            value: Its value, escaped.

        Returns:
            What was found.
        """
        answer = self._ask(
            what, "POST", f"{kind}/_search", data={parameter: value}, headers={"Prefer": "handling=strict"}
        )
        bundle = self._content(what, answer, "Bundle")
        resources = (
            entry["resource"]
            for entry in objects(bundle.get("entry"))
            if isinstance(entry.get("resource"), dict)
            and as_object(entry.get("search")).get("mode", "match") == "match"
        )
        is_all = all(link.get("relation") != "next" for link in objects(bundle.get("link")))
        return Found(tuple(resource for resource in resources if resource.get("resourceType") == kind), is_all)

    def read(self, what: str, placed: Placed) -> Resource | None:
        """Read a resource.

        Returns:
            The resource; None where it is not there (any more).
        """
        answer = self._send(what, "GET", placed.reference)
        if answer.status in {requests.codes.not_found, requests.codes.gone}:
            return None
        return self._content(what, self._checked(what, answer), placed.kind)

    def transaction(self, what: str, bundle: Resource) -> list[Placed | None]:
        """Carry out a transaction.

        Returns:
            What each entry became; None where the server does not say.

        Raises:
            TransactionRefusedError: It was refused as a whole.
        """
        answer = self._send(what, "POST", "", bundle, {"Prefer": "return=minimal"})
        if answer.status in _TRANSACTION_REFUSALS:
            raise TransactionRefusedError(str(refusal(what, answer.status, _said(answer.json))))
        content = self._content(what, self._checked(what, answer), "Bundle")
        responses = [as_object(entry.get("response")) for entry in objects(content.get("entry"))]
        for response in responses:
            status = str(response.get("status", ""))[:3]
            if not status.startswith("2"):
                said = _said(response.get("outcome"))
                raise refusal(what, int(status) if status.isdecimal() else requests.codes.server_error, said)
        if len(responses) != len(bundle["entry"]):
            raise ReceiverUnavailableError(f"{what} failed: the server did not answer to every entry of a transaction.")
        return [Placed.from_location(str(response.get("location", ""))) for response in responses]

    def put(self, what: str, entry: Resource) -> Placed | None:
        """Carry out one entry of a transaction by itself.

        Args:
            what: What is being done, in fixed words.
            entry: With ``request`` and ``resource``.

        Returns:
            What it became; None where the server does not say.
        """
        request, resource = entry["request"], entry["resource"]
        criterion = request.get("ifNoneExist")
        condition = {"If-None-Exist": criterion} if criterion else {}
        answer = self._ask(what, request["method"], quote(request["url"], safe="/?=:"), resource, condition)
        for location in ("Location", "Content-Location"):
            placed = Placed.from_location(answer.headers.get(location, ""))
            if placed and placed.kind == resource["resourceType"]:
                return placed
        content = answer.json
        return Placed.from_resource(content) if isinstance(content, dict) else None

    def _ask(
        self,
        what: str,
        method: str,
        path: str,
        resource: Resource | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Answer:
        return self._checked(what, self._send(what, method, path, resource, headers, **options))

    def _send(
        self,
        what: str,
        method: str,
        path: str,
        resource: Resource | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Answer:
        sent = {"Accept": MEDIA_TYPE, **(headers or {})}
        if resource is not None:
            options["data"] = json.dumps(resource, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
            sent["Content-Type"] = MEDIA_TYPE
        return self._session().ask(what, method, path, headers=sent, **options)

    def _checked(self, what: str, answer: Answer) -> Answer:
        if not requests.codes.ok <= answer.status < requests.codes.multiple_choices:
            raise refusal(what, answer.status, _said(answer.json))
        return answer

    def _content(self, what: str, answer: Answer, kind: str) -> Resource:
        content = answer.json
        if not isinstance(content, dict) or content.get("resourceType") != kind:
            raise ReceiverSettingsError(
                f"{what} failed: the host answers, but not as a FHIR server does. Check the connection's base URL."
            )
        return content


def escaped(value: str) -> str:
    """Return a text as it stands in a search parameter's value (FHIR R4, search, escaping)."""
    return _SPECIAL.sub(r"\\\1", value)


def _said(outcome: Any) -> str:
    """What an OperationOutcome names as the reasons, without its texts."""
    if not isinstance(outcome, dict) or outcome.get("resourceType") != "OperationOutcome":
        return ""
    return ", ".join(dict.fromkeys(_issues(outcome)))


def _issues(outcome: Mapping[str, Any]) -> Iterator[str]:
    for issue in objects(outcome.get("issue")):
        code = str(issue.get("code"))
        if issue.get("severity") not in ("fatal", "error") or code not in _ISSUE_CODES:
            continue
        places = [place for name in ("expression", "location") for place in _listed(issue.get(name))]
        known = [place for place in places if isinstance(place, str) and _PLACE.fullmatch(place)]
        yield f"{code} at {known[0]}" if known else code


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _codes(interactions: Any) -> set[str]:
    return {str(interaction.get("code")) for interaction in objects(interactions)}
