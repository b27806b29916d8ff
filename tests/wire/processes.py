"""
What a process holds (memory, descriptors, sockets), read from Linux's /proc.

So nothing has to be asked of the program itself. A process that has just ended holds nothing.
"""

import ctypes
import multiprocessing
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.wire.forks import PR_SET_PDEATHSIG

ESTABLISHED, SYN_SENT, CLOSE_WAIT, LISTEN = "01", "02", "08", "0A"  # include/net/tcp_states.h


class Row(NamedTuple):
    """A row of the kernel's table of sockets, as it stands there: see proc_pid_net(5)."""

    local: str
    remote: str
    state: str
    timer: str
    inode: str  # 0 of a connection that nobody has accepted yet

    @property
    def port(self) -> int:
        """Our port."""
        return int(self.local.rpartition(":")[2], 16)

    @property
    def peer_port(self) -> int:
        """The port of the other end."""
        return int(self.remote.rpartition(":")[2], 16)

    @property
    def next_probe(self) -> float:
        """In how many seconds the kernel probes the connection; 0.0 if it does not."""
        kind, ticks = self.timer.split(":")
        return int(ticks, 16) / os.sysconf("SC_CLK_TCK") if kind == "02" else 0.0


def table(pid: int, protocol: str = "tcp") -> Iterator[Row]:
    """Give all sockets of a protocol in the network namespace of a process."""
    for name in (protocol, f"{protocol}6"):
        try:
            lines = Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue  # it has just ended, or there is no IPv6
        for _, local, remote, state, _, timer, _, _, _, inode, *_ in map(str.split, lines):
            yield Row(local, remote, state, timer, inode)


def sockets_of(pid: int, protocol: str = "tcp") -> list[Row]:
    """Give the sockets of a protocol that a process holds."""
    held = {link for _, link in descriptors_of(pid) if link.startswith("socket:")}
    # The kernel goes through all connections of the machine for that table, which is not for one that starts.
    return [row for row in table(pid, protocol) if f"socket:[{row.inode}]" in held] if held else []


def listening_ports(pid: int) -> set[int]:
    """Tell on which TCP ports a process listens, in whatever network namespace it lives."""
    return {row.port for row in sockets_of(pid) if row.state == LISTEN}


def listening_paths(pid: int) -> set[str]:
    """Tell at which Unix sockets a process listens (proc_pid_net(5))."""
    held = {link for _, link in descriptors_of(pid)}
    rows = (line.split(maxsplit=7) for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:])
    # A number, references, protocol, flags (__SO_ACCEPTCON), type, state, inode, and perhaps a path.
    return {row[7] for row in rows if len(row) == 8 and row[3] == "00010000" and f"socket:[{row[6]}]" in held}


def descriptors_of(pid: int) -> Iterator[tuple[str, str]]:
    """Give the open descriptors of a process: the path in /proc, and what the kernel says it is."""
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        try:
            yield f"{folder}/{name}", os.readlink(f"{folder}/{name}")
        except OSError:
            continue  # closed meanwhile


def memory_of(pid: int, name: str = "VmRSS") -> int:
    """Tell how much memory of a process is resident, in bytes; VmHWM tells the peak."""
    return 1024 * int(status_of(pid, name).removesuffix(" kB"))


def catches(pid: int, number: int) -> bool:
    """Tell whether a process has a handler for a signal."""
    return bool(int(status_of(pid, "SigCgt"), 16) >> (number - 1) & 1)


def status_of(pid: int, name: str) -> str:
    """Give a field of a process's status: see proc_pid_status(5)."""
    found = re.search(rf"^{name}:\s+(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return found[1]


class Memory:
    """The resident memory of a process, from a moment on."""

    def __init__(self, pid: int) -> None:
        forget = Path(f"/proc/{pid}/clear_refs")
        if not os.access(forget, os.W_OK):
            pytest.skip("the peak of a process's memory is told by Linux alone")
        forget.write_text("5")  # forget the peak
        self._pid = pid
        self._before = memory_of(pid)

    @property
    def growth(self) -> int:
        """By how many bytes its peak since then is above where it was."""
        return memory_of(self._pid, "VmHWM") - self._before


def end_with_parent() -> None:
    """Have the kernel end this process, a fork, when the thread that forked it ends, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent and os.getppid() != parent.pid:
        os._exit(1)  # it was too late
