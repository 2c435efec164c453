"""Uploading many files: packed into requests, several at once, until each is acknowledged or has failed."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field

from qure_provider.api.errors import QureError, QureRejectedError, QureSettingsError, QureTransientError
from qure_provider.api.model import UploadAnswer
from qure_provider.background import in_background
from qure_provider.dicom.pack import pack_requests
from qure_provider.hooks.accounting import SeriesCount, take_account
from qure_provider.hooks.multipart import CLOSING_SIZE, OutgoingFileError, part_size
from qure_provider.hooks.outgoing import OutgoingFile

log = logging.getLogger(__name__)

MAX_SENDS = 3
"""How often a file is sent that the service does not acknowledge; the last time alone."""

_STOP_CHECK_SECONDS = 1.0
_HEAD_START_SECONDS = 0.5
"""For how long an iterator's files are prepared before the first is sent: each takes two or three times as long once
others send, which want the processor and Python's lock, too."""


class UploadStoppedError(Exception):
    """A request was broken off because the upload as a whole ends."""


@dataclass(frozen=True, slots=True)
class UploadFailure:
    """A file that the service did not acknowledge.

    Attributes:
        file: Which.
        error: Why.
    """

    file: OutgoingFile
    error: QureError


@dataclass(frozen=True, slots=True)
class UploadReport:
    """What became of each file: it is in exactly one of the first three.

    Attributes:
        acknowledged: The service has it.
        failed: It does not, and why. A file may be here although it was acknowledged in between, where the service's
            own counts contradicted it in the end.
        not_sent: Given up because ``should_stop`` said so.
        requests: Upload requests that were made, repeated ones included.
        bytes_sent: Bytes of their bodies.
        held: How many files of a series the service says that it holds, those of earlier uploads included. Whether it
            counts what one request brought or all that it holds is not stated anywhere, so there are only series here
            if some answer counted more than its request had brought.
    """

    acknowledged: tuple[OutgoingFile, ...] = ()
    failed: tuple[UploadFailure, ...] = ()
    not_sent: tuple[OutgoingFile, ...] = ()
    requests: int = 0
    bytes_sent: int = 0
    held: Mapping[str, int] = field(default_factory=dict)


class Traffic:
    """Counts requests and bytes, for all threads of an upload."""

    def __init__(self) -> None:
        self.requests = 0
        self.bytes_sent = 0
        self._lock = threading.Lock()

    def add(self, bytes_sent: int) -> None:
        """Count one request."""
        with self._lock:
            self.requests += 1
            self.bytes_sent += bytes_sent


Send = Callable[[Sequence[OutgoingFile], threading.Event], UploadAnswer]
"""Sends one request, tries again what may pass, and breaks off with ``UploadStoppedError`` when the event is set."""


class UploadRun:
    """One upload, from the first request to the report.

    Everything but the requests themselves happens in the thread that calls ``run``.

    A request that the service rejects or cannot cope with is divided by series, then by file, so that one bad item
    harms no other. Before a failure is put down to a request's content, the service is asked whether it answers at all.

    Args:
        send: Sends one request.
        probe: Asks the service something harmless; raises what stands in the way.
        limit: Bytes that the body of a request may have.
        parallel: Requests under way at once.
        on_acknowledged: Called with what an answer acknowledged, after each that did.
        on_doubted: Called with what was acknowledged and is sent again, before it is, or given up.
        should_stop: Asked about once a second; True breaks off what is under way.
    """

    def __init__(
        self,
        send: Send,
        probe: Callable[[], object],
        *,
        limit: int,
        parallel: int,
        on_acknowledged: Callable[[Sequence[OutgoingFile]], None] | None = None,
        on_doubted: Callable[[Sequence[OutgoingFile]], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        self._send = send
        self._probe = probe
        self._limit = limit
        self._parallel = parallel
        self._on_acknowledged = on_acknowledged or (lambda files: None)
        self._on_doubted = on_doubted or (lambda files: None)
        self._should_stop = should_stop or (lambda: False)
        self._waiting: deque[tuple[OutgoingFile, ...]] = deque()
        self._sends: defaultdict[OutgoingFile, int] = defaultdict(int)
        self._series: defaultdict[str, SeriesCount] = defaultdict(SeriesCount)
        self._acknowledged: dict[OutgoingFile, None] = {}
        self._failed: dict[OutgoingFile, QureError] = {}
        self._away: QureTransientError | None = None
        self._settings_error: QureSettingsError | None = None
        self._stop = threading.Event()
        self._coming: Iterator[OutgoingFile] = iter(())
        self._files: dict[OutgoingFile, None] = {}
        self._next: list[OutgoingFile] = []
        self._next_size = 0
        self._doubted: set[str] = set()
        self._next_stop_check = 0.0

    def run(self, files: Iterable[OutgoingFile]) -> None:
        """Upload files; ``report`` tells afterwards what became of them.

        Args:
            files: What to send, in order. An iterator is asked for half a second, then as requests have room, so that
                it can prepare files while others are sent; a sequence is accounted for whole, whatever was taken.

        Raises:
            QureSettingsError: Token, Source, base URL or the like are wrong. What was under way has ended and has been
                acknowledged where it was.
        """
        if isinstance(files, Sequence):
            self._files = dict.fromkeys(files)
            self._coming = iter(self._files)
        else:
            self._coming = iter(files)
            begins_at = time.monotonic() + _HEAD_START_SECONDS
            while time.monotonic() < begins_at and self._take_in():
                pass
        under_way: dict[Future[UploadAnswer], tuple[OutgoingFile, ...]] = {}
        try:
            while not self._is_stopped():
                while len(under_way) < self._parallel and not self._ends and self._has_next():
                    request = self._waiting.popleft()
                    under_way[self._begin(request)] = request
                if not under_way and (self._ends or not self._doubt_short_series()):
                    break
                if not self._ends:
                    self._has_next()  # prepared while others are sent
                for future in wait(under_way, _STOP_CHECK_SECONDS, FIRST_COMPLETED).done:
                    self._settle(under_way.pop(future), future)
        finally:
            self._stop.set()
        if self._settings_error:
            raise self._settings_error

    def report(self, traffic: Traffic) -> UploadReport:
        """Tell what became of each file.

        Args:
            traffic: What it took.

        Returns:
            The report.
        """
        left = [file for file in self._files if file not in self._acknowledged and file not in self._failed]
        if self._away:
            self._fail(left, self._away)
            left = []
        return UploadReport(
            acknowledged=tuple(self._acknowledged),
            failed=tuple(UploadFailure(file, error) for file, error in self._failed.items()),
            not_sent=tuple(left),
            requests=traffic.requests,
            bytes_sent=traffic.bytes_sent,
            held=self._held(),
        )

    def _held(self) -> dict[str, int]:
        if not any(known.is_of_all for known in self._series.values()):
            return {}
        return {uid: known.counted for uid, known in self._series.items() if known.counted}

    def _begin(self, request: tuple[OutgoingFile, ...]) -> Future[UploadAnswer]:
        return in_background(lambda: self._send(request, self._stop), "qure-upload")

    @property
    def _ends(self) -> bool:
        return self._settings_error is not None or self._away is not None

    def _is_stopped(self) -> bool:
        now = time.monotonic()
        if now >= self._next_stop_check:
            self._next_stop_check = now + _STOP_CHECK_SECONDS
            if self._should_stop():
                self._stop.set()
        return self._stop.is_set()

    def _has_next(self) -> bool:
        """Tell whether there is a request to send, and fill one if none is waiting."""
        while not self._waiting and self._take_in():
            pass
        return bool(self._waiting)

    def _take_in(self) -> bool:
        """Put one more file into the request that is being filled; tell whether there was one."""
        file = next(self._coming, None)
        size = 0 if file is None else part_size(file)
        if self._next and (file is None or self._next_size + size + CLOSING_SIZE > self._limit):
            self._waiting.append(tuple(self._next))
            self._next, self._next_size = [], 0
        if file is None:
            return False
        self._files[file] = None
        if size + CLOSING_SIZE > self._limit:
            self._fail_too_large(file)
        else:
            self._next.append(file)
            self._next_size += size
        return True

    def _queue(self, files: Iterable[OutgoingFile]) -> None:
        fitting: list[OutgoingFile] = []
        for file in files:
            if part_size(file) + CLOSING_SIZE <= self._limit:
                fitting.append(file)
            else:
                self._fail_too_large(file)
        self._waiting.extend(pack_requests(fitting, part_size, self._limit, CLOSING_SIZE))

    def _fail_too_large(self, file: OutgoingFile) -> None:
        self._fail([file], QureRejectedError(f"A file is too large for a request of {self._limit} bytes."))

    def _fail(self, files: Iterable[OutgoingFile], error: QureError) -> None:
        self._failed.update(dict.fromkeys(files, error))

    def _settle(self, files: tuple[OutgoingFile, ...], future: Future[UploadAnswer]) -> None:
        try:
            answer = future.result()
        except UploadStoppedError:
            return
        except OutgoingFileError as error:
            self._fail([error.file], error.error)
            self._queue(file for file in files if file != error.file)
        except QureSettingsError as error:
            self._settings_error = self._settings_error or error
        except QureRejectedError as error:
            self._divide(files, error)
        except QureTransientError as error:
            if self._is_away(error):
                self._fail(files, error)
            elif not self._ends:
                self._divide(files, error)
        else:
            self._take(files, answer)

    def _is_away(self, error: QureTransientError) -> bool:
        """Find out whether it is the service that fails, or just this request."""
        if self._ends:
            return self._away is not None
        if error.retry_after is not None:
            self._away = error
            return True
        try:
            self._probe()
        except QureSettingsError as settings_error:
            self._settings_error = settings_error
        except QureTransientError:
            self._away = error
        except QureRejectedError:
            pass
        return self._away is not None

    def _divide(self, files: tuple[OutgoingFile, ...], error: QureError) -> None:
        by_series: defaultdict[str, list[OutgoingFile]] = defaultdict(list)
        for file in files:
            by_series[file.series_instance_uid].append(file)
        if len(files) == 1:
            self._fail(files, error)
            return
        parts = by_series.values() if len(by_series) > 1 else ([file] for file in files)
        self._waiting.extend(tuple(part) for part in parts)
        log.warning("Upload request divided: files=%d series=%d reason=%s", len(files), len(by_series), error)

    def _take(self, files: tuple[OutgoingFile, ...], answer: UploadAnswer) -> None:
        account = take_account(files, answer, self._series)
        brought = Counter(file.series_instance_uid for file in files)
        for uid, count in answer.series_counts.items():
            if uid in brought:
                self._series[uid].note(count, brought[uid])
        acknowledged = [files[index] for index in account.acknowledged]
        for file in acknowledged:
            self._series[file.series_instance_uid].acknowledged += 1
            self._acknowledged[file] = None
        for index, error in account.refused.items():
            self._fail([files[index]], error)
        self._send_again([files[index] for index in account.unclear])
        if acknowledged:
            self._on_acknowledged(acknowledged)

    def _send_again(self, files: Sequence[OutgoingFile]) -> None:
        again: list[OutgoingFile] = []
        for file in files:
            self._sends[file] += 1
            if self._sends[file] >= MAX_SENDS:
                self._fail(
                    [file], QureTransientError(f"The service did not acknowledge a file, sent {MAX_SENDS} times.")
                )
            elif self._sends[file] == MAX_SENDS - 1:
                self._waiting.append((file,))
            else:
                again.append(file)
        self._queue(again)
        if files:
            log.warning("Upload not acknowledged: files=%d", len(files))

    def _doubt_short_series(self) -> bool:
        """Send series again that the service holds less of than it acknowledged; tell whether there is more to do.

        Requests that were under way at once can hide a loss from each other's counts.
        """
        for uid, known in self._series.items():
            if not known.is_short:
                continue
            files = [file for file in self._acknowledged if file.series_instance_uid == uid]
            self._on_doubted(files)
            for file in files:
                del self._acknowledged[file]
            known.acknowledged = 0
            if uid in self._doubted:
                self._fail(files, QureTransientError("The service holds fewer files of a series than it acknowledged."))
                continue
            self._doubted.add(uid)
            log.warning("Series held in part, sent again: files=%d", len(files))
            self._queue(files)
        return bool(self._waiting)
