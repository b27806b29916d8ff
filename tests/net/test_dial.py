"""
Happy Eyeballs (RFC 8305) on a scripted network, and real connections on the loopback interface.
"""

import errno
import os
import socket as std_socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from ipaddress import ip_address
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from proxy.address import Address, Endpoint, IPAddress
from proxy.errors import DialError, EgressError, Failure, LimitError
from proxy.net import dial as module
from proxy.net import lookup
from proxy.net.deadline import Deadline
from proxy.net.dial import dial, interleave
from proxy.net.egress import leave_by
from proxy.net.sock import LoopSocket
from proxy.policy import rules
from proxy.settings.egress import ANYHOW, Egress, Family
from tests.wire.greenlets import settle, until
from tests.wire.sockets import free_port
from tests.wire.targets import blackhole

LATE = 20.0  # seconds: how late a busy machine may be
NAME = Address("name.example", 80)


class Resolver:
    """Stands in for the C library's."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.late: dict[str, list[str]] = {}  # IPv6 addresses whose answer takes as long as a test wants
        self.answer = threading.Event()
        self.asked: list[str] = []

    def __call__(self, host: str, family: int) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        found = self.names[host.rstrip(".")]
        if host in self.late and family == std_socket.AF_UNSPEC:
            self.answer.wait(60)
            found = found + self.late[host]
        return [(0, std_socket.SOCK_STREAM, 6, "", sockaddr(ip)) for ip in found]


def sockaddr(ip: str) -> tuple[Any, ...]:
    """Write an address as the C library does: the zone has a field of its own (RFC 3493, section 3.3)."""
    host, _, zone = ip.partition("%")
    return (host, 0, 0, int(zone or 0)) if ":" in host else (host, 0)


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    """Put a stub in the resolver's place."""
    stub = Resolver()
    monkeypatch.setattr(lookup, "_getaddrinfo", stub)
    yield stub
    stub.answer.set()
    # Whoever asks for a name that is being looked up gets that answer, also in the next test.
    until(lambda: not lookup._threads._shared and not lookup._ipv4_threads._shared)


@pytest.mark.parametrize("literal", ["127.0.0.1", "::1"])
def test_an_ip_address_needs_no_lookup_and_no_thread(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch, literal: str
) -> None:
    monkeypatch.setattr(lookup._threads, "job", lambda *arguments: pytest.fail("a thread was used"))
    with pytest.raises(DialError) as raised:
        dial(Address(literal, free_port()), Deadline(30))
    assert raised.value.failure is Failure.REFUSED
    assert not resolver.asked


# -- the race


@pytest.mark.parametrize(("found", "order"), [
    ("6a 6b 4a 4b", "6a 4a 6b 4b"),  # RFC 8305, section 4, with First Address Family Count 1
    ("4a 4b 6a 6b", "4a 6a 4b 6b"),
    ("6a 6b 6c 4a", "6a 4a 6b 6c"),
    ("4a 4b", "4a 4b"),
    ("6a", "6a"),
])  # fmt: skip
def test_the_families_take_turns(found: str, order: str) -> None:
    def ips(words: str) -> list[IPAddress]:
        kinds = {"4": "192.0.2.{}", "6": "2001:db8::{}"}
        return [ip_address(kinds[word[0]].format(ord(word[1]) - 96)) for word in words.split()]

    assert interleave(ips(found)) == ips(order)


class FakeSocket:
    """A connection of the scripted network."""

    def __init__(self, ip: str) -> None:
        self.ip = ip
        self.closed = False

    def close(self) -> None:
        """Be closed."""
        self.closed = True


class Network:
    """
    Addresses that connect, fail or keep silent; it notes when each was tried.

    Each does so after a time, or when another one was tried.
    """

    def __init__(self, behaviour: dict[str, tuple[float | str, Failure | None]]) -> None:
        self.behaviour = behaviour
        self._events: dict[str, Event] = {}
        self.tried: list[tuple[str, float]] = []
        self.sockets: list[FakeSocket] = []
        self.called_off: list[str] = []
        self._started = time.monotonic()

    def _begun(self, name: str) -> Event:
        return self._events.setdefault(name, Event())

    def connect(self, ip: IPAddress, address: Address, deadline: Deadline, egress: Egress) -> FakeSocket:
        """Stand in for one attempt."""
        name = str(ip)
        self.tried.append((name, time.monotonic() - self._started))
        self._begun(name).set()
        after, failure = self.behaviour[name]
        try:
            with deadline.limit("connect"):
                if isinstance(after, str):
                    self._begun(after).wait()
                else:
                    gevent.sleep(after)
        except TimeoutError as exc:
            raise DialError(name, Failure.TIMED_OUT) from exc
        except gevent.GreenletExit:
            self.called_off.append(name)
            raise
        if failure:
            raise DialError(name, failure)
        self.sockets.append(FakeSocket(name))
        return self.sockets[-1]


SILENT = 600.0
A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, resolver: Resolver) -> Callable[..., Network]:
    """Make a name with these addresses, in this order."""

    def make(**behaviour: tuple[float | str, Failure | None]) -> Network:
        named = dict(zip((A, B, C), behaviour.values(), strict=False))
        made = Network(named)
        resolver.names["name.example"] = list(named)
        monkeypatch.setattr(module, "_connect", made.connect)
        return made

    return make


def tried(network: Network) -> list[str]:
    """Tell which addresses were tried, in order."""
    return [ip for ip, _ in network.tried]


def winner(check: Callable[[IPAddress], None] = lambda ip: None, egress: Egress = ANYHOW) -> str:
    """Dial the name, and tell which of its addresses it became."""
    sock: Any = dial(NAME, Deadline(30), check, egress)
    return str(sock.ip)


def test_the_first_address_is_the_only_one_tried_if_it_answers(
    network: Callable[..., Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ATTEMPT_DELAY", 60)
    net = network(a=(0.1, None), b=(0, None))
    assert winner() == A
    assert tried(net) == [A]


def test_the_next_address_starts_after_250_ms_of_silence(network: Callable[..., Network]) -> None:
    """RFC 8305, section 5: the recommended Connection Attempt Delay."""
    net = network(a=(SILENT, None), b=(SILENT, None), c=(0, None))
    assert winner() == C
    assert tried(net) == [A, B, C]
    assert module.ATTEMPT_DELAY == 0.25
    for number, (_, at) in enumerate(net.tried):
        assert at >= number * 0.25


def test_a_failure_starts_the_next_address_at_once(
    network: Callable[..., Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ATTEMPT_DELAY", 60)  # what waited for it would miss the deadline
    net = network(a=(0, Failure.REFUSED), b=(0, Failure.REFUSED), c=(0, None))
    assert winner() == C
    assert tried(net) == [A, B, C]


def test_a_slow_address_can_still_win(network: Callable[..., Network]) -> None:
    net = network(a=(B, None), b=(SILENT, None))
    assert winner() == A
    until(lambda: net.called_off == [B])


def test_the_losers_are_called_off_and_closed(network: Callable[..., Network]) -> None:
    net = network(a=(B, None), b=(0.05, None), c=(SILENT, None))
    first = winner()
    until(lambda: [sock.ip for sock in net.sockets if not sock.closed] == [first])


def test_two_that_connect_in_the_same_moment_leave_one_open(
    monkeypatch: pytest.MonkeyPatch, network: Callable[..., Network]
) -> None:
    monkeypatch.setattr(module, "ATTEMPT_DELAY", 0.0)
    net = network(a=(0.05, None), b=(0.05, None), c=(0.05, None))
    sock: Any = dial(NAME, Deadline(30))
    until(lambda: [each for each in net.sockets if not each.closed] == [sock])


def test_when_all_fail_the_first_ones_failure_is_told(network: Callable[..., Network]) -> None:
    network(a=(0.02, Failure.REFUSED), b=(0, Failure.HOST_UNREACHABLE))
    with pytest.raises(DialError) as raised:
        dial(NAME, Deadline(30))
    assert raised.value.failure is Failure.REFUSED


def test_the_race_ends_at_the_deadline(
    network: Callable[..., Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ATTEMPT_DELAY", 0.0)
    net = network(a=(SILENT, None), b=(SILENT, None))
    started = time.monotonic()
    with pytest.raises(DialError) as raised:
        dial(NAME, Deadline(0.4))
    assert raised.value.failure is Failure.TIMED_OUT
    assert time.monotonic() - started < 0.4 + LATE
    assert tried(net) == [A, B]


def test_whoever_is_killed_while_racing_leaves_nothing_running(network: Callable[..., Network]) -> None:
    net = network(a=(SILENT, None), b=(SILENT, None))
    racing = gevent.spawn(dial, NAME, Deadline(60))
    until(lambda: tried(net) == [A, B])
    racing.kill()
    until(lambda: sorted(net.called_off) == [A, B])


def test_an_address_that_is_told_twice_is_tried_once(
    network: Callable[..., Network], resolver: Resolver
) -> None:
    net = network(a=(0, Failure.REFUSED))
    resolver.names["name.example"] = [A, A, A]
    with pytest.raises(DialError):
        dial(NAME, Deadline(30))
    assert tried(net) == [A]


def test_an_address_that_is_found_later_joins_the_race(
    network: Callable[..., Network], resolver: Resolver
) -> None:
    """RFC 8305, section 3: the answer for IPv6 is not lost when IPv4 went on without it."""
    net = network(a=(SILENT, None), b=(0, None))
    resolver.names["name.example"], resolver.late["name.example"] = [A], [B]
    racing = gevent.spawn(winner)
    until(lambda: net.tried)
    resolver.answer.set()
    assert racing.get(timeout=20) == B
    assert tried(net) == [A, B]


def test_an_address_that_is_found_later_is_tried_when_the_others_have_failed(
    network: Callable[..., Network], resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ATTEMPT_DELAY", 60)  # for which it is waited for
    net = network(a=(0, Failure.REFUSED), b=(0, None))
    resolver.names["name.example"], resolver.late["name.example"] = [A], [B]
    racing = gevent.spawn(winner)
    until(lambda: net.tried)
    resolver.answer.set()
    assert racing.get(timeout=20) == B


def test_an_answer_that_never_comes_holds_up_no_refusal(
    network: Callable[..., Network], resolver: Resolver
) -> None:
    network(a=(0, Failure.REFUSED))
    resolver.late["name.example"] = [B]
    with pytest.raises(DialError) as raised:
        dial(NAME, Deadline(60))
    assert raised.value.failure is Failure.REFUSED
    assert not resolver.answer.is_set()


def test_a_socket_has_an_owner_whenever_the_race_is_ended(
    monkeypatch: pytest.MonkeyPatch, network: Callable[..., Network]
) -> None:
    """Also if it is ended in the very turn of the loop in which somebody has won."""
    monkeypatch.setattr(module, "ATTEMPT_DELAY", 0.0)
    for turns in range(12):
        net = network(a=(0, None), b=(0, None))
        racing = gevent.spawn(dial, NAME, Deadline(60))
        while not net.tried:
            gevent.sleep(0)
        for _ in range(turns):
            gevent.sleep(0)
        racing.kill(block=False)
        racing.join()
        settle()
        still_open = [sock for sock in net.sockets if not sock.closed]
        assert still_open == ([racing.value] if isinstance(racing.value, FakeSocket) else [])


def test_no_name_makes_us_try_addresses_without_end(
    network: Callable[..., Network], resolver: Resolver
) -> None:
    """Case 370's kind: whoever has a name server may give thousands."""
    net = network()
    addresses = [f"192.0.2.{number}" for number in range(200)]
    net.behaviour = dict.fromkeys(addresses, (0, Failure.REFUSED))
    resolver.names["name.example"] = addresses
    with pytest.raises(DialError):
        dial(NAME, Deadline(30))
    assert tried(net) == addresses[:16]


# -- the judge


def forbid(*forbidden: str) -> Callable[[IPAddress], None]:
    """Make a check that refuses these addresses."""

    def check(ip: IPAddress) -> None:
        if str(ip) in forbidden:
            raise DialError(f"{ip} is forbidden", Failure.NOT_ALLOWED)

    return check


def test_an_address_that_is_refused_is_not_tried(network: Callable[..., Network]) -> None:
    net = network(a=(0, None), b=(0, None))
    assert winner(forbid(A)) == B
    assert tried(net) == [B]


def test_a_name_all_of_whose_addresses_are_refused_is_not_allowed(network: Callable[..., Network]) -> None:
    net = network(a=(0, None), b=(0, None))
    with pytest.raises(DialError) as raised:
        dial(NAME, Deadline(30), forbid(A, B))
    assert raised.value.failure is Failure.NOT_ALLOWED
    assert not net.tried


def test_an_ip_address_is_judged_too(network: Callable[..., Network]) -> None:
    net = network(a=(0, None))
    with pytest.raises(DialError):
        dial(Address(A, 80), Deadline(30), forbid(A))
    assert not net.tried


@pytest.mark.parametrize("ip", ["0.0.0.0", "::", "255.255.255.255", "224.0.0.1", "ff02::1", "::ffff:0.0.0.0"])
def test_an_address_that_is_no_hosts_is_refused(
    network: Callable[..., Network], resolver: Resolver, ip: str
) -> None:
    """CASES A31: as a name's address, too."""
    net = network(a=(0, None))
    resolver.names["name.example"] = [ip]
    for target in (NAME, Address(ip, 80)):
        with pytest.raises(DialError) as raised:
            dial(target, Deadline(30), rules.check)
        assert raised.value.failure is Failure.NOT_ALLOWED
    assert not net.tried


# -- families

SIX, FOUR = "2001:db8::1", "192.0.2.1"


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch, resolver: Resolver) -> Network:
    """Make a name with an address in each family, which both connect; IPv6 comes first."""
    made = Network({SIX: (0.0, None), FOUR: (0.0, None)})
    resolver.names["name.example"] = [SIX, FOUR]
    monkeypatch.setattr(module, "_connect", made.connect)
    return made


@pytest.mark.parametrize(
    ("egress", "order"),
    [
        (ANYHOW, [SIX, FOUR]),  # as the system has put them
        (Egress(family=Family.IPV6), [SIX, FOUR]),
        (Egress(family=Family.IPV4), [FOUR, SIX]),
        (Egress(family=Family.IPV6_ONLY), [SIX]),
        (Egress(family=Family.IPV4_ONLY), [FOUR]),
        (Egress(source="192.0.2.7"), [FOUR]),
        (Egress(source="2001:db8::7"), [SIX]),
    ],
)
def test_the_family_that_is_preferred_is_tried_first_and_one_that_is_no_use_never(
    both: Network, egress: Egress, order: list[str]
) -> None:
    """DESIGN 1.3."""
    both.behaviour = dict.fromkeys(order, (0.0, Failure.REFUSED))
    with pytest.raises(DialError):
        winner(egress=egress)
    assert tried(both) == order


def test_addresses_of_a_family_that_is_left_out_take_no_places(both: Network, resolver: Resolver) -> None:
    many = [f"2001:db8::{number:x}" for number in range(1, 40)]
    few = [f"192.0.2.{number}" for number in range(1, 17)]
    resolver.names["name.example"] = many + few
    both.behaviour = dict.fromkeys(few, (0.0, Failure.REFUSED))
    with pytest.raises(DialError):
        winner(egress=Egress(family=Family.IPV4_ONLY))
    assert tried(both) == few


@pytest.mark.parametrize(
    ("egress", "names", "why"),
    [
        (
            Egress(family=Family.IPV4_ONLY),
            [SIX],
            "has IPv6 addresses only, and family = ipv4_only leaves IPv6 out",
        ),
        (
            Egress(source="2001:db8::7"),
            [FOUR],
            "has IPv4 addresses only, and source 2001:db8::7 does not reach IPv4",
        ),
    ],
)
def test_a_name_that_has_only_others_is_unreachable_and_told_why(
    both: Network, resolver: Resolver, egress: Egress, names: list[str], why: str
) -> None:
    resolver.names["name.example"] = names
    with pytest.raises(DialError) as raised:
        winner(egress=egress)
    assert str(raised.value) == f"name.example:80 {why}"
    assert raised.value.failure is Failure.NETWORK_UNREACHABLE
    assert not both.tried


@pytest.mark.parametrize(
    ("egress", "literal", "why"),
    [
        (Egress(family=Family.IPV4_ONLY), SIX, "[2001:db8::1]:80: family = ipv4_only leaves IPv6 out"),
        (Egress(family=Family.IPV6_ONLY), FOUR, "192.0.2.1:80: family = ipv6_only leaves IPv4 out"),
        (Egress(source="192.0.2.7"), SIX, "[2001:db8::1]:80: source 192.0.2.7 does not reach IPv6"),
    ],
)
def test_an_address_of_a_family_that_is_left_out_is_unreachable(
    both: Network, egress: Egress, literal: str, why: str
) -> None:
    with pytest.raises(DialError) as raised:
        dial(Address(literal, 80), Deadline(30), egress=egress)
    assert str(raised.value) == why
    assert raised.value.failure is Failure.NETWORK_UNREACHABLE
    assert not both.tried


@pytest.mark.parametrize("preferred", [Family.IPV4, Family.IPV6])
def test_an_address_of_the_other_family_is_reached_all_the_same(both: Network, preferred: Family) -> None:
    other = FOUR if preferred is Family.IPV6 else SIX
    dial(Address(other, 80), Deadline(30), egress=Egress(family=preferred))
    assert tried(both) == [other]


def test_where_only_ipv6_will_do_its_answer_is_waited_for(both: Network, resolver: Resolver) -> None:
    """Longer than the addresses of the other family would be gone on with."""
    resolver.names["name.example"] = [FOUR]
    resolver.late["name.example"] = [SIX]
    dialling = gevent.spawn(winner, egress=Egress(family=Family.IPV6_ONLY))
    gevent.sleep(module.ATTEMPT_DELAY * 2)
    resolver.answer.set()
    assert dialling.get(timeout=LATE) == SIX


def test_who_is_left_out_by_a_rule_is_told_that(both: Network, resolver: Resolver) -> None:
    """It may be reached by no family, but that it is not allowed says more."""
    resolver.names["name.example"] = [SIX, "0.0.0.0"]
    with pytest.raises(DialError) as raised:
        winner(rules.check, Egress(family=Family.IPV4_ONLY))
    assert raised.value.failure is Failure.NOT_ALLOWED


# -- zones


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Note the addresses that the kernel is given, none of which connects."""
    given: list[Any] = []

    def connect(sock: Any, sockaddr: Any, deadline: Deadline) -> None:
        given.append(sockaddr)
        raise OSError(errno.ECONNREFUSED, "refused")

    monkeypatch.setattr(module, "_await_connection", connect)
    return given


LOOPBACK = std_socket.if_nametoindex("lo")


def test_a_link_local_address_of_a_name_is_dialled_in_its_zone(
    resolver: Resolver, dialled: list[Any]
) -> None:
    """Case 342; RFC 4007, section 11. The same address in two zones is two addresses."""
    resolver.names["name.example"] = [f"fe80::2%{LOOPBACK}", "fe80::2%4095"]
    with pytest.raises(DialError, match=rf"name\.example:80 \(fe80::2%{LOOPBACK}\): "):
        dial(NAME, Deadline(30))
    assert dialled == [("fe80::2", 80, 0, LOOPBACK), ("fe80::2", 80, 0, 4095)]


def test_a_proxy_may_be_link_local(dialled: list[Any]) -> None:
    """Case 342."""
    with pytest.raises(DialError, match=r"^\[fe80::2%lo\]:1080: "):
        dial(Endpoint.parse("[fe80::2%lo]:1080").address, Deadline(30))
    assert dialled == [("fe80::2", 1080, 0, LOOPBACK)]


def test_an_interface_that_is_not_there_is_named() -> None:
    """Case 342."""
    with pytest.raises(DialError, match=r"there is no interface nowhere0$") as raised:
        dial(Endpoint.parse("[fe80::2%nowhere0]:1080").address, Deadline(30))
    assert raised.value.failure is Failure.NETWORK_UNREACHABLE


def test_a_link_local_address_without_its_interface_is_out_of_reach() -> None:
    """Case 342: the kernel says EINVAL, which is no fault of the program."""
    with pytest.raises(DialError, match="needs its interface") as raised:
        dial(Address("fe80::2", 80), Deadline(30))
    assert raised.value.failure is Failure.NETWORK_UNREACHABLE


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        # connect(2), ip(7), tcp(7), and net/ipv4/icmp.c of Linux for what ICMP turns into
        (errno.EINVAL, Failure.NETWORK_UNREACHABLE),
        (errno.ENODEV, Failure.NETWORK_UNREACHABLE),
        (errno.ENETRESET, Failure.NETWORK_UNREACHABLE),
        (errno.ENOPROTOOPT, Failure.HOST_UNREACHABLE),
        (errno.EHOSTDOWN, Failure.HOST_UNREACHABLE),
    ],
)
def test_what_cannot_be_reached_is_said_to_be_unreachable(
    monkeypatch: pytest.MonkeyPatch, error: int, failure: Failure
) -> None:
    """Case 371: a general failure would tell the client, and the next proxy, nothing."""
    monkeypatch.setattr(LoopSocket, "connect_ex", lambda sock, address: error)
    with pytest.raises(DialError) as raised:
        dial(Address("192.0.2.1", 80), Deadline(30))
    assert raised.value.failure is failure


# -- real connections


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Listen on the loopback interface."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock


def test_a_connection_has_nodelay_and_keepalive(listener: socket.socket) -> None:
    with closing(dial(Address("127.0.0.1", listener.getsockname()[1]), Deadline(30))) as sock:
        assert sock.getpeername() == listener.getsockname()
        assert sock.getsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_NODELAY)
        assert sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_KEEPALIVE)


def test_a_connection_leaves_from_its_source_and_by_its_interface(listener: socket.socket) -> None:
    here = Address("127.0.0.1", listener.getsockname()[1])
    with closing(dial(here, Deadline(30), egress=Egress("127.0.0.2", "lo"))) as sock:
        assert sock.getsockname()[0] == "127.0.0.2"
        assert sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"


@pytest.mark.parametrize("source", ["127.0.0.2", "::1"])
def test_a_source_takes_no_port_before_the_connection_has_one(source: str) -> None:
    """Linux, ip(7), IP_BIND_ADDRESS_NO_PORT: one port leads to many addresses, as without a source."""
    family = std_socket.AF_INET6 if ":" in source else std_socket.AF_INET
    with closing(LoopSocket(family, std_socket.SOCK_STREAM)) as sock:
        leave_by(sock, Egress(source))
        assert sock.getsockname()[:2] == (source, 0)


@pytest.mark.parametrize(
    ("egress", "why"),
    [
        (Egress("192.0.2.7"), "source 192.0.2.7: this machine does not have this address"),
        (Egress("2001:db8::7"), "source 2001:db8::7: this machine does not have this address"),
        (Egress(interface="nowhere0"), "interface nowhere0: there is no such interface"),
    ],
)
def test_what_this_machine_does_not_have_is_no_fault_of_a_target(
    resolver: Resolver, listener: socket.socket, egress: Egress, why: str
) -> None:
    resolver.names["name.example"] = ["127.0.0.1", "127.0.0.2", "::1"]
    version = egress.source_ip.version if egress.source_ip else 4
    for target in ("127.0.0.1" if version == 4 else "::1", "name.example"):
        with pytest.raises(EgressError) as raised:
            dial(Address(target, listener.getsockname()[1]), Deadline(30), egress=egress)
        assert str(raised.value) == why
        # So another upstream is asked, and this one does not rest.
        assert raised.value.well
        assert raised.value.failure is Failure.UPSTREAM


def test_an_interface_that_may_not_be_chosen_is_told_with_what_it_needs() -> None:
    """socket(7): EPERM for whoever lacks CAP_NET_RAW, before Linux 5.7."""

    class Forbidden(LoopSocket):
        def setsockopt(self, *arguments: Any) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with (
        closing(Forbidden(std_socket.AF_INET, std_socket.SOCK_STREAM)) as sock,
        pytest.raises(EgressError, match=r"^interface lo: choosing one needs Linux 5\.7, or CAP_NET_RAW$"),
    ):
        leave_by(sock, Egress(interface="lo"))


def test_an_error_tells_from_where_and_by_what_it_was_tried() -> None:
    port = free_port()
    with pytest.raises(DialError) as raised:
        dial(Address("127.0.0.1", port), Deadline(30), egress=Egress("127.0.0.2", "lo"))
    assert str(raised.value) == (f"127.0.0.1:{port} from 127.0.0.2 by lo: {os.strerror(errno.ECONNREFUSED)}")


def test_from_the_loopback_there_is_no_way_out() -> None:
    """The kernel says EINVAL."""
    with pytest.raises(DialError, match=r"^192\.0\.2\.1:80 from 127\.0\.0\.1: ") as raised:
        dial(Address("192.0.2.1", 80), Deadline(30), egress=Egress("127.0.0.1"))
    assert raised.value.failure is Failure.NETWORK_UNREACHABLE


@pytest.mark.parametrize("source", ["", "127.0.0.2"])
def test_when_all_ports_of_a_source_are_used_up_that_is_our_own_shortage(
    monkeypatch: pytest.MonkeyPatch, listener: socket.socket, source: str
) -> None:
    """connect(2): EADDRNOTAVAIL; there is a way from there, as datagrams show, whose ports are others."""

    def full(sock: Any, sockaddr: Any, deadline: Deadline) -> None:
        raise OSError(errno.EADDRNOTAVAIL, "none left")

    monkeypatch.setattr(module, "_await_connection", full)
    with pytest.raises(LimitError):
        dial(Address("127.0.0.1", listener.getsockname()[1]), Deadline(30), egress=Egress(source))


def test_a_closed_port_refuses_and_is_named() -> None:
    port = free_port()
    with pytest.raises(DialError) as raised:
        dial(Address("127.0.0.1", port), Deadline(30))
    assert raised.value.failure is Failure.REFUSED
    assert str(raised.value) == f"127.0.0.1:{port}: {os.strerror(errno.ECONNREFUSED)}"


def test_the_error_of_a_name_tells_which_address_it_was(resolver: Resolver) -> None:
    resolver.names["name.example"] = ["127.0.0.1"]
    port = free_port()
    with pytest.raises(DialError, match=rf"name\.example:{port} \(127\.0\.0\.1\): "):
        dial(Address("name.example", port), Deadline(30))


def test_a_silent_host_times_out_at_the_deadline() -> None:
    with blackhole() as port:
        started = time.monotonic()
        with pytest.raises(DialError) as raised:
            dial(Address("127.0.0.1", port), Deadline(0.2))
    assert raised.value.failure is Failure.TIMED_OUT
    assert time.monotonic() - started >= 0.2


def test_the_second_address_is_used_when_the_first_refuses_or_is_silent(resolver: Resolver) -> None:
    """CASES E152: within the one deadline."""
    port = free_port()  # at 127.0.0.1 too
    with socket.socket() as listener:
        listener.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.2", port))
        listener.listen()
        resolver.names["name.example"] = ["127.0.0.1", "127.0.0.2"]
        target = Address("name.example", port)
        with closing(dial(target, Deadline(30))) as sock:
            assert sock.getpeername()[0] == "127.0.0.2"
        with blackhole(port=port), closing(dial(target, Deadline(30))) as sock:
            assert sock.getpeername()[0] == "127.0.0.2"


def test_no_descriptor_is_left_open(resolver: Resolver, listener: socket.socket) -> None:
    resolver.names["name.example"] = ["127.0.0.1", "127.0.0.2", "::1"]
    settle()  # losers of earlier races close in the loop's next turn
    refusing = free_port()
    before = len(os.listdir("/proc/self/fd"))
    with blackhole() as silent:
        for port in (refusing, silent, listener.getsockname()[1]):
            try:
                dial(Address("name.example", port), Deadline(0.3)).close()
            except DialError:
                continue
    until(lambda: len(os.listdir("/proc/self/fd")) == before)
