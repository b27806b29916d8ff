"""
What runs beside the connections: native threads, and greenlets that belong to no connection.

Native threads are for what would block every connection at once: name lookups, password hashes, writes to a
log that stalls, and whatever reads, judges or writes the configuration. Everything else runs in greenlets.
"""

import gc
import logging
import signal
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import gevent
from gevent.event import AsyncResult
from gevent.monkey import get_original
from gevent.threadpool import ThreadPool

from proxy.errors import LimitError

log = logging.getLogger(__name__)

T = TypeVar("T")

_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_USUAL_TURN = sys.getswitchinterval()
_TURN = 0.0005  # seconds for which a thread may keep the interpreter while others wait for it
_NO_THREAD = "no thread can be started: raise the limit of processes (ulimit -u, TasksMax=) or of memory"
_IDLE_THREAD = 10  # seconds until a thread without work ends


class NativeThreads:
    """
    At most ``size`` native threads, started as they are needed, and shared among those who ask.

    A call cannot be interrupted once it runs, so whoever asks for many slow ones holds threads for a
    long time. Hence nobody gets another thread who already holds as many as are free: of 16, the first
    to ask for many gets 8, the next one 4, and whoever comes then still finds one. The rest of their
    calls wait, and those that nobody waits for any more are never made: so there are never more of
    them than connections.

    ``asker`` is who asks; without a name one may have every thread.
    """

    def __init__(self, size: int) -> None:
        self._pool = ThreadPool(size, idle_task_timeout=_IDLE_THREAD)
        self._free = size
        self._held: Counter[str] = Counter()
        self._shared: dict[Hashable, Job[Any]] = {}
        # The calls that are not made yet, one entry for each who waits; whose turn comes next is first.
        self._queues: dict[str, list[Job[Any]]] = {}

    def run(self, function: Callable[[], T], asker: str = "", key: Hashable = None) -> T:
        """
        Call a function in a thread, and wait for it; those who give the same key share one call.

        A deadline of the caller ends the waiting, not the thread. Raises ``LimitError`` if no thread
        can be had, or no memory for what it does.
        """
        with self.job(function, asker, key) as job:
            return job.get()

    @contextmanager
    def job(self, function: Callable[[], T], asker: str = "", key: Hashable = None) -> "Iterator[Job[T]]":
        """Do the same, but only begin it: the caller waits for the ``Job``, as long as the block lasts."""
        job: Job[T] = self._shared.get(key) or Job(function, key)
        if key is not None:
            self._shared[key] = job
        job.askers.append(asker)
        try:
            if not job.is_begun:
                self._queues.setdefault(asker, []).append(job)
                if self._may_begin(asker):
                    self._begin(job, asker)
            yield job
        finally:
            job.askers.remove(asker)
            if not job.is_begun:
                self._unqueue(job, asker)
                if not job.askers:
                    self._shared.pop(key, None)

    def _may_begin(self, asker: str) -> bool:
        return self._free > (self._held[asker] if asker else 0)

    def _begin(self, job: "Job[Any]", asker: str) -> None:
        for each in job.askers:
            self._unqueue(job, each)
        job.is_begun = True
        self._free -= 1
        self._held[asker] += 1
        try:
            # gevent prints a traceback for an exception that leaves a thread, so none does.
            result = self._pool.spawn(_outcome, job.function)
        except RuntimeError:  # the system, or this user, may have no more of them
            log.warning("%s", _NO_THREAD, extra={"collapse": (_NO_THREAD, _NO_THREAD)})
            failure = _Raised(LimitError(_NO_THREAD))
            gevent.get_hub().loop.run_callback(self._end, job, asker, failure)
        else:
            result.rawlink(lambda result: self._end(job, asker, result.value))

    def _end(self, job: "Job[Any]", asker: str, outcome: Any) -> None:
        self._free += 1
        self._held[asker] -= 1
        if not self._held[asker]:
            del self._held[asker]
        self._shared.pop(job.key, None)
        job.outcome.set(outcome)
        # One thread became free, so there is at most one who may begin now.
        following = next(filter(self._may_begin, self._queues), None)
        if following is not None:
            queue = self._queues[following] = self._queues.pop(following)  # the others come first, then
            self._begin(queue[0], following)

    def _unqueue(self, job: "Job[Any]", asker: str) -> None:
        self._queues[asker].remove(job)
        if not self._queues[asker]:
            del self._queues[asker]


class Job(Generic[T]):
    """A call that is made in a thread, or waits for its turn, and those who wait for it."""

    __slots__ = ("askers", "function", "is_begun", "key", "outcome")

    def __init__(self, function: Callable[[], T], key: Hashable) -> None:
        self.function = function
        self.key = key
        self.askers: list[str] = []
        self.is_begun = False
        self.outcome: AsyncResult[Any] = AsyncResult()

    @property
    def succeeded(self) -> bool:
        """True if it has ended, and not with an exception."""
        return self.outcome.ready() and self.error is None

    @property
    def error(self) -> Exception | None:
        """What the function raised, if it has ended so."""
        outcome: Any = self.outcome.value
        return outcome.error if isinstance(outcome, _Raised) else None

    def fail(self, error: Exception) -> None:
        """End it without a call, with an error for those who wait."""
        self.outcome.set(_Raised(error))

    def get(self) -> T:
        """Wait for its end, and return or raise what the function did."""
        outcome: Any = self.outcome.get()
        if isinstance(outcome, _Raised):
            raise outcome.error
        return outcome  # type: ignore[no-any-return]


class _Raised:
    def __init__(self, error: Exception) -> None:
        self.error = error


def _outcome(function: Callable[[], T]) -> T | _Raised:
    _take_no_signals()
    try:
        return function()
    except MemoryError:
        return _Raised(LimitError("there is not enough memory: raise its limit, or lower max_connections"))
    except Exception as exc:
        return _Raised(exc)


def start_thread(function: Callable[[], None]) -> None:
    """
    Start a native thread that runs beside the event loop and ends with the process.

    Raises ``LimitError`` if none can be had.
    """
    start: Callable[[Callable[[], None], tuple[()]], int] = get_original("_thread", "start_new_thread")

    def run() -> None:
        _take_no_signals()
        function()

    try:
        start(run, ())
    except RuntimeError as exc:
        raise LimitError(_NO_THREAD) from exc


def _take_no_signals() -> None:
    """Leave them to the thread of the event loop: where that has them wait, nobody else shall take them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


class Task(Generic[T]):
    """A function that runs in a greenlet of its own, whoever waits for it or does not."""

    __slots__ = ("_greenlet",)

    def __init__(self, function: Callable[[], T]) -> None:
        self._greenlet: gevent.Greenlet[[], T] = gevent.spawn(function)

    def wait(self, seconds: float | None = None) -> T | None:
        """Wait for its result; None if it takes longer, or is cancelled."""
        self._greenlet.join(seconds)
        value = self._greenlet.value
        return None if isinstance(value, gevent.GreenletExit) else value

    @property
    def is_running(self) -> bool:
        """True until it has ended."""
        return not self._greenlet.dead

    def cancel(self) -> None:
        """End it where it blocks, in the next turn of the event loop."""
        self._greenlet.kill(block=False)


def first_of(tasks: Sequence[Task[Any]], seconds: float | None) -> None:
    """Wait until one of them has ended, but no longer than so many seconds."""
    gevent.wait([task._greenlet for task in tasks], timeout=seconds, count=1)


@contextmanager
def politely() -> Iterator[None]:
    """Keep threads that compute, such as on a large file, from holding up the connections."""
    # Every system call of the event loop gives the interpreter away, and has to get it back; and to
    # collect the garbage of a file takes longer than anybody should wait.
    sys.setswitchinterval(_TURN)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        sys.setswitchinterval(_USUAL_TURN)
