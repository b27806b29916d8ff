"""
Tell, without reading them, whether files are what they were.
"""

import os
from collections.abc import Iterable

from proxy.config import ProxyConfig

Stamps = dict[str, tuple[int, ...] | None]  # of files, by their paths; None is one that is not there


def stamps(paths: Iterable[str]) -> Stamps:
    """Tell the present state of files from all others."""
    return {path: _stamp(path) for path in paths}


def _stamp(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (
        *(found.st_dev, found.st_ino, found.st_size, found.st_mode),
        *(found.st_mtime_ns, found.st_ctime_ns),
    )


def tls_files(config: ProxyConfig) -> list[str]:
    """List the TLS files that a configuration names."""
    named = [
        *(path for each in config.listeners for path in (each.tls_cert, each.tls_key)),
        *(each.tls_ca for each in config.upstreams),
    ]
    return sorted(set(filter(None, named)))
