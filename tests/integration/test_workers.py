"""
Several processes that serve as one: what holds for a program holds for all of them together.

DESIGN 1.13. Which of them serves a client is for the program to say, so no test expects a certain one.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.integration.certificates import Authority, Certificate
from tests.integration.programs import (
    REPOSITORY,
    Proxy,
    mixed_door,
    run_proxy,
    socks_door,
    upstream,
    web_door,
)
from tests.integration.test_control import ask, connections_of, ctl, metrics, said
from tests.wire import clients, targets
from tests.wire.clients import SocksRefused, Tunnel
from tests.wire.sockets import connect, free_port, read_exact
from tests.wire.socks5 import GREETING
from tests.wire.targets import Target
from tests.wire.waits import wait_until

MIB = 1 << 20


def run(doors: dict[str, Any] | None = None, workers: int = 2, **sections: Any) -> Proxy:
    proxy = {"workers": workers, "guard": "off", **sections.pop("proxy", {})}
    listeners = doors or {"socks": socks_door(auth="none")}
    return Proxy({"proxy": proxy, "listeners": listeners, **sections})


def come(stack: ExitStack, node: Proxy, target: Target, login: tuple[str, str] | None = None) -> Tunnel:
    return stack.enter_context(closing(clients.socks5(node.door("socks"), "127.0.0.1", target.port, login)))


def works(tunnel: Tunnel) -> bool:
    with suppress(OSError):
        tunnel.sendall(b"hello")
        return read_exact(tunnel, 5) == b"hello"
    return False


def workers_of(node: Proxy) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = ask(node, "/status")["workers"]
    return rows


def share(node: Proxy) -> Counter[str]:
    """Count the live connections of each worker."""
    return Counter(str(each["id"]).partition("-")[0] for each in connections_of(node))


def running(node: Proxy) -> set[int]:
    return {each["pid"] for each in workers_of(node) if each["state"] == "running"}


def files_of(pid: int) -> list[str]:
    folder = f"/proc/{pid}/fd"
    return [os.readlink(f"{folder}/{each}") for each in os.listdir(folder)]


def is_running(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):  # the latter, as it ends between two system calls
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False


# -- who serves whom


@pytest.mark.parametrize(("count", "most"), [(20, 2.0), (200, 1.3)])
def test_long_connections_are_spread_evenly(stack: ExitStack, echo: Target, count: int, most: float) -> None:
    node = stack.enter_context(run())

    def spread_evenly() -> bool:
        with ExitStack() as opened:
            tunnels = [come(opened, node, echo) for _ in range(count)]
            spread = share(node)
            assert sum(spread.values()) == count
            assert all(map(works, tunnels[:10]))
        wait_until(lambda: not share(node), "the last one to end")
        return len(spread) == 2 and max(spread.values()) / min(spread.values()) <= most

    # Where other programs have the cores, one of the workers may get none for a while: it is so mostly.
    assert sum(spread_evenly() for _ in range(5)) >= 3


def test_a_tls_session_is_resumed_at_whichever_worker_serves_the_next_connection(
    stack: ExitStack, authority: Authority, good: Certificate
) -> None:
    node = stack.enter_context(run({"mixed": mixed_door(auth="none", **good.settings)}))
    context = authority.client_context()
    session, resumed = None, []
    for _ in range(20):
        plain = connect(node.door("mixed"))
        tls = stack.enter_context(context.wrap_socket(plain, server_hostname="localhost", session=session))
        tls.sendall(GREETING)
        assert tls.recv(1) == b"\x05"  # and with it the ticket
        resumed.append(tls.session_reused)
        session = session or tls.session
    assert resumed == [False] + 19 * [True]
    assert len(share(node)) == 2


def test_a_worker_that_is_killed_takes_only_its_own_and_is_replaced(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run())
    tunnels = [come(stack, node, echo) for _ in range(200)]
    assert all(map(works, tunnels))
    first, second = workers_of(node)
    before = metrics(node)
    of_first = share(node)[str(first["id"])]
    os.kill(first["pid"], signal.SIGKILL)
    line = node.wait_for_log(f"worker {first['id']} ended unexpectedly")
    assert "killed by SIGKILL, as where memory runs out: dmesg knows" in line
    assert sum(map(works, tunnels)) == 200 - of_first
    wait_until(lambda: [each["state"] for each in workers_of(node)] == ["running"] * 2, "another one")
    assert {each["id"] for each in workers_of(node)} == {second["id"], 3}
    assert all(works(come(stack, node, echo)) for _ in range(10))
    after = metrics(node)
    fell = [name for name, value in before.items() if "_total" in name[0] and after.get(name, 0) < value]
    assert fell == []


def test_those_whom_a_worker_refused_are_told_when_it_is_gone(stack: ExitStack) -> None:
    node = stack.enter_context(run())
    port = free_port()
    target = f"127.0.0.1:{port}"
    with pytest.raises(SocksRefused):
        clients.socks5(node.door("socks"), "127.0.0.1", port)

    def told() -> list[str]:
        return [each["target"] for each in ask(node, "/refusals")["refusals"]]

    wait_until(lambda: told() == [target], "the refusal")
    said(ctl(node, "upgrade"))
    wait_until(lambda: len(workers_of(node)) == 2, "the old workers to end")
    assert told() == [target]
    with pytest.raises(SocksRefused):
        clients.socks5(node.door("socks"), "127.0.0.1", port)
    wait_until(lambda: told() == [target, target], "the second refusal")
    for each in workers_of(node):
        os.kill(each["pid"], signal.SIGKILL)
    wait_until(lambda: [each["state"] for each in workers_of(node)] == ["running"] * 2, "other ones")
    assert told() == [target, target]


def test_where_memory_runs_out_a_worker_goes_before_the_supervisor(stack: ExitStack, echo: Target) -> None:
    """By proc_pid_oom_score_adj(5) the larger number goes first; a worker is replaced, a supervisor not."""

    def adjusted(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    node = stack.enter_context(run())
    for pid in running(node):
        assert adjusted(pid) == min(adjusted(node.pid) + 100, 1000)


def test_one_that_hangs_is_killed_and_replaced(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run())
    stopped = workers_of(node)[0]
    os.kill(stopped["pid"], signal.SIGSTOP)
    assert works(come(stack, node, echo))
    node.wait_for_log(f"worker {stopped['id']} has not answered for 10 s: it is killed")
    wait_until(lambda: 3 in [each["id"] for each in workers_of(node)], "another one")
    assert works(come(stack, node, echo))


def starting(node: Proxy, which: int = 0) -> int:
    """Have a worker replaced, and stop the new one before it serves; returns its process id."""
    known = {each["pid"] for each in workers_of(node)}
    os.kill(workers_of(node)[which]["pid"], signal.SIGKILL)
    (pid,) = wait_until(lambda: children(node.pid) - known, "another one")
    # Until it is another program, who started it waits for that.
    wait_until(lambda: b"PROXY_SERVER_WORKER=" in Path(f"/proc/{pid}/environ").read_bytes(), "it to begin")
    os.kill(pid, signal.SIGSTOP)
    assert [each["state"] for each in workers_of(node) if each["pid"] == pid] == ["starting"]
    return int(pid)


def children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_what_all_are_told_does_not_end_one_that_starts(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run())
    pid = starting(node)
    node.signal(signal.SIGHUP)
    node.wait_for_log("the configuration is unchanged")
    ctl(node, "forgive", "192.0.2.1")
    assert ctl(node, "kill", "3-1").returncode == 1
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: pid in running(node), "it to serve")
    assert node.log.count("ended unexpectedly") == 1
    assert "internal error" not in node.log


def test_one_that_dies_as_it_starts_is_told_of_once(stack: ExitStack) -> None:
    node = stack.enter_context(run())
    os.kill(starting(node), signal.SIGKILL)
    wait_until(lambda: len(running(node)) == 2, "another one")
    assert node.log.count("error") == node.log.count("ended unexpectedly") == 2


def test_one_that_is_not_needed_any_more_as_it_starts_ends_without_a_word(stack: ExitStack) -> None:
    node = stack.enter_context(run(workers=3))
    pid = starting(node, 2)
    said(ctl(node, "set", "proxy.workers", "2"))
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not is_running(pid) and len(workers_of(node)) == 2, "it to end")
    assert node.log.count("error") == 1


def test_one_that_cannot_be_started_for_now_is_started_later(stack: ExitStack) -> None:
    node = stack.enter_context(run())
    dead = workers_of(node)[0]["pid"]
    allow_files(node, 5)  # it has more, but gets no other
    os.kill(dead, signal.SIGKILL)
    node.wait_for_log("cannot start a worker: Too many open files")
    allow_files(node, 4096)
    wait_until(lambda: len(running(node)) == 2, "another one")
    assert "internal error" not in node.log


def allow_files(node: Proxy, most: int) -> None:
    subprocess.run(["prlimit", f"--nofile={most}:", "-p", str(node.pid)], check=True, timeout=30)


# -- what holds for all


def test_a_full_listener_is_full_whoever_serves(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run({"socks": socks_door(auth="none", max_connections=10)}))
    tunnels = [come(stack, node, echo) for _ in range(10)]
    waiting = stack.enter_context(connect(node.door("socks")))
    waiting.sendall(GREETING)
    node.wait_for_log("socks is full: its max_connections are in use (10)")
    assert sum(share(node).values()) == 10
    tunnels[0].close()
    assert read_exact(waiting, 2) == b"\x05\x00"


def test_connections_are_limited_together(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run(limits={"fair": {"per": "client", "connections": 5}}))
    made: list[Tunnel] = []
    refused: list[SocksRefused] = []

    def try_it() -> None:
        try:
            made.append(come(stack, node, echo))
        except SocksRefused as exc:
            refused.append(exc)

    attempts = [threading.Thread(target=try_it) for _ in range(16)]
    for each in attempts:
        each.start()
    for each in attempts:
        each.join(30)
    assert (len(made), len(refused)) == (5, 11)
    (row,) = ask(node, "/limits")["accounts"]
    assert row["live"] == 5
    # Those of a worker that is gone have left.
    os.kill(workers_of(node)[0]["pid"], signal.SIGKILL)
    node.wait_for_log("ended unexpectedly")
    gone = 5 - sum(share(node).values())
    wait_until(lambda: 3 in [each["id"] for each in workers_of(node)], "another one")
    for _ in range(gone):
        come(stack, node, echo)
    with pytest.raises(SocksRefused):
        come(stack, node, echo)


def test_a_limit_that_comes_counts_those_who_live(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run())
    for _ in range(6):
        come(stack, node, echo)
    said(ctl(node, "set", "limits.fair.per", "client", "limits.fair.connections", "6"))
    assert [row["live"] for row in ask(node, "/limits")["accounts"]] == [6]
    with pytest.raises(SocksRefused):
        come(stack, node, echo)


def test_a_bandwidth_is_shared_out_among_workers(stack: ExitStack) -> None:
    source = stack.enter_context(Target(targets.source(bytes(256 * MIB))))
    node = stack.enter_context(run(limits={"fair": {"per": "client", "bandwidth": "4M"}}))
    tunnels = [come(stack, node, source) for _ in range(6)]
    taken = [0] * len(tunnels)

    def take(number: int) -> None:
        with suppress(OSError):
            while data := tunnels[number].recv(1 << 16):
                taken[number] += len(data)

    for number in range(len(tunnels)):
        threading.Thread(target=take, args=[number], daemon=True).start()
    wait_until(lambda: min(taken) > 0, "all to get something")
    began = monotonic()
    wait_until(lambda: monotonic() - began > 2, "them to have their shares")
    began, before = monotonic(), taken[:]
    wait_until(lambda: monotonic() - began > 4, "a while")
    seconds, moved = monotonic() - began, [now - then for now, then in zip(taken, before, strict=True)]
    # The busiest machine can only make it less.
    assert sum(moved) <= 1.15 * 4 * MIB * seconds
    assert sum(moved) >= 0.5 * 4 * MIB * seconds
    for tunnel in tunnels:
        tunnel.close()


def test_failed_logins_count_wherever_they_were_judged(stack: ExitStack, echo: Target) -> None:
    door = socks_door(client_address="proxy_protocol", trusted="127.0.0.0/8")
    users = {"alice": "wonderland"}
    node = stack.enter_context(run({"socks": door}, auth_users=users, proxy={"login_penalty": "5s"}))

    def log_in(password: str) -> bool:
        with suppress(OSError), closing(connect(node.door("socks"))) as sock:
            sock.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 1080\r\n\x05\x01\x02")
            read_exact(sock, 2)
            sock.sendall(b"\x01\x05alice" + bytes([len(password)]) + password.encode())
            return read_exact(sock, 2) == b"\x01\x00"
        return False

    assert log_in("wonderland")
    for _ in range(5):
        assert not log_in("wrong")
    # As soon as all have heard of it, the right one is not judged, wherever it comes to.
    wait_until(lambda: not any(log_in("wonderland") for _ in range(6)), "all to know of it")
    told = ask(node, "/penalties")
    assert [each["client"] for each in told["penalties"]] == ["192.0.2.1"]
    said(ctl(node, "forgive", "192.0.2.1"))
    assert all(log_in("wonderland") for _ in range(6))


def test_what_one_finds_out_of_an_upstream_all_know(stack: ExitStack, echo: Target) -> None:
    dead = free_port()
    home = {"home": upstream("socks5", ("127.0.0.1", dead), retry_count=0)}
    door = socks_door(auth="none", upstream="home")
    node = stack.enter_context(run({"socks": door}, upstreams=home))
    with pytest.raises(SocksRefused):
        come(stack, node, echo)
    wait_until(
        lambda: [each["health"] for each in ask(node, "/status")["upstreams"]] == ["down"], "it to be told"
    )
    assert metrics(node)["proxy_upstream_up", frozenset({"socks", "home"})] == 0


# -- changes


def test_a_change_is_made_by_all(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run())
    old = [come(stack, node, echo) for _ in range(4)]
    other = web_door(auth="none")
    address = other["listen_addr"]
    said(ctl(node, "set", "listeners.web.protocol", "websocket", "listeners.web.listen_addr", address))
    door = ("127.0.0.1", int(address.rpartition(":")[2]))
    for _ in range(6):
        with closing(clients.websocket(door, "127.0.0.1", echo.port)) as tunnel:
            assert works(tunnel)
    said(ctl(node, "unset", "listeners.web"))
    with pytest.raises(OSError):  # noqa: PT011
        connect(door)
    assert all(map(works, old))


def test_what_one_of_them_cannot_do_none_does(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run())
    done = ctl(node, "set", "listeners.socks.tls_cert", "/nowhere", "listeners.socks.tls_key", "/nowhere")
    assert done.returncode == 1
    assert all(works(come(stack, node, echo)) for _ in range(6))


def test_a_listener_that_is_in_the_way_of_its_successor_gives_way_in_all(
    stack: ExitStack, echo: Target
) -> None:
    port = free_port()
    node = stack.enter_context(run({"socks": socks_door(auth="none", listen_addr=f"127.0.0.1:{port}")}))
    kept = come(stack, node, echo)
    said(ctl(node, "set", "listeners.socks.listen_addr", f":{port}"))
    assert all(works(come(stack, node, echo)) for _ in range(6))
    said(ctl(node, "set", "listeners.socks.listen_addr", f"127.0.0.1:{port}"))
    assert all(works(come(stack, node, echo)) for _ in range(6))
    assert works(kept)
    assert "internal error" not in node.log


def test_there_may_be_more_workers_and_fewer(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run(proxy={"drain_timeout": "20s"}))
    tunnels = [come(stack, node, echo) for _ in range(8)]
    said(ctl(node, "set", "proxy.workers", "3"))
    wait_until(lambda: [each["state"] for each in workers_of(node)] == ["running"] * 3, "three")
    said(ctl(node, "set", "proxy.workers", "2"))
    said(ctl(node, "rollback"))
    said(ctl(node, "set", "proxy.workers", "2"))
    assert all(map(works, tunnels))


def test_one_worker_alone_keeps_its_supervisor_and_more_come_back_at_once(
    stack: ExitStack, echo: Target
) -> None:
    node = stack.enter_context(run())
    told = said(ctl(node, "set", "proxy.workers", "1"))
    assert "one worker serves from now on, but its supervisor ends at the next restart only" in told
    wait_until(lambda: len(workers_of(node)) == 1, "one worker")
    assert "note" not in said(ctl(node, "set", "proxy.idle_timeout", "9s"))
    assert "note" not in said(ctl(node, "set", "proxy.workers", "2"))
    wait_until(lambda: len(running(node)) == 2, "two workers")
    assert works(come(stack, node, echo))


def test_one_process_gets_workers_at_the_next_start_and_says_so(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run(workers=1))
    assert "proxy.workers takes effect at the next start" in said(ctl(node, "set", "proxy.workers", "2"))
    assert children(node.pid) == set()
    assert "note" not in said(ctl(node, "set", "proxy.workers", "1"))
    assert works(come(stack, node, echo))


def test_three_deaths_after_a_change_take_it_back(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run())
    before = node.config_path.read_text()
    said(ctl(node, "set", "proxy.idle_timeout", "7s"))
    dead: set[int] = set()
    for _ in range(3):
        (pid,) = wait_until(
            lambda: [e["pid"] for e in workers_of(node) if e["state"] == "running" and e["pid"] not in dead][
                :1
            ],
            "a worker",
        )
        os.kill(pid, signal.SIGKILL)
        dead.add(pid)
    node.wait_for_log("3 workers ended within 10 s of the last change of the configuration: it is taken back")
    node.wait_for_log("back to version 1")
    wait_until(lambda: node.config_path.read_text() == before, "the file to be as before")
    wait_until(lambda: [each["state"] for each in workers_of(node)] == ["running"] * 2, "two workers")
    assert works(come(stack, node, echo))


def test_deaths_speak_against_a_change_only(stack: ExitStack) -> None:
    node = stack.enter_context(run())
    node.signal(signal.SIGHUP)
    node.wait_for_log("the configuration is unchanged")
    dead: set[int] = set()
    for _ in range(3):
        dead.add(workers_of(node)[-1]["pid"])
        os.kill(workers_of(node)[-1]["pid"], signal.SIGKILL)
        wait_until(lambda: len(running(node) - dead) == 2, "another one")
    assert "taken back" not in node.log


def test_an_operator_ends_a_connection_by_its_name(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run())
    tunnels = [come(stack, node, echo) for _ in range(4)]
    names = [str(each["id"]) for each in connections_of(node)]
    assert len(set(names)) == 4
    assert said(ctl(node, "kill", names[0])) == f"connection {names[0]} is ended\n"
    wait_until(lambda: sum(map(works, tunnels)) == 3, "one to be ended")
    assert ctl(node, "kill", "9-9").returncode == 1
    assert ctl(node, "kill", "../status").returncode == 2


def test_a_log_that_was_moved_is_left_by_all(stack: ExitStack, echo: Target, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    node = stack.enter_context(run(proxy={"access_log": str(path)}))
    for _ in range(6):
        assert works(come(stack, node, echo))
    path.rename(tmp_path / "access.log.1")
    node.signal(signal.SIGHUP)
    wait_until(path.exists, "a new file")
    wait_until(
        lambda: all(
            str(path) in [os.readlink(f"/proc/{w['pid']}/fd/{fd}") for fd in fds(w["pid"])]
            for w in workers_of(node)
        ),
        "all to write to it",
    )


def fds(pid: int) -> list[str]:
    return os.listdir(f"/proc/{pid}/fd")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_listener_that_was_removed_is_told_of_until_its_last_connection_ends(
    stack: ExitStack, echo: Target, workers: int
) -> None:
    doors = {"socks": socks_door(auth="none"), "stays": socks_door(auth="none")}
    node = stack.enter_context(run(doors, workers=workers))
    tunnel = come(stack, node, echo)
    said(ctl(node, "unset", "listeners.socks"))
    assert works(tunnel)

    def told() -> list[tuple[str, int, int]]:
        return [
            (each["name"], len(each["addresses"]), each["live"]) for each in ask(node, "/status")["listeners"]
        ]

    assert told() == [("stays", 1, 0), ("socks", 0, 1)]
    assert metrics(node)["proxy_connections", frozenset({"socks"})] == 1
    tunnel.close()
    wait_until(lambda: told() == [("stays", 1, 0)], "the last connection to end")


# -- the end


def test_a_stop_lets_all_finish(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run(proxy={"drain_timeout": "30s"}))
    tunnels = [come(stack, node, echo) for _ in range(6)]
    pids = [each["pid"] for each in workers_of(node)]
    node.signal(signal.SIGTERM)
    node.wait_for_log("stopping: live connections (6) have 30 s to finish")
    assert all(map(works, tunnels))
    for tunnel in tunnels:
        tunnel.close()
    assert node.wait(20) == 0
    assert not any(map(is_running, pids))


def test_a_second_signal_ends_all_at_once(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run(proxy={"drain_timeout": "60s"}))
    come(stack, node, echo)
    node.signal(signal.SIGTERM)
    node.wait_for_log("stopping: live connections (1)")
    node.signal(signal.SIGTERM)
    assert node.wait(20) == 0


def test_a_second_signal_in_the_delay_ends_all_at_once_too(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run(proxy={"drain_delay": "1h", "drain_timeout": "60s"}))
    come(stack, node, echo)
    node.signal(signal.SIGTERM)
    node.wait_for_log("stopping in 3600 s")
    node.signal(signal.SIGTERM)
    assert node.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_workers_end_with_their_supervisor_however_it_went(
    stack: ExitStack, echo: Target, number: int
) -> None:
    node = stack.enter_context(run())
    come(stack, node, echo)
    pids = [each["pid"] for each in workers_of(node)]
    os.kill(node.pid, number)
    node.process.wait(20)
    wait_until(lambda: not any(map(is_running, pids)), "the workers to end")
    node.starts = False  # so that its exit code is nobody's business


def test_an_address_that_is_taken_ends_the_start_with_a_line(stack: ExitStack) -> None:
    holder = stack.enter_context(run())
    address = holder.config["listeners"]["socks"]["listen_addr"]
    other = Proxy(
        {"proxy": {"workers": 2}, "listeners": {"socks": socks_door(listen_addr=address)}}, starts=False
    )
    with other:
        assert other.wait(30) == 1
        assert other.log.count("\n") == 1
        assert f"cannot listen on {address}" in other.log


def test_nobody_is_a_worker_by_mistake() -> None:
    done = run_proxy("-version", environment={"PROXY_SERVER_WORKER": "0,1"})
    assert done.returncode == 1
    assert b"PROXY_SERVER_WORKER is set, which is for processes that it starts itself" in done.stderr


def test_every_door_is_served_by_all(stack: ExitStack, echo: Target) -> None:
    node = stack.enter_context(run({"mixed": mixed_door(auth="none"), "web": web_door(auth="none")}))
    for _ in range(4):
        with closing(clients.websocket(node.door("web"), "127.0.0.1", echo.port)) as tunnel:
            assert works(tunnel)
        with closing(clients.socks5(node.door("mixed"), "127.0.0.1", echo.port)) as tunnel:
            assert works(tunnel)


# -- another program in its place


def program_of(folder: Path) -> Path:
    """Copy the program, so that a test can change it."""
    copy = folder / "program"
    shutil.copytree(REPOSITORY / "proxy", copy / "proxy", ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def upgradable(stack: ExitStack, folder: Path, **settings: Any) -> Proxy:
    proxy = {"workers": 2, "guard": "off", "drain_timeout": "30s", **settings}
    environment = {"PYTHONPATH": str(program_of(folder))}
    listeners = {"socks": socks_door(auth="none")}
    node = Proxy({"proxy": proxy, "listeners": listeners}, environment=environment)
    return stack.enter_context(node)


def set_version(folder: Path, text: str) -> None:
    (folder / "program" / "proxy" / "__init__.py").write_text(text)


def test_an_upgrade_under_load_loses_nobody(stack: ExitStack, echo: Target, tmp_path: Path) -> None:
    node = upgradable(stack, tmp_path)
    tunnels = [come(stack, node, echo) for _ in range(500)]
    assert all(map(works, tunnels))
    before, pid = metrics(node), node.pid
    old = {each["id"] for each in workers_of(node)}
    is_over = threading.Event()
    failed: list[str] = []
    visits: list[int] = []

    def visit() -> None:
        while not is_over.is_set():
            try:
                with closing(clients.socks5(node.door("socks"), "127.0.0.1", echo.port, timeout=60)) as one:
                    one.sendall(b"x")
                    read_exact(one, 1)
                    visits.append(1)
            except OSError as exc:
                failed.append(str(exc))

    visitors = [threading.Thread(target=visit, daemon=True) for _ in range(4)]
    for each in visitors:
        each.start()
    try:
        set_version(tmp_path, '__version__ = "9.9.9"\n')
        assert "to 9.9.9" in said(ctl(node, "upgrade"))
        assert all(map(works, tunnels))
        so_far = len(visits)
        wait_until(lambda: len(visits) > so_far + 20, "new clients to be served")
    finally:
        is_over.set()
        for each in visitors:
            each.join(60)
    assert failed == []
    assert node.pid == pid
    assert node.process.poll() is None
    status = ask(node, "/status")
    assert status["program"] == "proxy-server 9.9.9"
    assert status["version"]["number"] == 1
    states = {each["id"]: each["state"] for each in status["workers"]}
    assert {number: states[number] for number in old} == dict.fromkeys(old, "draining")
    assert sorted(states.values()) == ["draining"] * 2 + ["running"] * 2
    after = metrics(node)
    fell = [name for name, value in before.items() if "_total" in name[0] and after.get(name, 0) < value]
    assert fell == []
    for tunnel in tunnels:
        assert works(tunnel)
        tunnel.close()
    wait_until(lambda: len(workers_of(node)) == 2, "the old workers to end")
    # And it is as it was: it changes, and goes on from there.
    said(ctl(node, "set", "proxy.idle_timeout", "9s"))
    assert works(come(stack, node, echo))
    set_version(tmp_path, '__version__ = "9.9.10"\n')
    assert "from proxy-server 9.9.9 to 9.9.10" in said(ctl(node, "upgrade"))


IN_A_WORKER = '__version__ = "9"\nimport os\nif os.environ.get("PROXY_SERVER_WORKER")'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("raise RuntimeError('broken')\n", "broken"),
        (
            '__version__ = "9"\nimport os\nif os.environ.get("PROXY_SERVER_WORKER"): raise SystemExit(3)\n',
            "worker",
        ),
    ],
    ids=["a program that does not start", "a worker that does not start"],
)
def test_a_program_that_does_not_get_ready_changes_nothing(
    stack: ExitStack, echo: Target, tmp_path: Path, text: str, why: str
) -> None:
    node = upgradable(stack, tmp_path)
    tunnels = [come(stack, node, echo) for _ in range(10)]
    before = workers_of(node)
    set_version(tmp_path, text)
    done = ctl(node, "upgrade")
    assert done.returncode == 1
    assert b"does not get ready, so this one continues" in done.stderr
    assert why in done.stderr.decode()
    assert [each["id"] for each in workers_of(node)] == [each["id"] for each in before]
    assert all(map(works, tunnels))
    assert works(come(stack, node, echo))


# A program that cannot be started in its own place as long as a file is there, though it could be tried.
NOT_EXECUTABLE = """
import os
_execve = os.execve
def execve(*given):
    if os.path.exists({flag!r}):
        raise OSError(8, os.strerror(8))
    _execve(*given)
os.execve = execve
"""


def test_a_program_that_cannot_be_executed_after_all_changes_nothing(
    stack: ExitStack, echo: Target, tmp_path: Path
) -> None:
    program, flag = program_of(tmp_path), tmp_path / "flag"
    with (program / "proxy" / "__init__.py").open("a") as file:
        file.write(NOT_EXECUTABLE.format(flag=str(flag)))
    flag.touch()
    node = stack.enter_context(
        Proxy(
            {
                "proxy": {"workers": 3, "guard": "off", "drain_timeout": "30s"},
                "listeners": {"socks": socks_door(auth="none")},
                "limits": {"everybody": {"per": "all", "connections": 25}},
            },
            environment={"PYTHONPATH": str(program)},
        )
    )
    starting(node)  # it gives way, but is to be replaced, whatever comes of the upgrade
    tunnels = [come(stack, node, echo) for _ in range(20)]
    done = ctl(node, "upgrade")
    assert done.returncode == 1
    assert done.stderr.decode() == (f"the upgrade failed: {sys.executable}: Exec format error\n")
    wait_until(lambda: len(running(node)) == 3, "the third worker")
    assert all(map(works, tunnels))
    more = [come(stack, node, echo) for _ in range(5)]
    assert all(map(works, more))
    with pytest.raises(SocksRefused):  # as it still counts those of all
        come(stack, node, echo)
    flag.unlink()
    assert "upgraded from" in said(ctl(node, "upgrade"))
    assert all(map(works, tunnels))
    assert "Traceback" not in node.log


def test_an_upgrade_leaves_no_process_behind_that_was_starting(stack: ExitStack, tmp_path: Path) -> None:
    node = upgradable(stack, tmp_path)
    pid = starting(node)
    said(ctl(node, "upgrade"))
    wait_until(lambda: not is_running(pid), "it to end")
    wait_until(lambda: children(node.pid) == running(node), "two workers")


def test_an_upgrade_without_a_worker_to_go_on_with_lives_on(
    stack: ExitStack, echo: Target, tmp_path: Path
) -> None:
    node = upgradable(stack, tmp_path)
    starting(node)
    starting(node)
    threading.Thread(target=ctl, args=[node, "upgrade"], daemon=True).start()
    node.wait_for_log("its workers take over")
    before = children(node.pid)
    os.kill(wait_until(lambda: children(node.pid) - before, "a new worker").pop(), signal.SIGKILL)
    wait_until(lambda: node.log.count("the workers serve") == 2, "the rest")

    def are_two() -> bool:
        with suppress(OSError):  # the new program opens its control socket when it serves
            return len(running(node)) == 2
        return False

    wait_until(are_two, "another one")
    assert works(come(stack, node, echo))


def test_an_upgrade_goes_on_with_a_supervisor_though_one_process_is_wanted_by_now(
    stack: ExitStack, echo: Target, tmp_path: Path
) -> None:
    node = upgradable(stack, tmp_path)
    tunnel = come(stack, node, echo)
    said(ctl(node, "set", "proxy.workers", "1"))
    assert "upgraded from" in said(ctl(node, "upgrade"))
    assert len(running(node)) == 1
    assert works(tunnel)
    assert works(come(stack, node, echo))
    # So there may be more again, and at once.
    assert "note" not in said(ctl(node, "set", "proxy.workers", "2"))
    wait_until(lambda: len(running(node)) == 2, "two workers")


def test_a_port_that_the_kernel_has_chosen_stays_in_an_upgrade(
    stack: ExitStack, echo: Target, tmp_path: Path
) -> None:
    node = upgradable(stack, tmp_path)
    for name, address in (("one", "127.0.0.1:0"), ("two", "127.0.0.1:0"), ("three", ":0")):
        where = f"listeners.{name}"
        said(ctl(node, "set", f"{where}.protocol", "socks5", f"{where}.listen_addr", address))

    def addresses() -> dict[str, list[str]]:
        return {each["name"]: each["addresses"] for each in ask(node, "/status")["listeners"]}

    before = addresses()
    said(ctl(node, "upgrade"))
    assert addresses() == before
    for name in ("one", "two", "three"):
        door = ("127.0.0.1", int(before[name][0].rpartition(":")[2]))
        with closing(clients.socks5(door, "127.0.0.1", echo.port)) as tunnel:
            assert works(tunnel)


def test_a_stop_in_the_midst_of_an_upgrade_is_obeyed(stack: ExitStack, tmp_path: Path) -> None:
    # A log that nobody reads: the program waits a second for it before it is another one.
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    environment = {"PYTHONPATH": str(program_of(tmp_path))}
    config = {"proxy": {"workers": 2}, "listeners": {"socks": socks_door(auth="none")}}
    node = Proxy(config, environment=environment, stderr=writer, starts=False)
    stack.enter_context(node)
    os.close(writer)
    node.wait_for_control()
    fill(reader)
    with closing(connect((str(node.control_socket), 0))) as sock:
        sock.sendall(b"POST /upgrade HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        assert b" 202 " in sock.recv(100)
    began = monotonic()
    wait_until(lambda: monotonic() - began > 0.8, "it to be under way")
    node.signal(signal.SIGTERM)
    threading.Thread(target=read_all, args=[os.dup(reader)], daemon=True).start()
    assert node.wait(20) == 0


def fill(reader: int) -> None:
    """Fill a pipe, by an end of our own, so that the other writers wait."""
    own = os.open(f"/proc/self/fd/{reader}", os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(own, bytes(4096))
    os.close(own)


def read_all(reader: int) -> None:
    while os.read(reader, 1 << 16):
        pass


def test_limits_count_those_of_the_program_before(stack: ExitStack, echo: Target, tmp_path: Path) -> None:
    node = upgradable(stack, tmp_path)
    said(ctl(node, "set", "limits.fair.per", "client", "limits.fair.connections", "5"))
    tunnels = [come(stack, node, echo) for _ in range(4)]
    said(ctl(node, "upgrade"))
    assert works(come(stack, node, echo))
    with pytest.raises(SocksRefused):
        come(stack, node, echo)
    tunnels[0].close()
    wait_until(lambda: [row["live"] for row in ask(node, "/limits")["accounts"]] == [4], "one to have left")
    assert works(come(stack, node, echo))


def test_an_upgrade_is_refused_where_something_would_be_lost(
    stack: ExitStack, echo: Target, tmp_path: Path
) -> None:
    node = upgradable(stack, tmp_path)
    said(ctl(node, "set", "--volatile", "proxy.idle_timeout", "9s"))
    done = ctl(node, "upgrade")
    assert done.returncode == 1
    assert b"volatile" in done.stderr


def test_an_upgrade_is_refused_where_the_file_says_something_else(
    stack: ExitStack, echo: Target, tmp_path: Path
) -> None:
    node = upgradable(stack, tmp_path, reload_interval="0")
    text = node.config_path.read_text()
    # In its way would be what we have ourselves, so the new program could not listen.
    node.config_path.write_text(text.replace("listen_addr = 127.0.0.1:", "listen_addr = :"))
    done = ctl(node, "upgrade")
    assert done.returncode == 1
    assert b"has changes that are not in effect: reload it first" in done.stderr
    assert works(come(stack, node, echo))
    said(ctl(node, "reload"))
    assert "upgraded from" in said(ctl(node, "upgrade"))
    assert works(come(stack, node, echo))


def test_one_process_is_not_upgraded_but_restarted(stack: ExitStack) -> None:
    node = stack.enter_context(run(workers=1))
    done = ctl(node, "upgrade")
    assert done.returncode == 1
    assert b"there are no workers that could take over" in done.stderr
