"""
Fingerprint files, so that a change of theirs is seen without reading them.
"""

import os
from collections.abc import Iterable

Fingerprint = dict[str, tuple[int, ...] | None]  # by path; None is a file that is not there


def take(paths: Iterable[str]) -> Fingerprint:
    """Fingerprint files as they are now."""
    return {path: _stat(path) for path in paths}


def _stat(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None  # what cannot be the name of a file is one that is not there
    # The inode and the time of its last change see also a file of the same size, dated back.
    place, times = (found.st_dev, found.st_ino), (found.st_mtime_ns, found.st_ctime_ns)
    return (*place, found.st_size, found.st_mode, *times)
