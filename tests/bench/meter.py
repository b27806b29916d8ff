"""
What a program costs, in CPU time and memory, with all the processes that it started.

The kernel keeps a clock for each process that counts nanoseconds and the threads that have ended too;
the ticks in /proc are too coarse for work that takes a second. Of processes that have ended and were
waited for only the ticks are left, in their parent.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds

# Fields of /proc/PID/stat behind the name (proc_pid_stat(5)), which may itself hold anything.
SESSION = 3
TIMES_OF_CHILDREN = slice(13, 15)


def cpu(session: int) -> float:
    """Give the CPU seconds that the processes of a session have used."""
    return sum(clock(pid) + sum(ended) * TICK for pid, ended in processes(session))


def clock(pid: int | None) -> float:
    """Give the CPU seconds of one living process, with all its threads."""
    if pid is None:
        return 0.0
    try:
        # clock_getcpuclockid(3) for another process, which the time module does not have.
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0  # it has just ended


def processes(session: int) -> Iterator[tuple[int, list[int]]]:
    """Find the processes of a session, and the ticks that the ended children of each have used."""
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[SESSION]) == session:
            yield int(name), [int(ticks) for ticks in fields[TIMES_OF_CHILDREN]]


def pin(sessions: Iterable[int], cores: set[int]) -> None:
    """Let sessions run on some cores only."""
    for pid in (pid for session in sessions for pid, _ in processes(session)):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), cores)


def memory(session: int) -> float:
    """
    Give the bytes that a session has written; what processes share is divided among them (PSS).

    Pages of files are left out: a session's part of libc falls whenever some other program starts.
    """
    return _rollup(session, ("Pss_Anon:", "Pss_Shmem:"))


def resident(session: int) -> float:
    """Give the bytes that a session would use alone: what its processes share with others is its own, too."""
    return _rollup(session, ("Rss:",))


def _rollup(session: int, kinds: tuple[str, ...]) -> float:
    total = 0
    for pid, _ in processes(session):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(kinds))
    return float(total)


def machine() -> float:
    """Give the CPU seconds that all cores together were busy since the system started."""
    user, nice, system, _idle, _waiting, irq, softirq = map(
        int, Path("/proc/stat").read_text().split(None, 8)[1:8]
    )
    return (user + nice + system + irq + softirq) * TICK
