"""What a program does when it is told something, without a process of its own."""

import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import gevent
import pytest

from proxy import app as module
from proxy.app import App, Companion
from proxy.config import ProxyConfig
from proxy.errors import ProxyError
from proxy.lines import JsonFormatter
from proxy.net import limits
from proxy.settings.listener import ServerConfig
from proxy.settings.protocols import Protocol
from tests.integration.programs import REPOSITORY

CONFIG = ProxyConfig(listeners=(ServerConfig("127.0.0.1:0", Protocol.SOCKS5, "one"),))


def test_the_end_of_a_reload_is_told_whatever_becomes_of_it() -> None:
    """A service manager that was told of its begin waits for it."""
    told: list[str] = []

    class Failing(Companion):
        def reloading(self) -> None:
            told.append("reloading")

        def reload(self) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        def reloaded(self) -> None:
            told.append("reloaded")

    app = App(CONFIG)
    app.companion = Failing()
    app._opened.set()
    with pytest.raises(OSError, match="Too many open files"):
        app._hang_up()
    assert told == ["reloading", "reloaded"]


def test_a_log_is_opened_anew_while_the_program_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 306: logrotate does not know that it stops, and the drain may take its time."""
    app = App(CONFIG)
    reopened: list[bool] = []

    def reopen_logs() -> tuple[str, ...]:
        reopened.append(True)
        return ()

    monkeypatch.setattr(app, "reopen_logs", reopen_logs)
    monkeypatch.setattr(
        app.companion, "reload", lambda: pytest.fail("a program that stops takes no other configuration")
    )
    app._opened.set()
    app.stop()
    app._hang_up()
    assert reopened == [True]


def test_a_program_that_was_told_to_stop_takes_no_other_configuration() -> None:
    """CASES H206."""
    app = App(CONFIG)
    app.stop()
    with pytest.raises(ProxyError, match="stopping"):
        app.apply(ProxyConfig(listeners=(ServerConfig("127.0.0.1:0", Protocol.SOCKS5, "two"),)))
    assert app.config is CONFIG


def test_a_want_of_descriptors_is_told_again_only_when_it_is_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "raise_limit", lambda needed: min(needed, 2000))
    monkeypatch.setattr(limits.RESERVE, "keep", lambda count: None)  # which other tests count
    app = App(CONFIG)

    def told_of(max_connections: int) -> list[str]:
        listeners = (ServerConfig("127.0.0.1:0", Protocol.SOCKS5, "one", max_connections=max_connections),)
        app.config = ProxyConfig(listeners=listeners)
        return [each.partition(" file")[0] for each in app._make_room()]

    assert told_of(100) == []
    (first,) = told_of(1000)
    assert told_of(1000) == []
    assert told_of(1001) != [first]
    assert told_of(100) == []
    assert told_of(1000) == [first]


def test_who_says_it_a_second_time_does_not_want_to_wait() -> None:
    app = App(CONFIG)
    app.stop()
    assert app.draining
    assert not app._at_once.is_set()
    app.stop()
    assert app._at_once.is_set()


def test_an_error_that_nobody_took_is_one_line_and_its_place_is_for_debugging(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def the_place() -> None:
        raise ValueError("a bug")

    try:
        the_place()
    except ValueError as exc:
        error = exc
    with caplog.at_level(logging.INFO, "proxy"):
        module._log_error("a greenlet", ValueError, error, error.__traceback__)
    assert [record.getMessage() for record in caplog.records] == ["internal error: ValueError: a bug"]
    assert caplog.records[0].exc_info is None
    with caplog.at_level(logging.DEBUG, "proxy"):
        module._log_error("a greenlet", ValueError, error, error.__traceback__)
    assert "the_place" in JsonFormatter().format(caplog.records[-1])


def test_a_greenlet_that_was_ended_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    module._log_error("a greenlet", gevent.GreenletExit, gevent.GreenletExit(), None)
    assert caplog.records == []


# -- without memory

NO_MEMORY = """
import os, resource, sys
from proxy import app
from tests.wire.processes import memory_of

def use_all():
    resource.setrlimit(resource.RLIMIT_AS, (memory_of(os.getpid(), "VmSize"), resource.RLIM_INFINITY))
    held, spare = [], [bytes(600) for _ in range(100)]
    try:
        while True:
            held.append(bytes(600))
    except MemoryError:
        del spare  # which itself takes no memory; a slice of what is held would
    return held
"""
DEEP = """
import marshal
if "prepared" in sys.argv:
    app._grow_the_stack()
nested = b")\\x01" * 1000 + b"N"
held = use_all()
del held[-2000:]
marshal.loads(nested)
"""
MUCH_AT_ONCE = """
import gevent
count = 4000
if "prepared" in sys.argv:
    app._make_room_in_the_loop(count)
    gevent.sleep(0)
loop = gevent.get_hub().loop
timers = [loop.timer(60) for _ in range(count)]
reader = loop.io(0, 1)
held = use_all()
for each in timers:
    each.start(app._nothing)
    each.feed(0, app._nothing)
for reader.fd in range(count):
    reader.start(app._nothing)
    reader.stop()
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
@pytest.mark.parametrize(("what", "signal_number"), [(DEEP, signal.SIGSEGV), (MUCH_AT_ONCE, signal.SIGABRT)])
def test_what_would_end_the_program_for_want_of_memory_has_it_before(what: str, signal_number: int) -> None:
    command = [sys.executable, "-c", f"{NO_MEMORY}\n{what}"]
    codes = [
        subprocess.run([*command, *more], cwd=REPOSITORY, stderr=subprocess.PIPE, timeout=60).returncode
        for more in ([], ["prepared"])
    ]
    assert codes == [-signal_number, 0]


def test_a_stack_that_may_not_be_large_is_left_as_it_is() -> None:
    start = f"ulimit -s 256 && exec {sys.executable} -c 'from proxy import app; app._grow_the_stack()'"
    assert subprocess.run(["sh", "-c", start], cwd=REPOSITORY, timeout=60).returncode == 0
