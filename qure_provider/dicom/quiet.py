"""Keeping pydicom quiet: its warnings quote what a header says."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0
_caught = warnings.catch_warnings()


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silences pydicom, in several threads at once too.

    Python keeps its warnings' filters for the whole process: the first thread to come in sets them, the last to go
    puts them back.
    """
    global _inside, _caught
    with _lock:
        if not _inside:
            _caught = warnings.catch_warnings(action="ignore")
            _caught.__enter__()
            logging.getLogger("pydicom").addFilter(_nothing)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                logging.getLogger("pydicom").removeFilter(_nothing)
                _caught.__exit__(None, None, None)


def _nothing(_: logging.LogRecord) -> bool:
    return False
