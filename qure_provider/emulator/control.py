"""A client of the control API, for tests and the demo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import requests
from pydantic import TypeAdapter

from qure_provider.emulator.model import AnyFault, Kind, Plan, ReceivedFile, RequestRecord, ResourceState

if TYPE_CHECKING:
    from types import TracebackType

_FAULTS: TypeAdapter[list[AnyFault]] = TypeAdapter(list[AnyFault])
_REQUESTS = TypeAdapter(list[RequestRecord])
_RECEIVED = TypeAdapter(list[ReceivedFile])
_RESOURCES = TypeAdapter(list[ResourceState])


class EmulatorControl:
    """Plans results, switches faults on, and tells what was seen. Any error of the control API raises.

    Args:
        base_url: The emulator's base URL, on this machine.
        verify: Whether its certificate is checked, or a path of a CA bundle.
    """

    def __init__(self, base_url: str, *, verify: bool | str = True) -> None:
        self._root = f"{base_url.rstrip('/')}/_emulator"
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Connection"] = "close"  # one that is kept may just be closed by the other side
        self._session.verify = verify

    def __enter__(self) -> EmulatorControl:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._session.close()

    def configure(self, **settings: Any) -> None:
        """Change settings of the running emulator.

        Args:
            **settings: Fields of ``EmulatorSettings``, all but host, port and storage.
        """
        self._ask("PATCH", "settings", json=settings)

    def plan(self, uid: str, plan: Plan | None = None, **fields: Any) -> None:
        """Plan what becomes of a resource, or of all of a series or study; it may be planned before it is uploaded.

        It replaces what was planned for this UID. Of several plans that fit, the most exact UID's is taken whole.

        Args:
            uid: SOPInstanceUID (X-ray), SeriesInstanceUID or StudyInstanceUID.
            plan: The plan.
            **fields: Or else its fields.
        """
        self._ask("PUT", f"plans/{uid}", json=(plan or Plan(**fields)).model_dump(mode="json"))

    def clear_plans(self) -> None:
        """Drop every plan."""
        self._ask("DELETE", "plans")

    def inject(self, fault: AnyFault) -> None:
        """Switch a fault on for the next requests that it fits.

        Args:
            fault: The fault.
        """
        self._ask("POST", "faults", json=fault.model_dump(mode="json"))

    def pending_faults(self) -> list[AnyFault]:
        """List the faults that are still on, oldest first, with the times left of each."""
        return _FAULTS.validate_python(self._ask("GET", "faults"))

    def clear_faults(self) -> None:
        """Switch every fault off."""
        self._ask("DELETE", "faults")

    def requests(self, kind: Kind | str | None = None, uid: str | None = None) -> list[RequestRecord]:
        """List the newest requests (up to 200,000), in the order in which they ended.

        Args:
            kind: Only this kind.
            uid: Only about this UID.

        Returns:
            The requests.
        """
        return _REQUESTS.validate_python(self._ask("GET", "requests", params={"kind": kind, "uid": uid}))

    def count(self, kind: Kind | str, *, status: int | None = None, uid: str | None = None) -> int:
        """Count requests.

        Args:
            kind: Their kind.
            status: Only with this status; 0 for those that were not answered.
            uid: Only about this UID.

        Returns:
            How many there were.
        """
        return int(self._ask("GET", "count", params={"kind": kind, "status": status, "uid": uid}))

    def peaks(self) -> dict[str, int]:
        """Tell how many requests of each kind were under way at once, at most."""
        peaks: dict[str, int] = self._ask("GET", "peaks")
        return peaks

    def forget_requests(self) -> None:
        """Start counting afresh."""
        self._ask("DELETE", "requests")

    def received(self, uid: str | None = None) -> list[ReceivedFile]:
        """List the files received, in order of arrival.

        Args:
            uid: Only those of this study, series or image.

        Returns:
            The files.
        """
        return _RECEIVED.validate_python(self._ask("GET", "received", params={"uid": uid}))

    def resources(self, uid: str | None = None) -> list[ResourceState]:
        """List what results exist or will exist for, as they are now.

        Args:
            uid: Only those of this study, series or image.

        Returns:
            The resources.
        """
        return _RESOURCES.validate_python(self._ask("GET", "resources", params={"uid": uid}))

    def forget_everything(self) -> None:
        """Start afresh: nothing held, planned, switched on or noted. Settings stay."""
        self._ask("DELETE", "everything")

    def _ask(self, method: str, path: str, **arguments: Any) -> Any:
        response = self._session.request(method, f"{self._root}/{path}", timeout=30, **arguments)
        if not response.ok:
            raise ValueError(f"The emulator's control API refused {method} {path}: {response.text}")
        return response.json() if response.content else None
