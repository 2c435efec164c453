"""The order of an upload, with a service that is a function: what is sent, when, again, alone, and what is reported."""

import threading
import time
from collections import Counter

import pytest

from qure_provider.api.errors import QureRejectedError, QureSettingsError, QureTransientError
from qure_provider.api.model import FileAcknowledgement, UploadAnswer
from qure_provider.hooks.multipart import CLOSING_SIZE, OutgoingFileError, form_key, part_size
from qure_provider.hooks.outgoing import OutgoingFile
from qure_provider.hooks.upload import MAX_SENDS, Traffic, UploadRun, UploadStoppedError


def make(series, count, size=100):
    return [OutgoingFile(f"{series}.{index}", series, f"/x/{series}/{index}", size) for index in range(count)]


def vouch(files, without=(), counts=True):
    messages = {form_key(i): FileAcknowledgement(form_key(i), True) for i, f in enumerate(files) if f not in without}
    taken = Counter(file.series_instance_uid for file in files if file not in without)
    return UploadAnswer(files=messages, series_instance_uids=tuple(taken), series_counts=taken if counts else {})


class Service:
    """Answers by a function of the files; counts what it was sent."""

    def __init__(self, answer=vouch, probe=lambda: None):
        self.sent = []
        self.probed = 0
        self._answer = answer
        self._probe = probe

    def send(self, files, stop):
        self.sent.append(list(files))
        return self._answer(files)

    def probe(self):
        self.probed += 1
        self._probe()

    def upload(self, files, *, per_request=1000, parallel=1, **callbacks):
        limit = per_request * part_size(files[0]) + CLOSING_SIZE if files else 1000
        run = UploadRun(self.send, self.probe, limit=limit, parallel=parallel, **callbacks)
        run.run(files)
        report = run.report(Traffic())
        accounted = [*report.acknowledged, *(failure.file for failure in report.failed), *report.not_sent]
        assert sorted(file.path for file in accounted) == sorted(file.path for file in files)
        return report


def test_requests_are_filled_in_order_and_acknowledged_as_they_come():
    service, seen = Service(), []
    files = make("1.2", 7)

    report = service.upload(files, per_request=3, on_acknowledged=lambda some: seen.append(list(some)))

    assert service.sent == [files[:3], files[3:6], files[6:]]
    assert seen == service.sent
    assert report.acknowledged == tuple(files)


def test_the_next_request_is_prepared_while_one_is_sent():
    files, prepared, next_one = make("1.2", 6), [], threading.Event()

    def preparing():
        for file in files:
            prepared.append(file)
            if len(prepared) > 4:  # the first of a third request
                next_one.set()
            yield file

    def send(some, stop):
        assert next_one.wait(10)
        return vouch(some)

    run = UploadRun(send, lambda: None, limit=2 * part_size(files[0]) + CLOSING_SIZE, parallel=1)
    run.run(preparing())

    assert run.report(Traffic()).acknowledged == tuple(files)


def test_nothing_to_send_is_no_request():
    assert Service().upload([]).acknowledged == ()


def test_callbacks_run_in_the_calling_thread():
    threads = set()
    Service().upload(
        make("1.2", 20),
        per_request=1,
        parallel=4,
        on_acknowledged=lambda files: threads.add(threading.current_thread()),
        should_stop=lambda: threads.add(threading.current_thread()),
    )

    assert threads == {threading.current_thread()}


def test_requests_are_under_way_at_once():
    together = threading.Barrier(4, timeout=10)

    def answer(files):
        together.wait()
        return vouch(files)

    assert len(Service(answer).upload(make("1.2", 8), per_request=1, parallel=4).acknowledged) == 8


def test_a_file_too_large_for_a_request_fails_and_the_others_go():
    small, large = make("1.2", 2), make("3.4", 1, size=10_000)

    report = Service().upload(small + large, per_request=2)

    assert report.acknowledged == tuple(small)
    assert [failure.file for failure in report.failed] == large
    assert isinstance(report.failed[0].error, QureRejectedError)


def test_what_is_not_acknowledged_is_sent_again_and_at_last_alone():
    files = make("1.2", 4)
    lost = files[1:3]
    service = Service(lambda sent: vouch(sent, without=lost))

    report = service.upload(files)

    assert service.sent == [files, lost, [lost[0]], [lost[1]]]
    assert Counter(file for sent in service.sent for file in sent)[lost[0]] == MAX_SENDS
    assert report.acknowledged == (files[0], files[3])
    assert [failure.file for failure in report.failed] == lost
    assert all(isinstance(failure.error, QureTransientError) for failure in report.failed)


def test_a_rejected_request_is_divided_by_series_then_by_file():
    files = make("1.2", 2) + make("3.4", 2)
    bad = files[2]

    def answer(sent):
        if bad in sent:
            raise QureRejectedError("no")
        return vouch(sent)

    service = Service(answer)
    report = service.upload(files)

    assert service.sent == [files, files[:2], files[2:], [files[2]], [files[3]]]
    assert set(report.acknowledged) == set(files) - {bad}
    assert [failure.file for failure in report.failed] == [bad]
    assert service.probed == 0


def test_a_request_that_the_service_cannot_cope_with_harms_no_other():
    files = make("1.2", 2) + make("3.4", 2)

    def answer(sent):
        if files[0] in sent:
            raise QureTransientError("500")
        return vouch(sent)

    service = Service(answer)
    report = service.upload(files)

    assert set(report.acknowledged) == set(files[1:])
    assert [failure.file for failure in report.failed] == files[:1]
    assert service.probed == 3


@pytest.mark.parametrize("retry_after", [None, 600.0])
def test_a_service_that_is_away_is_not_asked_again_and_again(retry_after):
    def away(*args):
        raise QureTransientError("away", retry_after=retry_after)

    service = Service(away, away)
    report = service.upload(make("1.2", 50), per_request=1)

    assert len(service.sent) == 1
    assert len(report.failed) == 50
    assert {str(failure.error) for failure in report.failed} == {"away"}
    assert service.probed == (retry_after is None)


def test_wrong_settings_stop_it_after_what_is_under_way_was_acknowledged():
    files = make("1.2", 10)
    seen, begun = [], threading.Event()

    def answer(sent):
        if sent[0] is files[0]:
            assert begun.wait(10)
            raise QureSettingsError("401")
        begun.set()
        time.sleep(0.05)
        return vouch(sent)

    service = Service(answer)
    with pytest.raises(QureSettingsError, match="401"):
        service.upload(files, per_request=1, parallel=2, on_acknowledged=seen.extend)

    assert len(service.sent) <= 3
    assert set(seen) == {file for sent in service.sent for file in sent} - {files[0]}


def test_wrong_settings_are_found_behind_broken_connections():
    def broken(files):
        raise QureTransientError("reset")

    def refused():
        raise QureSettingsError("401")

    with pytest.raises(QureSettingsError, match="401"):
        Service(broken, refused).upload(make("1.2", 3))


def test_a_file_that_changed_fails_alone():
    files = make("1.2", 3)

    def answer(sent):
        if files[1] in sent:
            raise OutgoingFileError(files[1], QureRejectedError("changed"))
        return vouch(sent)

    service = Service(answer)
    report = service.upload(files)

    assert service.sent == [files, [files[0], files[2]]]
    assert [(failure.file, str(failure.error)) for failure in report.failed] == [(files[1], "changed")]


def test_should_stop_breaks_off_what_is_under_way():
    stopped = []

    def send(files, stop):
        assert stop.wait(10)
        stopped.append(files)
        raise UploadStoppedError

    asked = iter([False, True])
    run = UploadRun(send, lambda: None, limit=10_000, parallel=1, should_stop=lambda: next(asked))
    files = make("1.2", 2)
    begun = time.monotonic()
    run.run(files)

    assert run.report(Traffic()).not_sent == tuple(files)
    assert time.monotonic() - begun < 5


def test_an_error_of_the_caller_ends_it_and_breaks_off_the_rest():
    files = make("1.2", 2)
    begun, broken_off = threading.Event(), threading.Event()

    def send(sent, stop):
        if sent[0] is files[1]:
            begun.set()
            assert stop.wait(10)
            broken_off.set()
            raise UploadStoppedError
        assert begun.wait(10)
        return vouch(sent)

    def fail(some):
        raise OSError("progress cannot be kept")

    run = UploadRun(send, lambda: None, limit=400, parallel=2, on_acknowledged=fail)
    with pytest.raises(OSError, match="progress"):
        run.run(files)
    assert broken_off.wait(5)


class Holding:
    """A service that counts all that it holds of a series, and can lose files while it says that it took them."""

    def __init__(self, lose=()):
        self.lose = list(lose)
        self.held = set()
        self.requests = []
        self.gate = threading.Barrier(2, timeout=10)

    def send(self, files, stop):
        self.requests.append(files)
        self.held |= {file.sop_instance_uid for file in files if file not in self.lose}
        if len(self.requests) <= 2:
            self.gate.wait()
        else:
            self.lose.clear()
        series = files[0].series_instance_uid
        answer = vouch(files)
        return UploadAnswer(answer.files, (series,), {series: len(self.held)})


def test_a_loss_that_simultaneous_requests_hide_from_each_other_is_found_in_the_end():
    files = make("1.2", 20)
    service = Holding(lose=[files[0]])
    run = UploadRun(service.send, lambda: None, limit=10 * part_size(files[0]) + CLOSING_SIZE, parallel=2)

    run.run(files)

    report = run.report(Traffic())
    assert len(service.held) == 20
    assert set(report.acknowledged) == set(files)
    assert not report.failed


def test_a_series_that_stays_short_is_not_reported_as_acknowledged():
    files = make("1.2", 3)
    service = Service(lambda sent: UploadAnswer(vouch(sent).files, ("1.2",), {"1.2": 2}))

    doubted = []

    report = service.upload(
        files, per_request=2, on_doubted=lambda some: doubted.append((set(some), len(service.sent)))
    )

    assert not report.acknowledged
    assert len(report.failed) == 3
    assert len(service.sent) == 4
    assert doubted == [(set(files), 2), (set(files), 4)]
