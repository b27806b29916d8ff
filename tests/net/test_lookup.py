"""
What is asked of the C library for a name, and when one goes on without all of its answers.
"""

import errno
import os
import socket as std_socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from proxy.errors import DialError, Failure, LimitError
from proxy.net import lookup as module
from proxy.net.deadline import Deadline
from proxy.net.lookup import Found, look_up, look_up_all
from tests.wire.greenlets import settle, until

LATE = 20.0  # seconds: how late a busy machine may be
BOTH, IPV4 = std_socket.AF_UNSPEC, std_socket.AF_INET


class Resolver:
    """
    Stands in for the C library's.

    ``names`` has its answers: addresses, or an error. A question in ``silent``, by name and family,
    gets its answer when a test says so.
    """

    def __init__(self) -> None:
        self.names: dict[str, list[str] | int] = {}
        self.silent: set[tuple[str, int]] = set()
        self.speaks = threading.Event()
        self.asked: list[tuple[str, int]] = []

    def __call__(self, host: str, family: int) -> list[tuple[Any, ...]]:
        self.asked.append((host, family))
        if (host, family) in self.silent or host.startswith("slow"):
            self.speaks.wait(60)
        found = self.names.get(host, self.names.get(host.rstrip("."), std_socket.EAI_NONAME))
        if isinstance(found, int):
            raise std_socket.gaierror(found, "said the stub")
        wanted = [ip for ip in found if family == BOTH or ":" not in ip]
        return [(0, std_socket.SOCK_STREAM, 6, "", (ip, 0)) for ip in wanted]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    """Put a stub in the resolver's place, and let no thread be left to the next test."""
    stub = Resolver()
    monkeypatch.setattr(module, "_getaddrinfo", stub)
    yield stub
    stub.speaks.set()
    until(lambda: not module._threads._shared and not module._ipv4_threads._shared)


def ips(*texts: str) -> list[Any]:
    """Make addresses."""
    return [ip_address(text) for text in texts]


def wait_for(resolver: Resolver, *questions: tuple[str, int]) -> None:
    """Wait until these were asked."""
    until(lambda: set(questions) <= set(resolver.asked))


Flood = list["gevent.Greenlet[..., Found]"]


@pytest.fixture
def flood() -> Iterator[Callable[..., Flood]]:
    """Look up so many names that never get an answer, and wait until each has a thread or has to wait."""
    made: Flood = []

    def begin(count: int, *more: str) -> Flood:
        names = [f"slow-{number}.example" for number in range(count)] + list(more)
        made.extend(gevent.spawn(look_up, name, Deadline(30, "one client")) for name in names)
        until(lambda: len(module._threads._shared) >= len(names))
        return made

    yield begin
    gevent.killall(made)


# -- one name, many who ask


def test_simultaneous_lookups_of_one_name_are_one(resolver: Resolver) -> None:
    resolver.names["slow.example"] = ["127.0.0.1"]
    lookups = [gevent.spawn(look_up, "slow.example", Deadline(30, str(number))) for number in range(20)]
    wait_for(resolver, ("slow.example", BOTH))
    resolver.speaks.set()
    assert [lookup.get().ips for lookup in lookups] == [ips("127.0.0.1")] * 20
    assert resolver.asked.count(("slow.example", BOTH)) == 1


def test_who_asked_first_may_leave_without_harm_to_the_others(resolver: Resolver) -> None:
    resolver.names["slow.example"] = ["127.0.0.1"]
    first, second = (gevent.spawn(look_up_all, "slow.example", Deadline(30)) for _ in range(2))
    wait_for(resolver, ("slow.example", BOTH))
    first.kill()
    resolver.speaks.set()
    assert second.get().ips == ips("127.0.0.1")


def test_a_joined_lookup_keeps_each_ones_own_deadline(resolver: Resolver) -> None:
    resolver.names["slow.example"] = ["127.0.0.1"]
    patient = gevent.spawn(look_up_all, "slow.example", Deadline(30))
    with pytest.raises(DialError) as raised:
        look_up("slow.example", Deadline(0.05))
    assert raised.value.failure is Failure.NAME_TIMED_OUT
    assert str(raised.value) == "the lookup of slow.example timed out"
    resolver.speaks.set()
    assert patient.get().ips == ips("127.0.0.1")


def test_every_one_of_a_joined_lookup_hears_of_its_failure(resolver: Resolver) -> None:
    lookups = [gevent.spawn(look_up, "slow.example", Deadline(30)) for _ in range(3)]
    wait_for(resolver, ("slow.example", BOTH))
    resolver.speaks.set()
    gevent.joinall(lookups)
    failures = {getattr(lookup.exception, "failure", None) for lookup in lookups}
    assert failures == {Failure.NAME_NOT_FOUND}
    assert len({id(lookup.exception) for lookup in lookups}) == 3, "each has an error of its own"


def test_an_answer_is_not_kept(resolver: Resolver) -> None:
    resolver.names["name.example"] = ["127.0.0.1"]
    look_up("name.example", Deadline(30))
    resolver.names["name.example"] = ["127.0.0.2"]
    assert look_up("name.example", Deadline(30)).ips == ips("127.0.0.2")


def test_the_loop_runs_on_while_a_name_is_looked_up(resolver: Resolver) -> None:
    lookup = gevent.spawn(look_up, "slow.example", Deadline(30))
    for _ in range(10):
        gevent.sleep(0.001)
    assert not lookup.ready()
    resolver.speaks.set()
    lookup.join()


@pytest.mark.parametrize(("asker", "count"), [("another client", 500), ("one client", 140)])
def test_slow_names_hold_up_only_those_who_asked_for_them(
    resolver: Resolver, flood: Callable[..., Flood], asker: str, count: int
) -> None:
    """Case 345. Up to a bound, they do not hold up other names of the same client either."""
    resolver.names["fast.example"] = ["127.0.0.1"]
    flood(count)
    assert look_up("fast.example", Deadline(30, asker)).ips == ips("127.0.0.1")
    assert not resolver.speaks.is_set()


def test_a_name_that_others_have_to_wait_for_is_looked_up_for_who_may(
    resolver: Resolver, flood: Callable[..., Flood]
) -> None:
    """Case 345: a flood cannot hold up a name by asking for it too."""
    resolver.names["fast.example"] = ["127.0.0.1"]
    in_vain = flood(200, "fast.example")[-1]
    assert ("fast.example", BOTH) not in resolver.asked
    assert look_up("fast.example", Deadline(30, "another client")).ips == ips("127.0.0.1")
    assert in_vain.get(timeout=20).ips == ips("127.0.0.1")


def test_lookups_that_nobody_waits_for_do_not_pile_up(resolver: Resolver) -> None:
    for number in range(400):
        with pytest.raises(DialError):
            look_up(f"slow-{number}.example", Deadline(0.0001, "one client"))
    waiting = [job for job in module._threads._shared.values() if not job.is_begun]
    assert not waiting
    assert not module._threads._queues
    resolver.speaks.set()


def test_a_lookup_that_has_no_turn_says_so(resolver: Resolver, flood: Callable[..., Flood]) -> None:
    flood(200)
    with pytest.raises(DialError, match="behind others that are slow") as raised:
        look_up("fast.example", Deadline(0.1, "one client"))
    assert raised.value.failure is Failure.NAME_TIMED_OUT


# -- two families, two answers


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every answer for a quick one, however long its thread is kept from running."""
    monkeypatch.setattr(module, "PATIENCE", 60.0)


@pytest.mark.usefixtures("patient")
def test_a_quick_answer_takes_one_question(resolver: Resolver) -> None:
    resolver.names["name.example"] = ["2001:db8::1", "192.0.2.1"]
    assert look_up("name.example", Deadline(30)) == Found(ips("2001:db8::1", "192.0.2.1"), is_all=True)
    assert resolver.asked == [("name.example", BOTH)]


def test_an_answer_for_ipv6_that_never_comes_is_not_waited_for(resolver: Resolver) -> None:
    """Case 344."""
    resolver.names["name.example"] = ["192.0.2.1"]
    resolver.silent = {("name.example", BOTH)}
    assert look_up("name.example", Deadline(30)) == Found(ips("192.0.2.1"), is_all=False)
    assert not resolver.speaks.is_set()


def test_the_answer_for_ipv6_has_a_moment_to_come(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 8305, section 3: the Resolution Delay."""
    monkeypatch.setattr(module, "RESOLUTION_DELAY", 5.0)
    resolver.names["name.example"] = ["2001:db8::1", "192.0.2.1"]
    resolver.silent = {("name.example", BOTH)}
    lookup = gevent.spawn(look_up, "name.example", Deadline(30))
    wait_for(resolver, ("name.example.", IPV4))
    settle()
    resolver.speaks.set()
    assert lookup.get() == Found(ips("2001:db8::1", "192.0.2.1"), is_all=True)


def test_a_name_without_an_ipv4_address_waits_for_the_other_answer(resolver: Resolver) -> None:
    resolver.names = {"name.example": ["2001:db8::1"], "name.example.": std_socket.EAI_NONAME}
    resolver.silent = {("name.example", BOTH)}
    lookup = gevent.spawn(look_up, "name.example", Deadline(30))
    wait_for(resolver, ("name.example.", IPV4))
    gevent.sleep(2 * module.RESOLUTION_DELAY)
    assert not lookup.ready()
    resolver.speaks.set()
    assert lookup.get() == Found(ips("2001:db8::1"), is_all=True)


@pytest.mark.parametrize("when", ["at once", "later"])
def test_an_ipv4_answer_does_for_both_when_the_other_one_fails(resolver: Resolver, when: str) -> None:
    """Case 344: some of the failures concern one answer only, such as one that needs TCP."""
    resolver.names = {"name.example": std_socket.EAI_AGAIN, "name.example.": ["192.0.2.1"]}
    resolver.silent = {("name.example", BOTH)} if when == "later" else set()
    lookup = gevent.spawn(look_up, "name.example", Deadline(30))
    wait_for(resolver, ("name.example.", IPV4))
    resolver.speaks.set()
    assert lookup.get().ips == ips("192.0.2.1")


@pytest.mark.usefixtures("patient")
def test_a_name_that_does_not_exist_is_asked_for_once(resolver: Resolver) -> None:
    with pytest.raises(DialError):
        look_up("name.example", Deadline(30))
    assert resolver.asked == [("name.example", BOTH)]


@pytest.mark.parametrize(
    ("host", "second"),
    [
        # With a search list, the second question could end at another host than the first.
        ("name.example", "name.example."),
        ("name.example.", "name.example."),
        # And without one, this is no name.
        ("printer", "printer"),
    ],
)
def test_both_questions_are_about_one_host(resolver: Resolver, host: str, second: str) -> None:
    resolver.names[host] = ["192.0.2.1"]
    resolver.silent = {(host, BOTH)}
    assert look_up(host, Deadline(30)).ips == ips("192.0.2.1")
    assert resolver.asked == [(host, BOTH), (second, IPV4)]


# -- what went wrong


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (std_socket.EAI_NONAME, Failure.NAME_NOT_FOUND),
        (std_socket.EAI_NODATA, Failure.NAME_NOT_FOUND),
        (std_socket.EAI_AGAIN, Failure.NAME_TIMED_OUT),  # no server answered
        (std_socket.EAI_FAIL, Failure.NAME_TIMED_OUT),  # one did, and refused to look
    ],
)
def test_a_name_that_does_not_exist_is_told_from_a_resolver_that_fails(
    resolver: Resolver, answer: int, failure: Failure
) -> None:
    resolver.names["name.example"] = answer
    with pytest.raises(DialError, match=r"name\.example .*: said the stub$") as raised:
        look_up("name.example", Deadline(30))
    assert raised.value.failure is failure


def test_a_lookup_that_takes_too_long_ends_at_the_deadline(resolver: Resolver) -> None:
    started = time.monotonic()
    with pytest.raises(DialError) as raised:
        look_up("slow.example", Deadline(0.1))
    assert raised.value.failure is Failure.NAME_TIMED_OUT
    assert time.monotonic() - started < 0.1 + LATE


def test_our_own_lack_of_descriptors_is_not_the_resolvers_fault() -> None:
    """The C library cannot tell them apart: without a socket, no server has answered."""
    program = """
import os, resource
from gevent import monkey
monkey.patch_all()
from proxy.errors import LimitError
from proxy.net.deadline import Deadline
from proxy.net.lookup import look_up
look_up("localhost", Deadline(10))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    while True:
        os.dup(0)
except OSError:
    pass
try:
    look_up("name.invalid", Deadline(10))
except LimitError as exc:
    print(exc.failure.name, exc)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("LIMIT name.invalid cannot be looked up: "), (done.stdout, done.stderr)
    assert os.strerror(errno.EMFILE) in done.stdout


def test_our_own_lack_of_threads_is_not_the_resolvers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module._threads, "_pool", SimpleNamespace(spawn=fail))
    with pytest.raises(LimitError, match="no thread can be started"):
        look_up("name.example", Deadline(30))


def test_our_own_lack_of_memory_is_not_the_resolvers_fault(resolver: Resolver) -> None:
    resolver.names["name.example"] = std_socket.EAI_MEMORY
    with pytest.raises(LimitError, match=r"^name\.example cannot be looked up: said the stub$"):
        look_up("name.example", Deadline(30))
