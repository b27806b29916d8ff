"""
Fingerprint files, so that a change of theirs is seen without reading them.
"""

import os
from collections.abc import Iterable

from proxy.config import ProxyConfig
from proxy.configfile.syntax import Setting, read_value, scan

_KEYS = ("tls_cert", "tls_key", "tls_ca")

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


def tls_files(config: ProxyConfig) -> list[str]:
    """List the TLS files that a configuration names."""
    named = [
        *(path for each in config.listeners for path in (each.tls_cert, each.tls_key)),
        *(each.tls_ca for each in config.upstreams),
    ]
    return sorted(set(filter(None, named)))


def tls_files_in(text: str, folder: str) -> list[str]:
    """List those that a text in a folder names, which need not be a valid configuration."""
    # Of a large file, or one of another kind, these lines are few.
    lines = [line.removesuffix("\r") for line in text.split("\n") if "tls_" in line]
    found = (item for item in scan(lines) if isinstance(item, Setting) and item.key in _KEYS)
    named = set(filter(None, map(_value, found)))
    return sorted(os.path.join(folder, os.path.expanduser(name)) for name in named)


def _value(setting: Setting) -> str:
    try:
        return read_value(setting.raw).text
    except ValueError:
        return ""
