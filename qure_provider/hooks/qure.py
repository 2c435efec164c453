"""The hook to the Qure.ai Platform API, for tasks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any

from airflow.sdk import BaseHook
from tenacity.nap import sleep_using_event

from qure_provider.api.answers import RawAnswer, parse_compute, parse_result, parse_upload
from qure_provider.api.errors import QureSettingsError
from qure_provider.api.model import ComputeAnswer, ResourceRef, ResultAnswer, ResultsVersion, UploadAnswer
from qure_provider.api.routes import UPLOAD_PATH, recompute_body
from qure_provider.hooks.check import PROBE, PROBE_TIMEOUT, check
from qure_provider.hooks.connection import QureConnection, verdict_of
from qure_provider.hooks.download import DownloadedFile, Downloader, ExpiredUrlError
from qure_provider.hooks.http import compute_url, redirect_within, results_url
from qure_provider.hooks.media import Media
from qure_provider.hooks.multipart import MultipartBody
from qure_provider.hooks.outgoing import OutgoingFile
from qure_provider.hooks.retry import retrying
from qure_provider.hooks.transport import Session, failures_named, read_at_most, refuse_inward
from qure_provider.hooks.upload import Traffic, UploadFailure, UploadReport, UploadRun, UploadStoppedError

__all__ = ["DownloadedFile", "ExpiredUrlError", "Media", "OutgoingFile", "QureHook", "UploadFailure", "UploadReport"]


class QureHook(BaseHook):
    """Talks to the Qure.ai Platform API.

    Every method raises only the three kinds of errors of ``qure_provider.api.errors`` for what happens between us and
    the service. What may pass is tried again a few times, for about a minute; after that the error is Airflow's to
    retry.

    A hook may be used in a ``with`` block, which closes its connections.

    Args:
        qure_conn_id: The Airflow connection, of type ``qure``.
        operator: Class name of the operator or sensor, for the User-Agent.
    """

    conn_name_attr = "qure_conn_id"
    default_conn_name = "qure_default"
    conn_type = "qure"
    hook_name = "Qure.ai"

    def __init__(self, qure_conn_id: str = default_conn_name, *, operator: str = "") -> None:
        super().__init__()
        self.qure_conn_id = qure_conn_id
        self._operator = operator
        self._session: Session | None = None
        self._anonymous: Session | None = None

    def __enter__(self) -> QureHook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections; using the hook again opens new ones."""
        for session in (self._session, self._anonymous):
            if session:
                session.close()
        self._session = self._anonymous = None

    @cached_property
    def connection(self) -> QureConnection:
        """The settings of its connection.

        Raises:
            QureSettingsError: A field is missing or wrong; the message names it.
        """
        return QureConnection.from_airflow(self.get_connection(self.qure_conn_id))

    def get_conn(self) -> Session:
        """Return the session that the hook uses, for requests that it has no method for.

        Returns:
            A pooled ``requests.Session`` with the connection's timeouts, TLS and proxies. It sends token and Source to
            the base URL's scheme, host and port, and to nobody else.
        """
        if self._session is None:
            self._session = Session(self.connection, operator=self._operator)
        return self._session

    def upload(
        self,
        files: Iterable[OutgoingFile],
        *,
        on_acknowledged: Callable[[Sequence[OutgoingFile]], None] | None = None,
        on_doubted: Callable[[Sequence[OutgoingFile]], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> UploadReport:
        """Send files, several requests at once, until each is acknowledged or has failed.

        Requests hold as many files as fit into ``max_request_bytes``, in their order. They are streamed: memory does
        not grow with the data, and no more than one file is open a request. One that the service rejects is divided by
        series, then by file. What an answer does not acknowledge is sent again, three times in all. If the service
        stays away, the rest is given up at once.

        Args:
            files: What to send. An iterator is asked for half a second, and for more while others are sent; what it
                was not asked for, since the service stays away, is in no part of the report.
            on_acknowledged: Called in the calling thread, after each answer, with what it acknowledged: record it
                there, and a later call needs to send only the rest. What it raises ends the upload.
            on_doubted: Called in the calling thread with what was acknowledged and is sent again, for the service says
                that it holds less of its series; before that, so that a later call sends it should this one end.
            should_stop: Asked in the calling thread about once a second; True breaks off what is under way.

        Returns:
            What became of each file. A file that could not be sent is in ``failed`` with its error, which is not
            raised.

        Raises:
            QureSettingsError: Token, Source, base URL or the like are wrong, which no file can get round. What was
                under way has ended before.
        """
        traffic = Traffic()
        self.get_conn()  # made here, not by several threads at once
        run = UploadRun(
            partial(self._send, traffic),
            self._probe,
            limit=self.connection.max_request_bytes,
            parallel=self.connection.parallel_uploads,
            on_acknowledged=on_acknowledged,
            on_doubted=on_doubted,
            should_stop=should_stop,
        )
        run.run(files)
        return run.report(traffic)

    def compute(self, series_instance_uid: str, *, recompute: bool = False) -> ComputeAnswer:
        """Ask for a CT series to be computed, once all of it is uploaded (docs.qure.ai, Initiate Computation).

        Args:
            series_instance_uid: Which.
            recompute: Whether it should be computed again where it was before. Its effect is not described by the
                vendor: a service that ignores it answers "already queued".

        Returns:
            Whether it was queued now, had been before, or is not uploaded (yet).

        Raises:
            QureSettingsError: Token, Source or base URL are wrong.
            QureTransientError: Try later.
            QureRejectedError: It would be refused again, or the UID cannot be one.
        """
        url = compute_url(self.connection, series_instance_uid)
        body = recompute_body(recompute)
        options = {} if body is None else {"json": body}
        return retrying("Compute")(lambda: parse_compute(self._ask("Compute", "GET", url, **options), **self._at_most))

    def result(self, ref: ResourceRef, *, tries: int | None = None) -> ResultAnswer:
        """Ask for a result.

        Args:
            ref: The image or series.
            tries: How often at most, where the service does not answer; None for as often as every request.

        Returns:
            What is known of it; that it is pending or not there is an answer, no error.

        Raises:
            QureSettingsError: Token, Source or base URL are wrong.
            QureTransientError: Try later.
            QureRejectedError: It would be refused again, or the UID cannot be one.
        """
        url = results_url(self.connection, ref)
        version = self.connection.xray_results
        return retrying("Results", tries=tries)(
            lambda: parse_result(self._ask("Results", "GET", url), ref.route, version, **self._at_most)
        )

    def download(self, url: str, target: Path) -> DownloadedFile:
        """Fetch one file of a result, whole or not at all.

        Args:
            url: As the result named it. It is asked for without our token; see ``Downloader``.
            target: Where it goes, without extension; its folder is made.

        Returns:
            The file, at the target's name with the extension of what its content is.

        Raises:
            ExpiredUrlError: The address is no longer good: ask for the result again.
            QureTransientError: It did not arrive whole.
            QureRejectedError: It is too large, or its address is one that we do not ask.
            QureSettingsError: The host's certificate does not verify, or a proxy wants credentials.
            OSError: It could not be written.
        """
        if self._anonymous is None:
            self._anonymous = Session(
                self.connection,
                operator=self._operator,
                with_credentials=False,
                check_address=refuse_inward(self.connection.base_url),
            )
        downloader = Downloader(self.connection, self._anonymous, self.get_conn())
        return retrying("Download", is_large=True)(downloader.fetch, url, target)

    def test_connection(self) -> tuple[bool, str]:
        """Say whether the service can be reached and takes token and Source, within 10 seconds.

        It asks for the result of a series that nobody has, which changes nothing.

        Returns:
            Whether all is well, and what is or what to set.
        """
        try:
            self.get_conn()
        except QureSettingsError as error:
            return verdict_of(error, self.qure_conn_id)
        return check(self._ask_probe)

    def _send(self, traffic: Traffic, files: Sequence[OutgoingFile], stop: threading.Event) -> UploadAnswer:
        def go_on() -> None:
            if stop.is_set():
                raise UploadStoppedError

        def send() -> UploadAnswer:
            go_on()
            body = MultipartBody(files, self.connection.upload_dialect, go_on)
            try:
                raw = self._ask(
                    "Upload",
                    "POST",
                    self.connection.url(UPLOAD_PATH),
                    data=body,
                    headers={"Content-Type": body.content_type},
                )
            finally:
                traffic.add(body.sent)
            return parse_upload(raw, **self._at_most)

        return retrying("Upload", is_large=True, sleep=sleep_using_event(stop))(send)

    def _probe(self) -> None:
        parse_result(self._ask_probe(), PROBE.route, ResultsVersion.V1, **self._at_most)

    def _ask_probe(self) -> RawAnswer:
        limits = zip(PROBE_TIMEOUT, (self.connection.connect_timeout, self.connection.read_timeout), strict=True)
        timeout = tuple(map(min, limits))
        return self._ask("Asking the service", "GET", results_url(self.connection, PROBE), timeout=timeout)

    @property
    def _at_most(self) -> dict[str, int]:
        return {"max_bytes": self.connection.max_answer_bytes}

    def _ask(self, what: str, method: str, url: str, **options: Any) -> RawAnswer:
        with failures_named(what):
            for _ in range(self.connection.max_redirects):
                raw, location = self._ask_once(method, url, options)
                target = redirect_within(url, method, raw.status, location)
                if target is None:
                    return raw
                url = target
            return self._ask_once(method, url, options)[0]

    def _ask_once(self, method: str, url: str, options: Mapping[str, Any]) -> tuple[RawAnswer, str | None]:
        with self.get_conn().request(method, url, stream=True, allow_redirects=False, **options) as response:
            headers = response.headers
            body = read_at_most(response, self.connection.max_answer_bytes)
            raw = RawAnswer(response.status_code, headers.get("Content-Type", ""), body, headers.get("Retry-After"))
            return raw, headers.get("Location")
