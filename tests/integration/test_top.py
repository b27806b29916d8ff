"""``ctl top`` in a real terminal: what is to be seen, what keys do, and that the terminal is given back."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.programs import COMMAND, REPOSITORY, Proxy, socks_door
from tests.integration.terminal import PROMPT, Terminal
from tests.wire import clients, targets
from tests.wire.targets import Target
from tests.wire.waits import wait_until

USERS = {"alice": "wonderland", "漢字": "x", "שלום": "y"}
ENVIRONMENT = f"PYTHONPATH={REPOSITORY}"


@pytest.fixture
def node() -> Iterator[Proxy]:
    with Proxy({"listeners": {"socks": socks_door()}, "auth_users": USERS}) as node:
        yield node


@pytest.fixture
def tunnels(node: Proxy) -> Iterator[dict[str, clients.Tunnel]]:
    """Connect each user."""
    with Target(targets.echo) as target, contextlib.ExitStack() as stack:
        tunnels: dict[str, clients.Tunnel] = {}
        for name, password in USERS.items():
            tunnel = clients.socks5(node.door("socks"), "localhost", target.port, (name, password))
            stack.callback(tunnel.sock.close)
            tunnels[name] = tunnel
        yield tunnels


@contextlib.contextmanager
def top_of(node: Proxy, columns: int = 100, *, environment: str = "") -> Iterator[Terminal]:
    with Terminal(columns) as terminal:
        command = [*COMMAND, "ctl", "-c", str(node.config_path), "top"]
        terminal.run(*command, environment=f"{ENVIRONMENT} {environment}")
        terminal.wait_for("q quit", "socks5")
        yield terminal


def settings_of(terminal: Terminal) -> bytes:
    """Ask how the terminal is set."""
    tty = terminal.tmux("display", "-p", "#{pane_tty}").strip()
    return subprocess.run(["stty", "-g", "-F", tty], stdout=subprocess.PIPE, check=True, timeout=30).stdout


def process_of(terminal: Terminal) -> int:
    shell = terminal.tmux("display", "-p", "#{pane_pid}").strip()
    (process,) = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
    return int(process)


def check_is_given_back(terminal: Terminal, before: bytes) -> None:
    terminal.wait_for(PROMPT.strip())
    wait_until(lambda: settings_of(terminal) == before, "its settings", 30)
    assert not terminal.has("alternate_on")
    assert terminal.has("cursor_flag")
    assert terminal.has("wrap_flag")


def test_connections_are_seen_filtered_and_ended(node: Proxy, tunnels: dict[str, clients.Tunnel]) -> None:
    with top_of(node) as terminal:
        screen = terminal.wait_for("alice", "漢字", "שלום", "3 live")
        assert f"127.0.0.1:{node.door('socks')[1]}" in screen
        terminal.press("/")
        terminal.type("alice")
        terminal.press("Enter")
        terminal.wait_for("1 of 3, filter alice")
        terminal.wait_until_gone("漢字")
        terminal.press("Down", "k")
        terminal.wait_for("end connection", "? y or n")
        terminal.press("n")
        terminal.wait_for("nothing was ended")
        tunnels["alice"].sendall(b"still there")
        assert tunnels["alice"].recv(5) == b"still"
        terminal.press("k", "y")
        terminal.wait_for("is ended")
        tunnels["alice"].recv(6)
        with contextlib.suppress(ConnectionResetError):
            assert tunnels["alice"].recv(1) == b""
        terminal.press("Escape", "q")
        terminal.wait_until_gone("q quit")


def test_they_are_grouped(node: Proxy, tunnels: dict[str, clients.Tunnel]) -> None:
    with top_of(node) as terminal:
        terminal.press("g", "g")
        terminal.wait_for("CLIENT", "LIVE", "group: client")
        line = next(line for line in terminal.wait_for(" 127.0.0.1  ").splitlines() if " 127.0.0.1 " in line)
        assert line.split()[:2] == ["127.0.0.1", "3"]
        terminal.press("Down", "Enter")
        terminal.wait_for("3 of 3, client 127.0.0.1", "alice")


@pytest.mark.parametrize("how", ["q", "Ctrl-C", "SIGTERM", "SIGHUP"])
def test_the_terminal_is_given_back_however_it_ends(node: Proxy, how: str) -> None:
    with Terminal() as terminal:
        before = settings_of(terminal)
        terminal.run(*COMMAND, "ctl", "-c", str(node.config_path), "top", environment=ENVIRONMENT)
        terminal.wait_for("q quit", "socks5")
        assert terminal.has("alternate_on")
        if how == "q":
            terminal.press("q")
        elif how == "Ctrl-C":
            terminal.press("C-c")
        else:
            os.kill(process_of(terminal), signal.Signals[how])
        terminal.wait_until_gone("q quit")
        check_is_given_back(terminal, before)


def test_it_is_stopped_and_goes_on(node: Proxy) -> None:
    with Terminal() as terminal:
        before = settings_of(terminal)
        terminal.run(*COMMAND, "ctl", "-c", str(node.config_path), "top", environment=ENVIRONMENT)
        terminal.wait_for("q quit", "socks5")
        terminal.press("C-z")
        terminal.wait_until_gone("q quit")
        check_is_given_back(terminal, before)
        terminal.run("fg")
        terminal.wait_for("q quit", "socks5")
        assert terminal.has("alternate_on")
        terminal.press("q")
        terminal.wait_until_gone("q quit")
        check_is_given_back(terminal, before)


def test_it_follows_the_size_of_the_terminal(node: Proxy, tunnels: dict[str, clients.Tunnel]) -> None:
    with top_of(node) as terminal:
        terminal.wait_for("DOWN/S", "alice")
        for columns, lines in ((40, 12), (160, 50)):
            terminal.resize(columns, lines)
            terminal.wait_for("q quit" if columns > 40 else "TARGET", "DOWN/S")
            assert len(terminal.screen().splitlines()) == lines
        terminal.wait_for("RECEIVED", "h help")


def test_a_server_that_is_started_anew_is_looked_at_again(node: Proxy) -> None:
    with top_of(node) as terminal:
        node.stop()
        terminal.wait_for("no answer, asking again: no server is found", "socks5")
        node.start()
        terminal.wait_for("the server was restarted")
        terminal.wait_until_gone("no answer")
        terminal.press("q")


def test_no_color_is_heeded(node: Proxy, tunnels: dict[str, clients.Tunnel]) -> None:
    with top_of(node, environment="NO_COLOR=1") as terminal:
        terminal.wait_for("alice")
        codes = re.findall(r"\x1b\[([0-9;]*)m", terminal.screen(colours=True))
        assert codes
        assert {each for code in codes for each in code.split(";")} <= {
            "",
            "0",
            "1",
            "2",
            "4",
            "7",
            "39",
            "49",
        }


def test_one_picture_goes_into_a_pipe(node: Proxy, tunnels: dict[str, clients.Tunnel]) -> None:
    done = subprocess.run(
        [*COMMAND, "ctl", "-c", str(node.config_path), "top"],
        env=node.environment,
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    shown = done.stdout.decode()
    assert "\x1b" not in shown
    assert all(name in shown for name in USERS)


def test_other_tables_fit_the_terminal_and_are_whole_when_they_are_piped(
    node: Proxy, tunnels: dict[str, clients.Tunnel]
) -> None:
    command = [*COMMAND, "ctl", "-c", str(node.config_path), "connections"]
    with Terminal(76) as terminal:
        terminal.run(*command, environment=ENVIRONMENT)
        screen = terminal.wait_for("alice", "漢字", "שלום", "RECEIVED")
        table = screen[screen.index("ID  USER") :].splitlines()[:4]
        assert all(re.search(r"\b0 B +0 B$", line) for line in table[1:]), screen  # each on one line
        assert "…" in screen
        terminal.run("sh", "-c", 'clear; "$@" | cat', "-", *command, environment=ENVIRONMENT)
        terminal.wait_for("alice", "RECEIVED", f"127.0.0.1:{tunnels['alice'].sock.getsockname()[1]}")
        assert "…" not in terminal.screen()
