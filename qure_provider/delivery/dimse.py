"""A PACS that takes C-STORE as a destination."""

from __future__ import annotations

from functools import cached_property

from qure_provider.delivery.archives import ArchiveDestination
from qure_provider.hooks.connection import is_loopback
from qure_provider.hooks.dicom import DicomHook


class DicomDestination(ArchiveDestination):
    """An archive that takes C-STORE.

    Args:
        name: The connection's id.
    """

    lanes = 1  # its associations run side by side, as many as the connection says

    def __init__(self, name: str) -> None:
        self._hook = DicomHook(name)
        super().__init__(name, self._hook, self._hook.store)

    @cached_property
    def is_loopback(self) -> bool:
        """Whether it is on this machine."""
        return is_loopback(self._hook.connection.host)
