"""What the service may do to us."""

from __future__ import annotations

from chaos.place import Place, connect_service, expect
from chaos.scenario import scenario
from qure_provider.emulator.control import EmulatorControl
from qure_provider.emulator.model import (
    Answer,
    At,
    Drip,
    Kind,
    LicenseExpired,
    LoseFiles,
    OtherPatient,
    Oversize,
    Reset,
    Stall,
    Truncate,
)
from qure_provider.emulator.server import Tls, running_emulator
from qure_provider.emulator.settings import EmulatorSettings
from tests.support.certificates import make_certificates

SERVICE = "The service"
STEPS = tuple(Kind)
LATER = (408, 429, 500, 502, 503, 504)
"""What may be otherwise the next time."""
NEVER = (301, 400, 401, 403, 404, 409, 410, 413, 422, 501)
"""What says that the request is wrong, or means something of its own."""


@scenario(SERVICE, "the files of a result are another patient's", "the whole result is held, and the run says so")
def another_patients_files(place: Place) -> None:
    _, film, _ = place.usual()
    place.control.inject(OtherPatient(kind=Kind.ASSET, uid=film, times=None))
    place.night()
    expect(place.owed("pacs") == {"delivered": 3, "held": 1}, f"deliveries to the archive: {place.owed('pacs')}")
    expect(place.owed("ris") == {"delivered": 2, "held": 1}, f"deliveries to the RIS: {place.owed('ris')}")
    expect("held" in place.red, "the run does not say what is held")


@scenario(
    SERVICE,
    "the triage word is missing, empty or new",
    "it is told as unknown to every receiver, and never as normal",
)
def triage_that_nobody_knows(place: Place) -> None:
    words = (None, "", "Benign", 0)
    for number, word in enumerate(words, 1):
        (film,) = place.xray(f"film{number}", **place.admit(number))
        place.control.plan(film.SOPInstanceUID, patch={"triage_status": word})
    place.night()
    place.must_be_whole(len(words))
    told = [line[5] for message in place.ris.messages for line in message.all("OBX") if "AI-STUDY-MEANING" in line[3]]
    expect(told == ["unknown"] * len(words), f"the RIS was told {told}")


@scenario(
    SERVICE,
    "a result is ready, and then it is not found",
    "no report of it goes out, and the run says so; it is sent again and reported once",
)
def ready_then_not_found(place: Place) -> None:
    _, film, _ = place.usual()
    place.control.inject(Answer(kind=Kind.RESULTS, uid=film, skip=1, times=None, status=404))
    place.night()
    expect(place.outcomes() == {"ready": 3, "not uploaded": 1}, f"outcomes are {place.outcomes()}")
    expect(place.owed("ris") == {"delivered": 2}, f"deliveries to the RIS: {place.owed('ris')}")
    expect("not uploaded" in place.red, "the run does not name it")
    place.control.clear_faults()
    place.resent = 1
    place.night()
    place.must_be_whole()


@scenario(
    SERVICE,
    "a series is under process for ever",
    "all others are delivered; at the deadline it is timed out and named; a later night brings it home",
)
def processed_for_ever(place: Place) -> None:
    _, film, _ = place.usual()
    place.control.plan(film, outcome="stuck")
    place.night(wait_seconds=4)
    expect(place.outcomes() == {"ready": 3, "timed out": 1}, f"outcomes are {place.outcomes()}")
    expect("timed out" in place.red, "the run does not name what timed out")
    expect(place.owed("ris") == {"delivered": 2}, f"deliveries to the RIS: {place.owed('ris')}")
    place.control.plan(film)
    place.night()
    place.must_be_whole()


@scenario(
    SERVICE,
    "files are acknowledged and not kept",
    "the number that the service holds gives it away; as nobody can tell which, the series is sent again",
)
def acknowledged_and_not_kept(place: Place) -> None:
    _, _, head = place.usual()
    place.control.inject(LoseFiles(uid=head, count=3))
    place.resent = 7
    place.night()
    place.must_be_whole()


@scenario(SERVICE, "an answer to an upload leaves files out", "exactly these are sent again")
def files_missing_in_the_answer(place: Place) -> None:
    _, _, head = place.usual()
    place.control.inject(LoseFiles(uid=head, count=3, acknowledged=False))
    place.night()
    place.must_be_whole()


@scenario(SERVICE, "a 200 says that the licence has expired", "it is no upload: the series is named, and nothing waits")
def licence_expired(place: Place) -> None:
    _, film, _ = place.usual()
    place.control.inject(LicenseExpired(uid=film, times=None))
    place.night()
    expect(place.outcomes() == {"ready": 3, "not uploaded": 1}, f"outcomes are {place.outcomes()}")
    expect("licen" in place.red, f"the run does not name the licence: {place.red}")


@scenario(SERVICE, "each step is answered once by each status that may pass", "all is whole after the retries")
def statuses_that_pass(place: Place) -> None:
    _each_status(place, LATER)
    place.night()
    place.must_be_whole(2 * len(LATER))


@scenario(
    SERVICE,
    "each step is answered once by each status that will not pass",
    "what it hits has a named outcome and harms no other; what has no answer is asked for by the next night",
)
def statuses_that_do_not_pass(place: Place) -> None:
    _each_status(place, NEVER)
    place.night(wait_seconds=15)
    expect(place.outcomes().keys() - {"ready"}, "nothing is anything but ready")
    expect(place.red, "the run is green")
    place.control.clear_faults()
    place.night()
    expect(set(place.outcomes()) <= {"ready", "unsupported", "invalid"}, f"outcomes are {place.outcomes()}")


def _each_status(place: Place, statuses: tuple[int, ...]) -> None:
    for number, status in enumerate(statuses, 1):
        (film,) = place.xray(f"film{number}", **place.admit(2 * number))
        head = place.ct(f"head{number}", **place.admit(2 * number + 1))[0].SeriesInstanceUID
        for kind in STEPS:
            for uid in (film.SOPInstanceUID, head):
                if (kind, uid) != (Kind.COMPUTE, film.SOPInstanceUID):
                    place.control.inject(Answer(kind=kind, uid=uid, status=status, headers={"Location": "/elsewhere"}))


@scenario(SERVICE, "connections are reset before and in the middle of a body", "only what got no answer is sent again")
def resets(place: Place) -> None:
    _, film, head = place.usual()
    for kind in (Kind.RESULTS, Kind.ASSET):
        for at in At:
            place.control.inject(Reset(kind=kind, uid=film, at=at, after_bytes=20))
    place.control.inject(Reset(kind=Kind.UPLOAD, at=At.REQUEST, after_bytes=2000))
    place.control.inject(Reset(kind=Kind.UPLOAD, at=At.ANSWER, uid=film))
    place.control.inject(Reset(kind=Kind.UPLOAD, at=At.BODY, uid=head, after_bytes=20))
    place.control.inject(Reset(kind=Kind.COMPUTE, at=At.ANSWER, uid=head))
    place.resent = 11
    place.night()
    place.must_be_whole()


@scenario(SERVICE, "answers and files end half-way", "no half is taken for a whole; it is asked again")
def truncated_bodies(place: Place) -> None:
    _, film, head = place.usual()
    for kind in STEPS:
        place.control.inject(Truncate(kind=kind, uid=head))
    for kind in (Kind.RESULTS, Kind.ASSET):
        place.control.inject(Truncate(kind=kind, uid=film))
    place.resent = 10
    place.night()
    place.must_be_whole()


@scenario(
    SERVICE,
    "answers and files stall",
    "each is given up after the connection's timeout, and tried again",
    read_timeout=1,
)
def stalls(place: Place) -> None:
    _, film, head = place.usual()
    place.control.inject(Stall(kind=Kind.UPLOAD, at=At.REQUEST, uid=film, seconds=None))
    place.control.inject(Stall(kind=Kind.COMPUTE, at=At.REQUEST, uid=head, seconds=None))
    place.control.inject(Stall(kind=Kind.RESULTS, at=At.BODY, uid=film, seconds=None))
    place.control.inject(Stall(kind=Kind.ASSET, at=At.BODY, uid=film, seconds=None))
    place.night()
    place.must_be_whole()


@scenario(SERVICE, "answers drip in slowly", "what goes on is waited for", read_timeout=2)
def slow_drip(place: Place) -> None:
    _, film, head = place.usual()
    for kind in (Kind.UPLOAD, Kind.RESULTS):
        place.control.inject(Drip(kind=kind, uid=film, chunk=50, seconds=0.05))
    place.control.inject(Drip(kind=Kind.COMPUTE, uid=head, chunk=5, seconds=0.05))
    place.night()
    place.must_be_whole()


@scenario(
    SERVICE,
    "an answer and a file are far larger than they may be",
    "neither is read to its end; what has no answer then is named",
    max_answer_bytes=100_000,
    max_asset_bytes=3_000_000,
)
def oversized_bodies(place: Place) -> None:
    _, film, head = place.usual()
    place.control.inject(Oversize(kind=Kind.RESULTS, uid=film, size=10_000_000))
    place.control.inject(Oversize(kind=Kind.ASSET, uid=head, size=10_000_000))
    place.night()
    place.night()
    expect(set(place.outcomes()) <= {"ready", "failed"}, f"outcomes are {place.outcomes()}")


@scenario(
    SERVICE,
    "200 with HTML, with JSON of another shape, with no JSON, with nothing",
    "none of it is taken for an answer; the right one is taken when it comes",
)
def not_the_contract(place: Place) -> None:
    _, film, head = place.usual()
    bodies = ("<html><body>Sign in</body></html>", "[]", '{"result": 3}', "{", "", "null", '"ready"')
    for body in bodies:
        for kind in (Kind.UPLOAD, Kind.COMPUTE, Kind.RESULTS):
            uid = film if kind is Kind.UPLOAD else head
            place.control.inject(Answer(kind=kind, uid=uid, status=200, body=body))
    for _ in range(4):
        place.night()
    place.must_be_whole()


@scenario(
    SERVICE, "results come before their files", "they are asked for until the files stay the same, and all arrive"
)
def files_after_their_result(place: Place) -> None:
    _, film, _ = place.usual()
    place.pace = {"settle_seconds": 1.5}
    place.control.plan(film, delays={"report_pdf": 0.4, "report_sr": 1.8})
    place.night()
    place.must_be_whole()
    kinds = place.rows()[film].file_counts
    expect({"report_pdf", "report_sr"} <= set(kinds), f"only these kinds came home: {sorted(kinds)}")


@scenario(SERVICE, "a result offers a file that is not there", "the rest is not taken for the whole; the run names it")
def file_not_there(place: Place) -> None:
    _, film, _ = place.usual()
    place.control.plan(film, missing=("report_sr",))
    place.night()
    expect(place.outcomes().get("ready") == 3, f"outcomes are {place.outcomes()}")
    expect(place.red, "the run is green")
    place.control.plan(film)
    place.night()
    place.must_be_whole()


@scenario(SERVICE, "pre-signed URLs expire at once", "fresh ones are asked for; no URL is stored")
def urls_expire(place: Place) -> None:
    place.usual()
    place.control.configure(url_seconds=0.05)
    place.meanwhile = lambda: place.control.configure(url_seconds=300)
    place.night()
    place.control.configure(url_seconds=300)
    place.night()
    place.must_be_whole()


@scenario(SERVICE, "429, with a time to come back and without", "it is waited for, and nothing is given up")
def too_many_requests(place: Place) -> None:
    place.usual()
    for kind in STEPS:
        place.control.inject(Answer(kind=kind, status=429, headers={"Retry-After": "1"}))
        place.control.inject(Answer(kind=kind, status=429))
    place.night()
    place.must_be_whole()


@scenario(SERVICE, "403 for one image", "it is that image's outcome, and all others are delivered")
def denied_for_one(place: Place) -> None:
    _, film, _ = place.usual()
    place.control.plan(film, outcome="denied")
    place.night()
    expect(place.outcomes() == {"ready": 3, "denied": 1}, f"outcomes are {place.outcomes()}")
    expect("denied" in place.red, "the run does not name what is denied")


@scenario(
    SERVICE, "403 for everything", "the step fails at once and says which setting; once mended, all is brought home"
)
def denied_for_all(place: Place) -> None:
    place.usual()
    place.control.inject(Answer(kind=Kind.RESULTS, status=403, times=None))
    place.night()
    expect("Source" in place.problem, f"the failure does not name the setting: {place.problem}")
    place.control.clear_faults()
    place.night()
    place.must_be_whole()


@scenario(
    SERVICE,
    "images that are unusable (206, 400) or for no product (400)",
    "each is a named outcome that is neither asked again nor told as normal",
)
def not_for_the_service(place: Place) -> None:
    abnormal, film, head = place.usual()
    place.control.plan(abnormal, outcome="invalid")
    place.control.plan(film, outcome="unsupported")
    place.control.plan(head, outcome="invalid as 400")
    place.night()
    expect(place.outcomes() == {"invalid": 2, "unsupported": 1, "ready": 1}, f"outcomes are {place.outcomes()}")
    place.control.forget_requests()
    place.night()
    asked = {request.uid for request in place.control.requests(Kind.RESULTS)}
    expect(not asked & {abnormal, film, head}, "what was answered is asked again")


@scenario(
    SERVICE,
    "its certificate is of an unknown authority, or has expired",
    "nothing is sent, and the failure says which setting; with the right one all is brought home",
)
def wrong_certificate(place: Place) -> None:
    place.usual()
    for days in (1, -1):
        folder = place.root.with_name(f"certificates{days}")
        folder.mkdir()
        authority, certificate, key = make_certificates(folder, days=days)
        settings = EmulatorSettings(processing_seconds=0, abnormal_share=0, storage=folder)
        service = place.stack.enter_context(running_emulator(settings, tls=Tls(certificate, key)))
        control = place.stack.enter_context(EmulatorControl(service.base_url, verify=False))
        connect_service(service, ca_bundle=str(authority) if days < 0 else "")
        place.night()
        expect("certificate" in place.problem, f"the failure does not name the certificate: {place.problem}")
        expect(not control.requests(), "something was sent")
    connect_service(place.emulator)
    place.night()
    place.must_be_whole()
