"""What the system gives, and what happens at its end; the system is scripted here."""

import errno
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket

from proxy.address import Address, Endpoint
from proxy.errors import DialError, Failure, LimitError
from proxy.listening.listen import Acceptor
from proxy.listening.opening import bind
from proxy.listening.pool import Job, Pool
from proxy.net import dial as dial_module
from proxy.net import limits
from proxy.net import lookup as lookup_module
from proxy.net.deadline import Deadline
from proxy.net.dial import dial
from proxy.net.limits import FOR_FILES, RESERVE, raise_limit
from proxy.net.lookup import look_up
from proxy.net.sock import LoopSocket
from proxy.net.threads import NativeThreads
from tests.integration.programs import REPOSITORY
from tests.wire.greenlets import PATIENCE, patience, until

INFINITY = resource.RLIM_INFINITY
MILLION = 1 << 20


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """End what blocks."""
    with patience():
        yield


def told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """List what was said of a shortage, or of accepting."""
    return [each for each in caplog.records if each.name in ("proxy.net.limits", "proxy.listening.listen")]


# -- the limit


@pytest.mark.parametrize(
    ("soft", "hard", "needed", "raised_to"),
    [
        (256, 20000, 300, 20000),  # all that may be had, and not only what was counted
        (256, 20000, 200, 20000),
        (256, 20000, 30000, 20000),
        (4096, 4096, 5000, 4096),
        (1024, INFINITY, 5000, MILLION),
        (1024, 10**9, 5000, MILLION),
        (1024, 10**9, 2 * MILLION, 2 * MILLION),
        (10**9, 10**9, 5000, 10**9),
    ],
)
def test_the_soft_limit_is_raised_to_what_the_hard_one_allows(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, needed: int, raised_to: int
) -> None:
    """Case 341."""
    now = [soft, hard]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(now))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: now.__setitem__(slice(None), both))
    assert raise_limit(needed) == raised_to
    assert now == [raised_to, hard]


def test_where_a_sandbox_does_not_tell_limits_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def getrlimit(what: int) -> tuple[int, int]:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(resource, "getrlimit", getrlimit)
    assert limits.raise_limit(1000) >= 1000
    assert "raise the limit (ulimit -n" in str(
        limits.untold_shortage("a file", OSError(errno.EMFILE, "none"))
    )


def test_where_the_kernel_allows_less_than_the_hard_limit_the_need_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """macOS: no hard limit, and an error for more than the kernel has."""
    now = [256, INFINITY]

    def set_limit(_: int, both: tuple[int, int]) -> None:
        if both[0] > 10240:
            raise ValueError("current limit exceeds maximum limit")
        now[:] = both

    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(now))
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    assert raise_limit(5000) == 5000


# -- accepting


class Door:
    """An acceptor, to which the kernel says what a test wants before it accepts."""

    def __init__(self) -> None:
        self.errors: list[int] = []
        self.is_full = False  # but for what is spent of the reserve
        self.pool = Pool(10)
        (sock,) = bind(Endpoint("tcp", "127.0.0.1", 0))
        self.address = sock.getsockname()
        self.acceptor = Acceptor(sock, self._serve, self.pool)
        self.acceptor.start()
        self._listening: Any = self.acceptor.socket
        self.acceptor.socket = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listening, name)

    def _serve(self, client: LoopSocket, _: object) -> Job:
        yield from ()
        with closing(client):
            client.send(b"served")

    def _accept(self) -> Any:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        if self.is_full and not RESERVE.is_short:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self._listening._accept()

    def serves(self) -> bool:
        """Tell whether a client is served."""
        with socket.create_connection(self.address, timeout=PATIENCE) as client:
            return client.recv(10) == b"served"


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    """Accept, and have no bug."""
    bugs: list[object] = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *what: bugs.append(what))
    made = Door()
    yield made
    made.acceptor.close()
    made.pool.join()
    assert not bugs


@pytest.fixture
def reserve() -> Iterator[None]:
    """Keep a reserve of two descriptors for clients, and those for files."""
    RESERVE.keep(2 + FOR_FILES)
    yield
    RESERVE._wanted = 0
    while RESERVE.spend():
        pass


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "fs.file-max"),
        (errno.ENOBUFS, "memory"),
        (errno.ENOMEM, "memory"),
    ],
)
def test_an_accept_that_fails_for_a_shortage_is_told_with_its_cure_and_goes_on(
    door: Door, caplog: pytest.LogCaptureFixture, number: int, cure: str
) -> None:
    """Case 392: no bug, at any level."""
    door.errors = [number, number]  # the second time, as there is no reserve
    with caplog.at_level(logging.DEBUG, "proxy"):
        assert door.serves()
    (record,) = told(caplog)
    where = f"127.0.0.1:{door.address[1]}"
    assert record.getMessage().startswith(f"cannot accept on {where}: {os.strerror(number)}: ")
    assert cure in record.getMessage()
    assert record.levelno == logging.WARNING
    assert hasattr(record, "collapse")  # once per period


def test_without_descriptors_nothing_is_asked_of_the_kernel_all_the_time(door: Door) -> None:
    """Case 178: the socket stays readable, and must not be looked at in every turn of the loop."""
    door.errors = [errno.EMFILE] * 10_000
    began = time.monotonic()
    with socket.create_connection(door.address, timeout=PATIENCE):
        until(lambda: len(door.errors) <= 10_000 - 6)
        assert 10_000 - len(door.errors) < 2 * (4 + 10 * (time.monotonic() - began))  # ten pauses a second
    door.errors.clear()


@pytest.mark.usefixtures("reserve")
def test_the_reserve_lets_a_client_in_when_no_other_descriptor_is_left(door: Door) -> None:
    """Case 340: so that it can be told. What was spent is taken back as soon as there is any."""
    door.is_full = True
    for _ in range(3):
        assert door.serves()
    door.is_full = False
    assert door.serves()
    assert not RESERVE.is_short


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EHOSTUNREACH])
def test_a_client_that_left_while_it_waited_is_worth_no_word(
    door: Door, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """accept(2): the network's errors of a new socket come by accept on Linux."""
    door.errors = [number]
    with caplog.at_level(logging.INFO, "proxy"):
        assert door.serves()
    assert not told(caplog)


# -- dialling

TARGET = Address("127.0.0.1", 9)


def refuse_sockets(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let no socket be made."""

    def make(*_: object) -> LoopSocket:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(dial_module, "LoopSocket", make)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_a_shortage_of_ours_is_not_the_targets_fault(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """Case 340."""
    refuse_sockets(monkeypatch, number)
    with pytest.raises(LimitError, match=rf"^127\.0\.0\.1:9: {os.strerror(number)}$") as raised:
        dial(TARGET, Deadline(5))
    assert raised.value.failure is Failure.LIMIT
    (record,) = told(caplog)  # whoever runs it learns of it, and what helps
    assert record.levelno == logging.WARNING
    assert any(cure in record.getMessage() for cure in ("ulimit", "file-max", "memory"))


def test_a_race_that_lacks_a_descriptor_does_not_speak_for_the_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One address refuses, and the other one could not even be tried."""
    outcomes: list[Exception] = [
        DialError("refused", Failure.REFUSED),
        LimitError("Too many open files"),
    ]
    monkeypatch.setattr(lookup_module, "_getaddrinfo", lambda *_: [_info("192.0.2.1"), _info("192.0.2.2")])

    def connect(*_: object) -> LoopSocket:
        raise outcomes.pop(0)

    monkeypatch.setattr(dial_module, "_connect", connect)
    with pytest.raises(LimitError):
        dial(Address("name.example", 80), Deadline(5))


def _info(ip: str) -> tuple[Any, ...]:
    return (0, 0, 0, "", (ip, 0))


class Exhausted(LoopSocket):
    """A socket for which no port is left, or no address: the error of connect is the same."""

    __slots__ = ()
    has_address = True

    def connect_ex(self, address: Any) -> int:
        """Connect, if it is for datagrams and there is an address."""
        is_datagram = self.type == socket.SOCK_DGRAM
        return 0 if is_datagram and self.has_address else errno.EADDRNOTAVAIL


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_ports_that_are_used_up_are_a_shortage_of_ours(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr(dial_module, "LoopSocket", Exhausted)
    with pytest.raises(LimitError, match="Cannot assign requested address"):
        dial(Address(host, 80), Deadline(5))


def test_no_address_of_a_family_is_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPv6 without an address of ours: the same error as with all ports in use."""
    monkeypatch.setattr(dial_module, "LoopSocket", Exhausted)
    monkeypatch.setattr(Exhausted, "has_address", False)
    with pytest.raises(DialError) as raised:
        dial(Address("2001:db8::1", 80), Deadline(5))
    assert raised.value.failure is Failure.NETWORK_UNREACHABLE


def _fail_with(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),  # what EAI_SYSTEM becomes
        socket.gaierror(socket.EAI_MEMORY, "Memory allocation failure"),
    ],
)
def test_a_lookup_that_lacks_something_of_ours_says_nothing_of_the_name(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(lookup_module, "_getaddrinfo", _fail_with(error))
    with pytest.raises(LimitError, match=r"name\.example cannot be looked up"):
        look_up("name.example", Deadline(5))


def test_a_thread_that_cannot_be_had_is_a_shortage_of_ours(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As under a limit of processes: pids.max, ulimit -u."""
    threads = NativeThreads(1)
    with monkeypatch.context() as short:
        short.setattr(
            "gevent.threadpool.start_new_thread", _fail_with(RuntimeError("can't start new thread"))
        )
        with pytest.raises(LimitError, match="no thread can be started: raise the limit of processes"):
            threads.run(lambda: "first")
        assert (
            "no thread can be started: raise the limit of processes" in caplog.text
        )  # not for its client alone
    assert threads.run(lambda: "second") == "second"


@pytest.mark.usefixtures("reserve")
def test_clients_leave_what_is_reserved_for_files(door: Door) -> None:
    door.errors = [errno.EMFILE] * 100
    with socket.create_connection(door.address, timeout=PATIENCE):
        until(lambda: len(door.errors) < 100)
        assert len(RESERVE._held) >= FOR_FILES
    door.errors.clear()


# -- files


@pytest.mark.usefixtures("reserve")
def test_what_needs_a_descriptor_gets_one_of_the_reserve() -> None:
    left = [errno.EMFILE] * (2 + FOR_FILES)

    def act() -> str:
        if left:
            number = left.pop()
            raise OSError(number, os.strerror(number))
        return "done"

    assert limits.from_reserve(act) == "done"
    assert not RESERVE.spend()  # all were needed


def test_what_is_reached_beside_others_or_ahead_of_time_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """DESIGN 1.12: a race holds a socket for each upstream that takes part, and a spare is one."""
    needed: list[int] = []

    def raise_limit(count: int) -> int:
        needed.append(count)
        return count

    monkeypatch.setattr(limits, "raise_limit", raise_limit)
    monkeypatch.setattr(limits.RESERVE, "keep", lambda count: None)
    limits.make_room(connections=100, listeners=1, pipes=0, lookups=0)
    limits.make_room(connections=100, listeners=1, pipes=0, lookups=0, raced=100, spares=8)
    assert needed[1] - needed[0] == 108


# Memory


def test_what_finds_no_memory_has_nobody_let_in_until_there_is_as_much_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, is_there = [1000.0], [False]

    def allocate(size: int) -> bytes:
        if not is_there[0]:
            raise MemoryError
        return b"x"

    ballast = limits.Ballast(lambda: now[0])
    ballast.keep()
    monkeypatch.setattr(limits, "bytes", allocate, raising=False)
    assert ballast.allows_another()
    ballast.give_up()
    assert "no memory is left" in caplog.text
    assert not ballast.allows_another()
    now[0] += 1.1
    assert not ballast.allows_another()  # it was asked for in vain
    is_there[0] = True
    assert not ballast.allows_another()  # and is not again before a second has gone
    now[0] += 1.1
    assert ballast.allows_another()


def test_little_memory_is_seen_before_anything_fails_for_want_of_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Greenlets end the program where one cannot be switched to another for want of memory."""
    now = [1000.0]
    ballast = limits.Ballast(lambda: now[0])
    ballast.keep()

    def allocate(size: int) -> bytes:
        raise MemoryError

    monkeypatch.setattr(limits, "bytes", allocate, raising=False)
    let_in = 0
    while ballast.allows_another():
        let_in += 1
        assert let_in < 100
    assert "no memory is left: new clients wait" in caplog.text
    now[0] += 1.1
    assert not ballast.allows_another()  # what was held is in use, so that it does not do alone


def test_what_is_kept_leaves_some_of_what_was_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As what can be done without is cut off, and a greenlet that finds no memory is the end of all."""
    left = 100 * MILLION

    def allocate(size: int) -> bytes:
        if size > left:
            raise MemoryError
        return b"x"

    monkeypatch.setattr(limits, "bytes", allocate, raising=False)
    ballast = limits.Ballast()
    ballast.keep()
    for _ in range(100):
        ballast.leave_some()
    left = 3 * MILLION
    for _ in range(100):
        ballast.leave_some()  # seen in time, so that there is what was given up
    assert "no memory is left" in caplog.text
    left = 1 * MILLION
    with pytest.raises(MemoryError):
        ballast.leave_some()


HOLD = """
import os
from proxy.net.limits import Ballast
from tests.wire.processes import memory_of
before = [memory_of(os.getpid(), name) for name in ("VmSize", "RssAnon")]
ballast = Ballast()
ballast.keep()
print(*(memory_of(os.getpid(), name) - then for name, then in zip(("VmSize", "RssAnon"), before)))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_memory_that_is_held_back_is_not_in_use() -> None:
    """It is room among the addresses, and no page of it was ever touched."""
    done = subprocess.run(
        [sys.executable, "-c", HOLD], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True
    )
    taken, used = map(int, done.stdout.split())
    assert taken >= 4 * MILLION
    assert used < MILLION
