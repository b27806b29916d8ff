"""Servers become those of another configuration in one step, or stay what they are."""

import errno
import os
import socket as std_socket
import threading
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import socket

from proxy.accesslog import NO_LOG
from proxy.config import ProxyConfig
from proxy.errors import ConfigError, ProxyError
from proxy.listeners import Listeners, Plan, make_server
from proxy.listening import opening
from proxy.listening.listen import Acceptor
from proxy.metrics import Metrics
from proxy.settings.listener import ServerConfig
from proxy.settings.protocols import Protocol
from tests.wire.greenlets import until
from tests.wire.sockets import free_port

NOT_OURS = "192.0.2.1"  # RFC 5737: no machine has it


@pytest.fixture(autouse=True)
def within_seconds() -> Iterator[None]:
    with gevent.Timeout(20):
        yield


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    listeners = Listeners(make_server, NO_LOG, Metrics())
    yield listeners
    listeners.stop()  # who waits for an address would look for it in the next test
    for server in listeners.all:
        server.shutdown()


def config(**addresses: str) -> ProxyConfig:
    """Make a configuration of SOCKS5 listeners."""
    return ProxyConfig(
        listeners=tuple(ServerConfig(address, Protocol.SOCKS5, name) for name, address in addresses.items())
    )


def change(listeners: Listeners, config: ProxyConfig, **how: Any) -> Plan:
    """Do all three steps."""
    plan = listeners.plan(config)
    listeners.open(plan, **how)
    listeners.change(plan)
    return plan


def free_address(host: str = "127.0.0.1") -> str:
    return f"{host}:{free_port()}"


def reaches(address: str) -> bool:
    """Tell whether a client gets a connection."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), 5).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.fixture
def handed_over() -> Iterator[socket.socket]:
    """A listening socket for both families as a service manager hands it over, who keeps one of its own."""
    with socket.socket(std_socket.AF_INET6) as manager:
        manager.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_REUSEADDR, 1)
        manager.setsockopt(std_socket.IPPROTO_IPV6, std_socket.IPV6_V6ONLY, 0)
        manager.bind(("::", free_port()))
        manager.listen()
        yield socket.socket(fileno=os.dup(manager.fileno()))


def names(monkeypatch: pytest.MonkeyPatch, **addresses: list[str]) -> None:
    """Have the resolver know some names, of one label each."""

    def answer(host: str, port: int, *_: object) -> list[object]:
        return [(std_socket.AF_INET, std_socket.SOCK_STREAM, 6, "", (ip, port)) for ip in addresses[host]]

    monkeypatch.setattr(opening, "_getaddrinfo", answer)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_what_is_as_it_was_is_not_touched(listeners: Listeners) -> None:
    one, two = free_address(), free_address()
    change(listeners, config(one=one, two=two))
    before = listeners.accepting
    plan = change(listeners, config(one=one, two=two))
    assert listeners.accepting == before
    assert not plan.renewed
    assert not plan.sockets


def places(listeners: Listeners) -> dict[str, list[str]]:
    """Tell where each listens."""
    return {server.config.name: list(map(str, server.addresses)) for server in listeners.accepting}


def test_a_port_that_the_kernel_has_chosen_is_kept_by_its_listener_of_another_program(
    listeners: Listeners,
) -> None:
    """Each its own, though all have the same address in the file."""
    addresses = {"one": "127.0.0.1:0", "two": "127.0.0.1:0", "three": ":0", "four": "[::]:0"}
    change(listeners, config(**addresses))
    before = places(listeners)
    assert len(set(map(str, before.values()))) == 4
    at_hand = {
        server.config.name: [each.given for each in server.acceptors] for server in listeners.accepting
    }
    following = Listeners(make_server, NO_LOG, Metrics())
    try:
        change(following, config(**dict(reversed(addresses.items()))), at_hand=at_hand)
        assert places(following) == before
    finally:
        following.stop()
        for server in following.all:
            server.shutdown()


def test_a_port_that_the_kernel_has_chosen_is_kept_when_another_protocol_is_spoken(
    listeners: Listeners,
) -> None:
    change(listeners, config(one="127.0.0.1:0", two="127.0.0.1:0"))
    before = places(listeners)
    address = before["one"][0]
    mixed = ServerConfig("127.0.0.1:0", Protocol.MIXED, "one")
    change(listeners, ProxyConfig(listeners=(mixed, *config(two="127.0.0.1:0").listeners)))
    assert places(listeners) == before
    assert reaches(address)
    # But one that was told a port has another one when the kernel is to choose.
    change(listeners, config(one=address, two="127.0.0.1:0"))
    change(listeners, config(one="127.0.0.1:0", two="127.0.0.1:0"))
    assert places(listeners)["one"] != [address]


def test_a_plan_opens_and_changes_nothing(listeners: Listeners) -> None:
    one, two = free_address(), free_address()
    change(listeners, config(one=one))
    before = descriptors()
    plan = listeners.plan(config(one=one, two=two))
    assert [server.config.name for server in plan.servers] == ["one", "two"]
    assert [server.config.name for server in listeners.accepting] == ["one"]
    assert descriptors() <= before  # others may have been collected meanwhile


def test_a_plan_that_cannot_be_made_is_an_error(listeners: Listeners) -> None:
    door = ServerConfig(
        "127.0.0.1:0", Protocol.WEBSOCKET, "web", tls_cert="/nonexistent", tls_key="/nonexistent"
    )
    with pytest.raises(ConfigError, match="/nonexistent"):
        listeners.plan(ProxyConfig(listeners=(door,)))


def test_an_address_that_is_busy_closes_what_was_opened_before_it(listeners: Listeners) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        busy = f"127.0.0.1:{other.getsockname()[1]}"
        plan = listeners.plan(config(good=free_address(), bad=busy))
        before = descriptors()
        with pytest.raises(ProxyError, match="in use"):
            listeners.open(plan)
        assert descriptors() <= before  # others may have been collected meanwhile
        assert listeners.accepting == []


def test_a_change_that_does_not_come_leaves_nothing_open(listeners: Listeners) -> None:
    one, two = free_address(), free_address()
    change(listeners, config(one=one))
    before = descriptors()
    plan = listeners.plan(config(other=one, two=two))
    listeners.open(plan)
    listeners.close(plan)
    assert descriptors() <= before  # others may have been collected meanwhile


def test_counters_go_on_in_a_server_that_takes_the_place_of_another(listeners: Listeners) -> None:
    change(listeners, config(one=free_address()))
    listeners.accepting[0].metrics.accepted += 7
    change(listeners, config(one=free_address()))
    assert listeners.accepting[0].metrics.accepted == 7


def test_a_plan_that_comes_to_nothing_leaves_no_metrics(listeners: Listeners) -> None:
    """It is made in another thread, too, while they are read in this one."""
    change(listeners, config(one=free_address()))
    before = listeners._metrics.listeners
    plan = listeners.plan(config(two=free_address()))
    assert (listeners._metrics.listeners is before, [*before]) == (True, ["one"])
    listeners.open(plan)
    listeners.change(plan)
    assert [*listeners._metrics.listeners] == ["one", "two"]


def test_a_server_that_has_left_is_known_while_it_has_connections(listeners: Listeners) -> None:
    change(listeners, config(one=free_address()))
    (server,) = listeners.accepting
    client = socket.create_connection(("127.0.0.1", server.addresses[0].port), 5)
    until(lambda: server.sessions)
    change(listeners, config(one=free_address()))
    assert listeners.all == [*listeners.accepting, server]
    client.close()
    until(lambda: not server.sessions)
    assert listeners.all == listeners.accepting


def test_a_server_is_known_whose_clients_have_not_been_greeted_yet(listeners: Listeners) -> None:
    """Those that a leaving server takes out of the queue are shown, drained and ended like all others."""
    change(listeners, config(one=free_address()))
    (server,) = listeners.accepting
    with socket.create_connection(("127.0.0.1", server.addresses[0].port), 5) as client:
        change(listeners, config(one=free_address()))  # nothing has been accepted yet: we have not yielded
        assert server in listeners.all
        until(lambda: server.sessions)
        assert server in listeners.all
        server.end_sessions_of_changed({})
        client.close()


def test_a_client_that_has_not_been_greeted_yet_is_judged_by_the_users_of_today(listeners: Listeners) -> None:
    """``on_user_change = close``: also one that a leaving server has just taken out of the queue."""
    old, new = {"alice": "wonderland"}, {"alice": "looking glass"}

    def with_users(users: dict[str, str]) -> ProxyConfig:
        return ProxyConfig(
            listeners=(ServerConfig(free_address(), Protocol.SOCKS5, "one", auth_users=users),)
        )

    change(listeners, with_users(old))
    (server,) = listeners.accepting
    with socket.create_connection(("127.0.0.1", server.addresses[0].port), 5) as client:
        change(listeners, with_users(new))
        for each in listeners.all:
            each.end_sessions_of_changed(new)
        # RFC 1928 and 1929: a method, a name with its password, and a request.
        client.sendall(b"\x05\x01\x02")
        client.sendall(b"\x01\x05alice\x0awonderland")
        client.sendall(b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x01")
        answer = b"".join(iter(lambda: client.recv(100), b""))
    assert answer == b"\x05\x02\x01\x00\x05\x01\x00\x01" + bytes(
        6
    )  # refused, and not dialled, which would be 05


# -- one address in the way of another


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (":{}", "127.0.0.1:{}"),
        (":{}", "0.0.0.0:{}"),
        (":{}", "[::]:{}"),
        ("[::]:{}", "127.0.0.1:{}"),
        ("[::]:{}", "0.0.0.0:{}"),
        ("0.0.0.0:{}", "127.0.0.1:{}"),
        ("localhost:{}", "127.0.0.1:{}"),
        ("localhost:{}", "0.0.0.0:{}"),
    ],
)
def test_an_address_gives_way_to_one_within_it_and_back(
    listeners: Listeners, before: str, after: str
) -> None:
    """Cases 302 and 350."""
    port = free_port()
    for text in (before, after, before):
        change(listeners, config(one=text.format(port)))
        assert reaches(f"127.0.0.1:{port}") is not text.startswith("[")
        (server,) = listeners.accepting
        assert not server.missing


def test_an_exposed_address_is_closed_also_if_the_service_manager_has_it_too(
    listeners: Listeners, handed_over: socket.socket
) -> None:
    """Case 302: and it can be had again, though not by opening it."""
    port = handed_over.getsockname()[1]
    change(listeners, config(one=f":{port}"), inherited=[handed_over])
    for narrow in (f"127.0.0.1:{port}", free_address()):
        change(listeners, config(one=narrow))
        assert reaches(narrow)
        assert not reaches(f"127.0.0.2:{port}")
        change(listeners, config(one=f":{port}"))
        assert reaches(f"127.0.0.2:{port}")
        assert reaches(f"[::1]:{port}")


@pytest.mark.parametrize("inherited", [False, True])
def test_a_change_that_is_refused_leaves_those_open_that_had_made_way(
    listeners: Listeners, handed_over: socket.socket, inherited: bool
) -> None:
    """Case 302: a failure has no effects, whoever opened the sockets."""
    port = handed_over.getsockname()[1] if inherited else free_port()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        busy = f"127.0.0.1:{other.getsockname()[1]}"
        change(listeners, config(one=f":{port}"), inherited=[handed_over] if inherited else [])
        accepting = listeners.accepting
        plan = listeners.plan(config(one=f"127.0.0.1:{port}", two=busy))
        with pytest.raises(ProxyError, match=rf"^cannot listen on {busy}: Address already in use$"):
            listeners.open(plan)
    assert listeners.accepting == accepting
    assert reaches(f"127.0.0.2:{port}")
    (server,) = accepting
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(b"\x05\x01\x00")
        assert client.recv(2) == b"\x05\x00"  # it is not only the kernel who answers
    assert not server.missing


def test_who_made_way_and_cannot_come_back_is_waited_for_and_the_others_come_back(
    listeners: Listeners, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first error is the one that is told."""
    monkeypatch.setattr(opening, "RETRY", 0.01)
    one, two = free_port(), free_port()
    change(listeners, config(one=f"0.0.0.0:{one}", two=f"0.0.0.0:{two}"))
    resume = Acceptor.resume

    def fail_once(acceptor: Acceptor) -> None:
        monkeypatch.setattr(Acceptor, "resume", resume)
        acceptor.close()
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    monkeypatch.setattr(Acceptor, "resume", fail_once)
    plan = listeners.plan(config(one=f"127.0.0.1:{one}", two=f"127.0.0.1:{two}", new=f"{NOT_OURS}:1"))
    with pytest.raises(ProxyError, match=rf"^cannot listen on {NOT_OURS}:1: Cannot assign"):
        listeners.open(plan)
    assert f"one does not listen on 0.0.0.0:{one} any more: Address already in use" in caplog.text
    assert reaches(f"127.0.0.2:{two}")
    until(lambda: not listeners.accepting[0].missing)
    assert reaches(f"127.0.0.2:{one}")


def test_a_shortage_of_descriptors_refuses_a_change_and_does_nothing_else(
    listeners: Listeners, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = free_address()
    change(listeners, config(one=address))

    def none_left(descriptor: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", none_left)
    plan = listeners.plan(config(other=address))
    with pytest.raises(ProxyError, match=rf"^cannot listen on {address}: Too many open files$"):
        listeners.open(plan)
    assert reaches(address)


# -- addresses that come later


def test_who_is_patient_starts_without_an_address_that_is_not_there(listeners: Listeners) -> None:
    """Cases 312 and 349."""
    here = free_address()
    change(listeners, config(away=f"{NOT_OURS}:1080", here=here), patient=True)
    away, other = listeners.accepting
    assert (away.missing, away.addresses) == ([f"{NOT_OURS}:1080"], [])
    assert not other.missing
    assert reaches(here)


def test_a_name_server_that_is_silent_holds_nobody_up(
    listeners: Listeners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 349: its answer is taken when it comes."""
    monkeypatch.setattr("proxy.listeners.PATIENCE", 0.01)
    monkeypatch.setattr(opening, "RETRY", 0.01)
    answered = threading.Event()

    def answer(host: str, port: int, *_: object) -> list[object]:
        assert answered.wait(30)
        return [(std_socket.AF_INET, std_socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(opening, "_getaddrinfo", answer)
    slow, here = f"slow.example:{free_port()}", free_address()
    change(listeners, config(slow=slow, here=here), patient=True)
    assert reaches(here)
    (waiting, _) = listeners.accepting
    assert waiting.missing == [slow]
    assert waiting.opening
    assert waiting.opening.problem == "the name lookup takes its time"
    answered.set()
    until(lambda: not waiting.missing)
    assert reaches(slow.replace("slow.example", "127.0.0.1"))


def test_an_address_that_is_in_use_is_not_waited_for(listeners: Listeners) -> None:
    """Case 312: who has it may not go."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ProxyError, match="in use"):
            change(listeners, config(one=f"127.0.0.1:{other.getsockname()[1]}"), patient=True)


def test_a_reload_leaves_one_waiting_that_waits_and_adds_none(listeners: Listeners) -> None:
    """Case 312: a reload is read by somebody who can be told."""
    away, here = f"{NOT_OURS}:1080", free_address()
    change(listeners, config(away=away), patient=True)
    change(listeners, config(away=away, here=here))
    assert [server.missing for server in listeners.accepting] == [[away], []]
    change(listeners, config(renamed=away, here=here))
    assert [server.missing for server in listeners.accepting] == [[away], []]
    with pytest.raises(ProxyError, match=r"^cannot listen on 192\.0\.2\.1:1081: Cannot assign"):
        change(listeners, config(renamed=away, here=f"{NOT_OURS}:1081"))
    assert reaches(here)


def test_a_server_that_leaves_or_a_program_that_stops_waits_no_more(
    listeners: Listeners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 312: an address that comes during the drain is not opened."""
    monkeypatch.setattr(opening, "RETRY", 0.01)
    names(monkeypatch, left=[NOT_OURS], stays=[NOT_OURS])
    left, stays = f"left:{free_port()}", f"stays:{free_port()}"
    change(listeners, config(left=left, stays=stays), patient=True)
    servers = listeners.accepting
    change(listeners, config(stays=stays))
    listeners.stop()
    bound: list[object] = []
    monkeypatch.setattr(opening, "_bind", lambda *place: bound.append(place))
    gevent.sleep(0.05)  # several turns of who would look
    assert not bound
    assert [server.addresses for server in servers] == [[], []]
