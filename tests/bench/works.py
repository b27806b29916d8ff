"""
The works: what is asked of each contender, and what is read from it meanwhile.

Its columns say how the figures of a work are shown.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tests.bench import load, meter
from tests.bench.contenders import Running, running
from tests.bench.load import Crew
from tests.bench.measuring import (
    Length,
    Sample,
    Span,
    differences,
    latency,
    percentile,
    settle,
    span,
    spent,
    started,
)
from tests.integration.longwire import Law

MIB = 1 << 20
GIB = 1 << 30
# Seconds: a closed connection holds its port for a minute, and there are only 28,000 of them.
VISITING = 0.5
# A quarter of a second is over before a garbage collector has done any of its work: in the first tenth
# v2ray's round trips through TLS take two thirds of what they take later, and ours as much as later. And of
# short connections those under way at the end, which are not counted, would be a tenth of the slowest
# contender's.
LONGER = 2.5


@dataclass(frozen=True)
class Column:
    """How one figure is shown, and whether ours is compared with that of the others."""

    figure: str
    heading: str
    scale: float = 1.0
    ratio: str = ""


@dataclass(frozen=True)
class Work:
    """One thing that is measured."""

    title: str
    columns: Sequence[Column]
    measure: Callable[[Running, Length], Sample]
    contenders: Sequence[str]
    law: Law | None = None  # of the long wire between the two ends; without one all is on the loopback
    length: Length | None = None  # where it has one of its own
    weight: float = 1.0  # else by how much it takes longer than others
    rounds: int = 99  # at most: how often it has to be done to know
    warm_ups: int = 0  # rounds that are not counted
    overhead: float = 0.2  # seconds before and after each measurement, on a machine that does nothing else
    each: float = 0.0  # seconds for each idle connection


def pairs(connections: int) -> int:
    """Tell in how many pairs of processes the load is spread: one for two cores."""
    return min(connections, max(1, (os.cpu_count() or 1) // 2))


def bulk(contender: Running, length: Length, upload: bool, streams: int) -> Sample:
    """Move bytes as fast as they go."""
    near, far = (load.pour, load.drain) if upload else (load.drain, load.pour)
    crew = Crew(contender, near, far, streams, pairs(streams))
    with started(contender, crew) as crews:
        seen = span(contender, crews, length)
    moved = seen.done(crew.far if upload else crew.near)
    return {**rate(seen, moved), **seen.effort()}


def round_trips(contender: Running, length: Length, connections: int) -> Sample:
    """Send 64 bytes there and back, on each connection again as soon as they are back."""
    crew = Crew(contender, load.ask, load.answer, connections, pairs(connections))
    return pieces(contender, length, crew)


def one_core(contender: Running, length: Length) -> Sample:
    """
    Make round trips on one connection, with everybody on one core.

    Nothing can be done at the same time here, so this takes nothing away. On several cores each step
    wakes one up, which may take longer than all the rest, above all in a virtual machine.
    """
    core = max(os.sched_getaffinity(0))
    with pinned(contender, {core}, {core}):
        return round_trips(contender, length, 1)


def busy_visits(contender: Running, length: Length) -> Sample:
    """
    Make short connections to programs that share one core, while the load has the other.

    So however many processes there are, they are busy all the time, and each does as much in a turn of its
    loop as it can: what a connection costs with several processes and with one can be compared.
    """
    load_core, *_, core = sorted(os.sched_getaffinity(0))
    with pinned(contender, {load_core}, {core}):
        return visits(contender, length)


@contextmanager
def pinned(contender: Running, load_cores: set[int], cores: set[int]) -> Iterator[None]:
    """Have the load, and the programs of a contender, run on some cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, load_cores)  # the load inherits it
    try:
        meter.pin(contender.sessions, cores)
        yield
    finally:
        meter.pin(contender.sessions, before)
        os.sched_setaffinity(0, before)


def visits(contender: Running, length: Length) -> Sample:
    """
    Connect, send a byte each way, close: 32 at a time.

    Some programs put off a part of what a connection costs until seconds after its end. It is counted:
    the CPU time is that of all connections, from the first one until there is nothing left to do.
    """
    length = replace(length, seconds=min(length.seconds, VISITING))
    before = spent(contender)
    crew = Crew(contender, load.visit, load.welcome, 32, pairs(32))
    sample = pieces(contender, length, crew)
    settle(contender, quiet=0.3, patience=6.0)
    done = sum(each.tally.count[0] for each in crew.near)
    return {**sample, "cpu": (spent(contender) - before) / done if done else math.nan}


def first_bytes(contender: Running, length: Length, clients: int) -> Sample:
    """Have clients connect at the same time, and see when each gets the first byte of an echo."""
    crew = Crew(contender, load.visit_together, load.welcome, clients)
    with started(contender, crew):
        (near,) = crew.near
        taken = sorted(near.tally.since(0, near.tally.count[0]))
    return {"p50": percentile(taken, 0.50), "last": taken[-1] / 1e9}


def page(contender: Running, length: Length) -> Sample:
    """Ask for a page on an open connection, and see when its first byte is there, and all of it."""
    crew = Crew(contender, load.read_page, load.give_page, 1)
    with started(contender, crew):
        first, last = crew.near[0].tally.since(0, 2)
    return {"first": first / 1e9, "last": last / 1e9}


def pieces(contender: Running, length: Length, crew: Crew) -> Sample:
    """Measure work that comes in pieces."""
    with started(contender, crew) as crews:
        seen = span(contender, crews, length)
    return {**rate(seen, seen.done(crew.near)), **latency(seen.times(crew)), **seen.effort()}


def rate(seen: Span, done: int) -> Sample:
    """Give what was done in a second, and what one of it cost the programs."""
    return {"rate": done / seen.seconds, "cpu": sum(seen.programs) / done if done else math.nan}


def idle(contender: Running, length: Length) -> Sample:
    """
    Hold connections that do nothing, through a fresh program.

    The first few connections make a program load what it needs for any: they are not counted.
    """
    if not contender.sessions:
        return {}
    with running(contender.name) as fresh:
        before = [meter.resident(session) for session in fresh.sessions]
        with started(fresh, holding(fresh, 32)):
            few = [meter.memory(session) for session in fresh.sessions]
            with started(fresh, holding(fresh, length.idle)):
                many = [meter.memory(session) for session in fresh.sessions]
    each = [grown / length.idle for grown in differences(few, many)]
    return {
        "before": max(before),
        "each": sum(each),
        "each, entry": each[0] if len(each) > 1 else math.nan,
        "each, exit": each[-1] if len(each) > 1 else math.nan,
    }


def holding(contender: Running, count: int) -> Crew:
    """Hold connections through a contender; those of OpenSSL alone lead nowhere."""
    near, far = (load.call, load.wait) if contender.name == "openssl" else (load.hold, load.hold)
    return Crew(contender, near, far, count)


def under_bulk(contender: Running, length: Length) -> Sample:
    """Make round trips and connections beside eight streams that take all they can get."""
    bulks = [Crew(contender, load.drain, load.pour, 4), Crew(contender, load.pour, load.drain, 4)]
    small = Crew(contender, load.ask_slowly, load.answer, 1)
    new = Crew(contender, load.visit_slowly, load.welcome, 1)
    with started(contender, *bulks, small, new) as crews:
        seen = span(contender, crews, length)
    moved = seen.done([*bulks[0].near, *bulks[1].far])
    return {
        **rate(seen, moved),
        **latency(seen.times(small)),
        **latency(seen.times(new), "handshake "),
        **seen.effort(),
    }


RATE_OF_BULK = Column("rate", "MiB/s", 1 / MIB, "rate")
CORES = Column("cores", "cores")
BULK = [RATE_OF_BULK, Column("cpu", "CPU-s/GiB", GIB, "CPU"), CORES]
PIECES = [
    Column("rate", "per second", 1, "rate"),
    Column("cpu", "CPU µs each", 1e6, "CPU"),
    CORES,
    Column("p50", "p50 µs", 1e6, "p50"),
    Column("p99", "p99 µs", 1e6),
]
IDLE = [
    Column("before", "MiB before the first", 1 / MIB),
    Column("each", "KiB each", 1 / 1024, "memory"),
    Column("each, entry", "at the entry", 1 / 1024),
    Column("each, exit", "at the exit", 1 / 1024),
]
UNDER_BULK = [
    RATE_OF_BULK,
    CORES,
    Column("p50", "p50 ms", 1e3),
    Column("p99", "p99 ms", 1e3, "p99"),
    Column("handshake p50", "new p50 ms", 1e3),
    Column("handshake p99", "new p99 ms", 1e3, "new p99"),
]

FIRST_BYTES = [Column("p50", "p50 ms", 1e3, "p50"), Column("last", "the last ms", 1e3, "the last")]
PAGE = [Column("first", "first byte ms", 1e3, "first byte"), Column("last", "all of it ms", 1e3, "all")]
WIRE_BULK = [
    Column("rate", "Mbit/s", 8e-6, "rate"),
    Column("cpu", "CPU-s/GiB", GIB, "CPU"),
    CORES,
]

TLS = ["chain-tls", "chain-tls-before", "v2ray-tls"]
PLAIN = ["none", "ours", "microsocks", "dante", "pproxy", "chain", "v2ray"]
PLAIN += ["ours-copying", "chain-copying", "ours-before", "chain-before"]
NEAR = [*PLAIN, *TLS]
SPREAD = ["ours-workers", "chain-tls-workers"]  # a process for each core
FAR = ["none", "chain-tls", "chain-socks", "v2ray-tls", "v2ray-mux", "ssh"]
FAR += ["chain-tls-before", "chain-socks-before"]
FAR_OURS = ["none", "chain-tls", "chain-tls-before"]

LONG = Law(delay=0.025)
SLOW = replace(LONG, rate=250e3)
LONG_BULK = replace(LONG, rate=25e6)
LOSSY_BULK = replace(LONG_BULK, loss=0.001)
# A stream reaches 200 Mbit/s within a second of its beginning, and then goes through its phases.
STEADY = Length(seconds=1.4, warm_up=1.2, idle=0)
ONCE = Length(seconds=0, warm_up=0, idle=0)


def far_bulk(how: str, law: Law, contenders: Sequence[str], upload: bool) -> Work:
    """Describe bulk over the long wire."""
    title = f"50 ms away: bulk {how}"
    return Work(
        title, WIRE_BULK, lambda c, n: bulk(c, n, upload, 1), contenders, law=law, length=STEADY, rounds=3
    )


def far_visits(who: str, clients: int) -> Work:
    """Describe connections over the long wire; the first round finds out what holds once all is in use."""
    title = f"50 ms away: first byte of an echo, {who}"
    return Work(
        title, FIRST_BYTES, lambda c, n: first_bytes(c, n, clients), FAR, law=LONG, length=ONCE, warm_ups=1
    )


WORKS: dict[str, Work] = {
    "down-1": Work("Bulk download, 1 stream", BULK, lambda c, n: bulk(c, n, False, 1), NEAR),
    "down-4": Work("Bulk download, 4 streams", BULK, lambda c, n: bulk(c, n, False, 4), [*TLS, *SPREAD[1:]]),
    "down-16": Work("Bulk download, 16 streams", BULK, lambda c, n: bulk(c, n, False, 16), PLAIN),
    "up-1": Work("Bulk upload, 1 stream", BULK, lambda c, n: bulk(c, n, True, 1), NEAR),
    "up-4": Work("Bulk upload, 4 streams", BULK, lambda c, n: bulk(c, n, True, 4), TLS),
    "up-16": Work("Bulk upload, 16 streams", BULK, lambda c, n: bulk(c, n, True, 16), PLAIN),
    "trips-1": Work("64-byte round trips, 1 connection", PIECES, lambda c, n: round_trips(c, n, 1), NEAR),
    "trips-1-core": Work("64-byte round trips, 1 connection, all on one core", PIECES, one_core, NEAR),
    "trips-64": Work(
        "64-byte round trips, 64 connections",
        PIECES,
        lambda c, n: round_trips(c, n, 64),
        NEAR,
        weight=LONGER,
    ),
    "short": Work(
        "Short connections, 32 at a time",
        PIECES,
        visits,
        [*NEAR, *SPREAD],
        weight=LONGER,
        overhead=0.9,
    ),
    "busy": Work(
        "Short connections, the programs on one core and the load on another",
        PIECES,
        busy_visits,
        ["ours", SPREAD[0]],
        weight=LONGER,
        overhead=0.9,
    ),
    "idle": Work("Idle connections", IDLE, idle, [*NEAR, "openssl"], rounds=2, overhead=1.2, each=0.003),
    "under-bulk": Work("Latency beside 4 downloads and 4 uploads", UNDER_BULK, under_bulk, NEAR),
    "first-1": far_visits("1 client", 1),
    "first-8": far_visits("8 clients at once", 8),
    "far-page": Work(
        "50 ms away: a page of 64 KiB at 2 Mbit/s", PAGE, page, FAR, law=SLOW, length=ONCE, rounds=3
    ),
    "far-down": far_bulk("download at 200 Mbit/s", LONG_BULK, [*FAR_OURS, "v2ray-tls", "ssh"], upload=False),
    "far-up": far_bulk("upload at 200 Mbit/s", LONG_BULK, FAR_OURS, upload=True),
    "far-down-lossy": far_bulk(
        "download at 200 Mbit/s, 0.1 % of the packets lost", LOSSY_BULK, FAR_OURS, upload=False
    ),
    "far-up-lossy": far_bulk(
        "upload at 200 Mbit/s, 0.1 % of the packets lost", LOSSY_BULK, FAR_OURS, upload=True
    ),
}
QUICK = [
    name for name in WORKS if not name.startswith("far-") and not name.endswith(("-16", "-core", "busy"))
]
