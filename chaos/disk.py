"""A disk that is soon full: a small file system of its own, which ends with this process."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos.place import NotPossibleError

_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS


@contextmanager
def small_disk(folder: Path, *, kilobytes: int) -> Iterator[Callable[[int], None]]:
    """Put a small file system in a folder's place, seen by this thread and those that it starts.

    Args:
        folder: The folder.
        kilobytes: Its size.

    Yields:
        What makes it larger: to so many kilobytes.

    Raises:
        NotPossibleError: The machine does not allow it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0 or ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS):
        raise NotPossibleError("mounting a small file system needs root's rights")
    _mount("--make-rprivate", "/")
    _mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder))
    try:
        yield lambda size: _mount("-o", f"remount,size={size}k", str(folder))
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)  # noqa: S607
    if done.returncode:
        raise NotPossibleError(f"the small file system cannot be mounted: {done.stderr.strip()}")
