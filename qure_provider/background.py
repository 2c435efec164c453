"""Work in a thread that keeps no process alive: what hangs must not keep a task from its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_background(call: Callable[[], T], name: str) -> Future[T]:
    """Begin something in a thread of its own, a daemon, which the pools of ``concurrent.futures`` do not have.

    Args:
        call: What is done.
        name: Of the thread.

    Returns:
        What comes of it.
    """
    future: Future[T] = Future()

    future.set_running_or_notify_cancel()  # who waits may give up; what was begun goes on

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
