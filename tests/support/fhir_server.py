"""A SIMULATED hospital's FHIR R4 server on loopback: strict, in memory, and misbehaving on demand.

It shares no code with the provider. What it takes must be valid, must refer to what is there, and must be recognisable
as unverified AI output; a Patient, an ImagingStudy or a ServiceRequest is nothing that an AI may make.

Run it by itself with ``python -m tests.support.fhir_server --port 8090 --patient 'urn:oid:1.2.3|P1'``.
"""

import argparse
import base64
import contextlib
import copy
import json
import re
import secrets
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FHIR_JSON = "application/fhir+json"
TAKES = ("Device", "Observation", "DiagnosticReport", "Provenance", "DocumentReference")
HOSPITALS_OWN = ("Patient", "ImagingStudy", "ServiceRequest")
LABELLED = ("Observation", "DiagnosticReport", "Provenance", "DocumentReference")
SEARCHABLE = {"identifier", "_tag", "_id"}
NEVER = {"final", "amended", "corrected", "appended"}


class RefusalError(Exception):
    """An answer that is no success, with an OperationOutcome."""

    def __init__(self, status, code, diagnostics="", expression=()):
        super().__init__(diagnostics)
        self.status = status
        self.outcome = outcome(code, diagnostics, expression)


class LostAnswerError(Exception):
    """The connection ends before the answer."""


def outcome(code, diagnostics="", expression=()):
    issue = {"severity": "error", "code": code}
    if diagnostics:
        issue["diagnostics"] = diagnostics
    if expression:
        issue["expression"] = list(expression)
    return {"resourceType": "OperationOutcome", "issue": [issue]}


@dataclass
class Behaviour:
    """What the server offers and how it answers; change it while it runs."""

    transactions: bool = True
    resources: tuple[str, ...] = TAKES
    conditional: bool = True
    fhir_version: str = "4.0.1"
    says_where: bool = True
    """Whether answers to what is put say where it is."""
    absolute_locations: bool = False
    ignores_searches: bool = False
    """Whether a search finds everything, as lenient servers do with what they do not know."""
    pages: bool = False
    """Whether a search says that there is another page."""
    basic: str = ""
    """``user:password`` that every request but for the CapabilityStatement must show."""
    client: str = ""
    """``id:secret`` that the token endpoint gives access tokens for, which then must be shown."""
    token_seconds: int = 3600
    schema: object = None
    """A validator of the ``jsonschema`` library for the official schema."""


@dataclass
class Fault:
    """Something that goes wrong, so many times."""

    method: str
    path: str
    """Regular expression for the path below the root."""
    status: int = 0
    """What is answered instead; 0 for no answer at all, after the work has been done."""
    body: bytes = b""
    times: int = 1
    seconds: float = 0.0


@dataclass
class FhirServer:
    """The server's state."""

    behaviour: Behaviour = field(default_factory=Behaviour)
    faults: list = field(default_factory=list)
    seen: list = field(default_factory=list)
    """(method, path with query, headers, body) of every request."""

    def __post_init__(self):
        self.url = ""
        self._versions = {}  # (type, id) to all its versions
        self._lock = threading.RLock()
        self._tokens = set()

    # For those who run it.

    def resources(self, kind=None):
        """The newest version of everything, or of one type."""
        with self._lock:
            return [copy.deepcopy(all_[-1]) for (type_, _), all_ in self._versions.items() if kind in (None, type_)]

    def counts(self):
        with self._lock:
            kinds = [type_ for type_, _ in self._versions]
            return {kind: kinds.count(kind) for kind in sorted(set(kinds))}

    def versions(self, kind):
        with self._lock:
            return sum(len(all_) for (type_, _), all_ in self._versions.items() if type_ == kind)

    def admit(self, system, value, **more):
        """Make a patient, as the hospital's own registration would."""
        patient = {"resourceType": "Patient", "identifier": [{"system": system, "value": value}], **more}
        with self._lock:
            return self._store(patient)["id"]

    def forget_everything(self):
        with self._lock:
            self._versions.clear()
            self._tokens.clear()
        self.faults.clear()
        self.seen.clear()
        self.behaviour = Behaviour(schema=self.behaviour.schema)

    def revoke_tokens(self):
        self._tokens.clear()

    # HTTP.

    def answer(self, method, target, headers, body):
        """Carry a request out: status, headers and body of the answer."""
        self.seen.append((method, target, headers, body))
        path, _, query = target.partition("?")
        path = path.removeprefix("/fhir").strip("/")
        fault = next((f for f in self.faults if f.method == method and re.fullmatch(f.path, path)), None)
        if fault:
            fault.times -= 1
            if fault.times <= 0:
                self.faults.remove(fault)
            time.sleep(fault.seconds)
            if fault.status:
                return fault.status, {"Content-Type": FHIR_JSON}, fault.body
        status, more, content = self._answer(method, path, query, headers, body)
        if fault:
            raise LostAnswerError
        return status, {"Content-Type": FHIR_JSON, **more}, b"" if content is None else json.dumps(content).encode()

    def _answer(self, method, path, query, headers, body):
        with self._lock:
            before = copy.deepcopy(self._versions)
            try:
                return self._route(method, path, query, headers, body)
            except RefusalError as refusal:
                self._versions = before
                return refusal.status, {}, refusal.outcome

    def _route(self, method, path, query, headers, body):
        if (method, path) == ("POST", "token"):
            return self._give_token(headers, body)
        if (method, path) == ("GET", "metadata"):
            return 200, {}, self._statement()
        self._admit_caller(headers)
        kind, _, rest = path.partition("/")
        if not kind:
            if method != "POST":
                raise RefusalError(405, "not-supported")
            return self._bundle(self._resource(headers, body))
        if kind not in (*self.behaviour.resources, *HOSPITALS_OWN):
            raise RefusalError(404, "not-supported", f"{kind} is not offered")
        if (method, rest) == ("POST", "_search"):
            return 200, {}, self._searchset(kind, body.decode())
        if method == "GET":
            return 200, {}, self._read(kind, rest) if rest else self._searchset(kind, query)
        resource = self._resource(headers, body)
        criterion, prefer = headers.get("If-None-Exist"), headers.get("Prefer", "")
        return self._put(method, kind, rest, query, criterion, resource, fulls={}, prefer=prefer)

    def _put(self, method, kind, id_, query, criterion, resource, *, fulls, new=None, prefer=""):
        if kind in HOSPITALS_OWN:
            raise RefusalError(403, "forbidden", f"an AI must not write {kind}")
        if resource.get("resourceType") != kind:
            raise RefusalError(400, "invalid", "another type than the address")
        if (query or criterion) and not self.behaviour.conditional:
            raise RefusalError(412, "not-supported", "no conditional requests")
        self._check(resource, fulls)
        there = self._matching(kind, query or criterion) if query or criterion else []
        if len(there) > 1:
            raise RefusalError(412, "multiple-matches", f"{len(there)} match")
        if method == "POST":
            stored, status = (there[0], 200) if there else (self._store(resource, new), 201)
        elif id_ or there:
            id_ = id_ or there[0]["id"]
            if (kind, id_) not in self._versions:
                raise RefusalError(404, "not-found", "ids are ours to give")
            stored, status = self._store(resource, id_), 200
        elif query:
            stored, status = self._store(resource, new), 201
        else:
            raise RefusalError(400, "required", "an update needs an id or a search")
        where = f"{kind}/{stored['id']}/_history/{stored['meta']['versionId']}"
        if self.behaviour.absolute_locations:
            where = f"{self.url}{where}"
        says = self.behaviour.says_where
        content = stored if says and "return=minimal" not in prefer else None
        return status, {"Location": where} if says else {}, content

    def _bundle(self, bundle):
        if not self.behaviour.transactions:
            raise RefusalError(400, "not-supported", "no transactions")
        if (bundle.get("resourceType"), bundle.get("type")) != ("Bundle", "transaction"):
            raise RefusalError(400, "invalid", "not a transaction", ["Bundle.type"])
        fulls, plans, taken = {}, [], set()
        for entry in bundle["entry"]:
            request, resource = entry["request"], copy.deepcopy(entry["resource"])
            kind, _, id_ = request["url"].partition("?")[0].partition("/")
            query = request["url"].partition("?")[2]
            criterion = request.get("ifNoneExist")
            there = self._matching(kind, query or criterion) if query or criterion else []
            identity = (kind, id_ or (there[0]["id"] if there else entry.get("fullUrl")))
            if identity in taken or identity[1] is None:
                raise RefusalError(400, "invalid", "a resource twice, or without fullUrl")
            taken.add(identity)
            new = id_ or (there[0]["id"] if there else secrets.token_hex(4))
            if entry.get("fullUrl"):
                fulls[entry["fullUrl"]] = f"{kind}/{new}"
            plans.append((request["method"], kind, id_, query, criterion, resource, new))
        answers = []
        for method, kind, id_, query, criterion, resource, new in plans:
            resolve(resource, fulls)
            status, headers, _ = self._put(method, kind, id_, query, criterion, resource, fulls=fulls, new=new)
            answers.append({"response": {"status": str(status), **{n.lower(): v for n, v in headers.items()}}})
        return 200, {}, {"resourceType": "Bundle", "type": "transaction-response", "entry": answers}

    # What is taken.

    def _resource(self, headers, body):
        if headers.get("Content-Type", "").partition(";")[0] != FHIR_JSON:
            raise RefusalError(415, "invalid", "not FHIR JSON")
        try:
            resource = json.loads(body.decode("utf-8"), parse_constant=no_number)
        except ValueError:
            raise RefusalError(400, "structure", "not JSON in UTF-8") from None
        if self.behaviour.schema is not None:
            for error in self.behaviour.schema.iter_errors(resource):
                raise RefusalError(400, "structure", error.message, [".".join(map(str, error.absolute_path))])
        return resource

    def _check(self, resource, fulls):
        kind = resource["resourceType"]
        check_model(resource)
        if NEVER & {resource.get("status"), resource.get("docStatus")}:
            raise RefusalError(422, "business-rule", "AI output cannot be final", [f"{kind}.status"])
        labels = {coding.get("code") for coding in resource.get("meta", {}).get("security", ())}
        if kind in LABELLED and "AIAST" not in labels:
            raise RefusalError(422, "business-rule", "AI output must be labelled", [f"{kind}.meta.security"])
        known = {f"{type_}/{id_}" for type_, id_ in self._versions} | set(fulls.values())
        inside = {f"#{contained['id']}" for contained in resource.get("contained", ())}
        for reference in references(resource):
            if reference not in known | inside:
                raise RefusalError(422, "not-found", f"{reference} is not there", [kind])

    def _store(self, resource, id_=None):
        kind = resource["resourceType"]
        id_ = id_ or secrets.token_hex(4)
        all_ = self._versions.setdefault((kind, id_), [])
        stored = {**copy.deepcopy(resource), "id": id_}
        meta = {
            key: value for key, value in resource.get("meta", {}).items() if key not in ("versionId", "lastUpdated")
        }
        if all_ and {**all_[-1], "meta": None} == {**stored, "meta": None}:
            return all_[-1]
        stored["meta"] = {**meta, "versionId": str(len(all_) + 1), "lastUpdated": datetime.now(UTC).isoformat()}
        all_.append(stored)
        return stored

    # Finding.

    def _read(self, kind, id_):
        if (kind, id_) not in self._versions:
            raise RefusalError(404, "not-found")
        return self._versions[kind, id_][-1]

    def _searchset(self, kind, query):
        found = self._matching(kind, query)
        entries = [{"resource": resource, "search": {"mode": "match"}} for resource in found]
        next_ = [{"relation": "next", "url": f"{self.url}?page=2"}] if self.behaviour.pages else []
        return {"resourceType": "Bundle", "type": "searchset", "total": len(found), "link": next_, "entry": entries}

    def _matching(self, kind, query):
        parameters = urllib.parse.parse_qsl(query, keep_blank_values=True)
        unknown = {name for name, _ in parameters} - SEARCHABLE
        if unknown:
            raise RefusalError(400, "not-supported", f"cannot search by {sorted(unknown)}")
        newest = [all_[-1] for (type_, _), all_ in self._versions.items() if type_ == kind]
        if self.behaviour.ignores_searches:
            return newest
        return [resource for resource in newest if all(matches(resource, *parameter) for parameter in parameters)]

    # Who asks.

    def _admit_caller(self, headers):
        scheme, _, shown = headers.get("Authorization", "").partition(" ")
        if self.behaviour.basic and (scheme, shown) != ("Basic", b64(self.behaviour.basic)):
            raise RefusalError(401, "login")
        if self.behaviour.client and (scheme != "Bearer" or shown not in self._tokens):
            raise RefusalError(401, "login")

    def _give_token(self, headers, body):
        form = dict(urllib.parse.parse_qsl(body.decode()))
        if headers.get("Authorization") != f"Basic {b64(self.behaviour.client)}":
            return 401, {"Content-Type": "application/json"}, {"error": "invalid_client"}
        if form.get("grant_type") != "client_credentials":
            return 400, {"Content-Type": "application/json"}, {"error": "unsupported_grant_type"}
        token = secrets.token_urlsafe(16)
        self._tokens.add(token)
        content = {"access_token": token, "token_type": "Bearer", "expires_in": self.behaviour.token_seconds}
        return 200, {"Content-Type": "application/json"}, content

    def _statement(self):
        flags = {"conditionalCreate": True, "conditionalUpdate": True} if self.behaviour.conditional else {}
        can = [{"code": code} for code in ("read", "create", "update", "search-type")]
        resources = [{"type": kind, "interaction": can, **flags} for kind in self.behaviour.resources]
        resources.append({"type": "Patient", "interaction": [{"code": "read"}, {"code": "search-type"}]})
        whole = [{"code": "transaction"}] if self.behaviour.transactions else []
        return {
            "resourceType": "CapabilityStatement",
            "status": "active",
            "date": "2026-01-01",
            "kind": "instance",
            "software": {"name": "SIMULATED FHIR server"},
            "fhirVersion": self.behaviour.fhir_version,
            "format": [FHIR_JSON],
            "rest": [{"mode": "server", "resource": resources, "interaction": whole}],
        }


def check_model(resource):
    from fhir.resources.R4B import get_fhir_model_class
    from pydantic import ValidationError

    try:
        get_fhir_model_class(resource["resourceType"]).model_validate(resource)
    except ValidationError as error:
        raise RefusalError(400, "structure", str(error)) from None


def matches(resource, name, value):
    if name == "_id":
        return resource["id"] in value.split(",")
    if name == "_tag":
        tokens = [(tag.get("system"), tag.get("code")) for tag in resource.get("meta", {}).get("tag", ())]
    else:
        identifiers = [*resource.get("identifier", ()), *filter(None, [resource.get("masterIdentifier")])]
        tokens = [(identifier.get("system"), identifier.get("value")) for identifier in identifiers]
    alternatives = [split(alternative, "|") for alternative in split(value, ",", keep=True)]
    return any(tuple(alternative) in tokens for alternative in alternatives)


def split(text, at, *, keep=False):
    """Divide a search value at a character that is not escaped; unescape the parts unless they are divided again."""
    parts, escaped = [""], False
    for character in text:
        if escaped:
            parts[-1] += f"\\{character}" if keep else character
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == at:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def references(value):
    if isinstance(value, dict):
        if isinstance(value.get("reference"), str):
            yield value["reference"]
        value = value.values()
    if isinstance(value, (list, type({}.values()))):
        for item in value:
            yield from references(item)


def resolve(value, fulls):
    if isinstance(value, dict):
        if value.get("reference") in fulls:
            value["reference"] = fulls[value["reference"]]
        value = value.values()
    if isinstance(value, (list, type({}.values()))):
        for item in value:
            resolve(item, fulls)


def no_number(text):
    raise ValueError(f"{text} is not JSON")


def b64(text):
    return base64.b64encode(text.encode()).decode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    wbufsize = -1  # head and body of an answer in one packet

    def _do(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            status, headers, content = self.server.fhir.answer(self.command, self.path, self.headers, body)
        except LostAnswerError:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = _do  # noqa: N815

    def log_message(self, *args):
        """Say nothing."""


@contextlib.contextmanager
def running_fhir_server(port=0, behaviour=None):
    """Run a server on loopback; gives its state, with its base URL in ``url``."""
    state = FhirServer(behaviour or Behaviour())
    with ThreadingHTTPServer(("127.0.0.1", port), _Handler) as server:
        server.daemon_threads = True
        server.fhir = state
        state.url = f"http://127.0.0.1:{server.server_port}/fhir/"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--patient", action="append", default=[], metavar="SYSTEM|ID")
    options = parser.parse_args()
    with running_fhir_server(options.port) as server:
        for patient in options.patient:
            system, _, value = patient.rpartition("|")
            server.admit(system, value)
        print(server.url, flush=True)  # noqa: T201
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
