"""What every test can rely on, and a certificate authority for those that speak TLS."""

import gc
import logging
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from hypothesis import HealthCheck, settings

from proxy.net.threads import Task
from tests.integration.certificates import Authority, Certificate
from tests.integration.programs import Program

Program.forks = True

# Programs are watched through Linux's /proc, and the benchmark waits with epoll.
collect_ignore = [] if sys.platform == "linux" else ["bench", "integration", "siege"]

# Every port that a test takes stays taken until the end, so that no other gets it: some two thousand
# descriptors, where many systems allow 1,024 unless asked.
_, _most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(_most, 16384), _most))

# Whoever starts the tests in the background of a shell has them ignore SIGINT, and under nohup SIGHUP, and
# with them all programs that they start; what is handled here, those do not inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# How long an example takes is the machine's affair; what hangs has the timeout of its test.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Have files that take long begin first, so that no process is left alone with one at the end.

    Those are the ones that start programs, and of these the ones that are long to read.
    """
    starts = {"integration", "test_setup.py"}
    sizes = {path: path.stat().st_size for path in {item.path for item in items}}
    items.sort(key=lambda item: (starts.isdisjoint(item.path.parts), -sizes[item.path]))


def pytest_collection_finish() -> None:
    """Have the garbage collector look no more at thousands of tests, which stay as they are."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    """Leave the package's log as it was: an ``App`` in this process would send it elsewhere."""
    log = logging.getLogger("proxy")
    before = (log.handlers[:], log.level, log.propagate)
    yield
    log.handlers[:], log.level, log.propagate = before


@pytest.fixture(autouse=True)
def _background(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End what a test has left to go on by itself: it would use the resolver or the clock of a later one."""
    started: list[gevent.Greenlet[..., Any]] = []
    begin = Task.__init__

    def note(task: Task[Any], function: Any) -> None:
        begin(task, function)
        started.append(task._greenlet)

    monkeypatch.setattr(Task, "__init__", note)
    yield
    gevent.killall(started)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Make a certificate authority."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def good(authority: Authority) -> Certificate:
    """Make a certificate for localhost, by that authority."""
    return authority.issue("good", "localhost")
