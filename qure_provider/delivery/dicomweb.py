"""An archive that takes STOW-RS as a destination."""

from __future__ import annotations

from functools import cached_property
from urllib.parse import urlsplit

from qure_provider.delivery.archives import ArchiveDestination
from qure_provider.hooks.connection import is_loopback
from qure_provider.hooks.dicomweb import DicomWebHook


class DicomWebDestination(ArchiveDestination):
    """An archive that takes STOW-RS.

    Args:
        name: The connection's id.
    """

    def __init__(self, name: str) -> None:
        self._hook = DicomWebHook(name)
        super().__init__(name, self._hook, self._hook.stow)

    @cached_property
    def is_loopback(self) -> bool:
        """Whether it is on this machine."""
        return is_loopback(urlsplit(self._hook.connection.web.base_url).hostname or "")

    def close(self) -> None:
        """Close its connections."""
        self._hook.close()
