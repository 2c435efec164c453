"""Fetching one file of a result: whole or not at all, known by its content, without showing our token around."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

import requests

from qure_provider.api.errors import QureRejectedError, QureTransientError
from qure_provider.api.statuses import Step, error_for_status, rule_for
from qure_provider.hooks.connection import QureConnection, origin
from qure_provider.hooks.http import REDIRECTS
from qure_provider.hooks.media import HEAD, Media, sniff
from qure_provider.hooks.transport import failures_named

_BLOCK = 256 * 1024
_WANTS_TOKEN = frozenset({401, 403})
_ADDRESS_GONE = rule_for(Step.DOWNLOAD, 410)


class ExpiredUrlError(QureTransientError):
    """A file's address is no longer good: ask for the result again, which brings fresh ones.

    How long an address is good for is not stated anywhere; the vendor's older pages call them pre-signed.
    """


@dataclass(frozen=True, slots=True)
class DownloadedFile:
    """A file that arrived whole.

    Attributes:
        path: Where it lies, with the extension of its kind.
        size: In bytes.
        sha256: Of its content, in hexadecimal.
        media: Its kind, told by its content.
    """

    path: Path
    size: int
    sha256: str
    media: Media


class Downloader:
    """Fetches the files that results name.

    Whether an address wants the token is not stated anywhere, and a pre-signed one refuses it. So each is asked for
    without it; only where the service's own origin answers 401 or 403 it is asked once more with it.

    Args:
        connection: Of the service.
        anonymous: A session without credentials.
        authorized: A session that shows them to the service's origin alone.
    """

    def __init__(self, connection: QureConnection, anonymous: requests.Session, authorized: requests.Session) -> None:
        self._connection = connection
        self._anonymous = anonymous
        self._authorized = authorized
        self._origin = origin(connection.base_url)

    def fetch(self, url: str, target: Path) -> DownloadedFile:
        """Fetch one file.

        Args:
            url: Where it is.
            target: Where it goes, without extension; its folder is made. While it arrives it has a temporary name
                beside it.

        Returns:
            The file, at the target's name with the extension of its kind.

        Raises:
            ExpiredUrlError: The address is no longer good.
            QureTransientError: It did not arrive whole; try again.
            QureRejectedError: It is too large, or its address is one that we do not ask.
            QureSettingsError: The host's certificate does not verify, or a proxy wants credentials.
            OSError: It could not be written.
        """
        with failures_named("Download"):
            response = self._get(self._anonymous, url)
            if response.status_code in _WANTS_TOKEN and origin(response.url) == self._origin:
                response.close()
                response = self._get(self._authorized, url)
            with response:
                _raise_error(response)
                self._check_length(response)
                return self._save(response, target)

    def _get(self, session: requests.Session, url: str) -> requests.Response:
        most = self._connection.max_redirects
        for _ in range(most + 1):
            self._check_url(url)
            response = session.get(
                url, stream=True, allow_redirects=False, headers={"Accept": "*/*", "Accept-Encoding": "identity"}
            )
            location = response.headers.get("Location")
            if response.status_code not in REDIRECTS or not location:
                return response
            response.close()
            try:
                url = urljoin(url, location)
            except ValueError:
                url = ""
        raise QureRejectedError(f"Download was sent elsewhere more than {most} times, so it was given up.")

    def _check_url(self, url: str) -> None:
        try:
            scheme = origin(url)[0]
        except ValueError:
            raise QureRejectedError("Download refused: the address is not an http or https one.") from None
        if scheme != "https" and self._origin[0] == "https":
            raise QureRejectedError("Download refused: the address has no TLS although the service's own has.")

    def _check_length(self, response: requests.Response) -> None:
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) > self._connection.max_asset_bytes:
            raise self._too_large()

    def _too_large(self) -> QureRejectedError:
        return QureRejectedError(
            f"Download refused: the file is larger than {self._connection.max_asset_bytes} bytes. If it should be "
            "taken, raise max_asset_bytes in the connection."
        )

    def _save(self, response: requests.Response, target: Path) -> DownloadedFile:
        digest, size, head = hashlib.sha256(), 0, b""
        with _whole_or_nothing(target) as partial:
            with partial.open("xb") as file:
                for chunk in response.iter_content(_BLOCK):
                    size += len(chunk)
                    if size > self._connection.max_asset_bytes:
                        raise self._too_large()
                    head = (head + chunk)[:HEAD] if len(head) < HEAD else head
                    digest.update(chunk)
                    file.write(chunk)
            media = sniff(head)
            if not size or media is Media.HTML:
                problem = "an HTML page, a proxy's perhaps," if size else "an empty file"
                raise QureTransientError(f"Download brought {problem} instead of a file of the result.")
            path = target.with_name(target.name + media.extension)
            partial.replace(path)
        return DownloadedFile(path, size, digest.hexdigest(), media)


def _raise_error(response: requests.Response) -> None:
    status = response.status_code
    error = error_for_status(Step.DOWNLOAD, status, response.headers.get("Retry-After"))
    if error and rule_for(Step.DOWNLOAD, status) == _ADDRESS_GONE:
        raise ExpiredUrlError(str(error))
    if error:
        raise error


@contextmanager
def _whole_or_nothing(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)
