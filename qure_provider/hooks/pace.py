"""A ceiling on requests a second."""

from __future__ import annotations

import asyncio
import math
import time


class Pace:
    """Lets requests start one after the other, never closer than the ceiling allows, and so without bursts.

    Those that wait are let go in the order in which they came. For use in one event loop.

    Args:
        requests_per_second: The ceiling; it may be changed at any time.
    """

    def __init__(self, requests_per_second: float = 1.0) -> None:
        self.requests_per_second = requests_per_second
        self._last_start = -math.inf
        self._turn = asyncio.Lock()

    async def wait(self) -> None:
        """Return when the next request may start."""
        async with self._turn:
            await asyncio.sleep(self._last_start + 1 / self.requests_per_second - time.monotonic())
            self._last_start = time.monotonic()
