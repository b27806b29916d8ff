"""
A pool of greenlets that do jobs, such as serving a client, and whose size can change.

A job is a generator. It blocks where it likes; but where all that is left to do is to wait for something
that needs no greenlet, such as a relay, it yields that, and goes on in another greenlet when it is over. For
a greenlet that waits keeps two stacks, Python's and what is in use of C's: 6.5 KiB of the 9.8 that an idle
connection took.

Never violated:

- A job has a place from its beginning to its end, whether a greenlet is at work on it or not. So a change of
  the size disturbs nobody, and to be done, to be killed and to fail give the place back in the same way.
- A greenlet is at work on one job, or parked, or has ended.
- While memory is short, only a few greenlets go on with jobs: greenlet ends the program where it finds none,
  and thousands of connections can come to their end in the same moment.

To start a greenlet takes some 10 µs, most of it in the kernel, which maps its stack and unmaps it
again: 4 % of all that a short connection costs. So one that is done is parked for a moment: with 32
clients at a time, one in three is still wanted after 2 ms, and 97 in 100 after 100 ms.
"""

from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from inspect import GEN_SUSPENDED, getgeneratorstate
from typing import Any, Protocol

import gevent
from gevent.event import Event

from proxy.net.limits import BALLAST

_FEW = 32  # greenlets, each with its stacks: what they need is there when all else is used up
_LOOK = 0.1  # seconds between two looks for greenlets that nobody wanted


class Pause(Protocol):
    """What a job waits for without a greenlet."""

    def when_over(self, act: "Callable[[Job], object]", job: "Job") -> None:
        """Have a function called with the job, in the event loop, as soon as it is over."""

    def wait(self) -> None:
        """Block until it is over."""


Job = Generator[Pause, None, None]


def do(job: Job) -> None:
    """Do a job to its end, in the present greenlet."""
    with closing(job):
        for pause in job:
            pause.wait()


class Pool:
    """At most ``size`` jobs at a time."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._jobs: set[Job] = set()
        self._greenlets: set[_PooledGreenlet] = set()
        self._parked: list[_PooledGreenlet] = []  # who came last is wanted first: its memory is in the cache
        self._unwanted = 0  # how many of them, the first ones, were not wanted since the last look
        self._timer: Any = None  # of the next look, while any are parked
        self._late: deque[Job] = deque()  # those that could go on, but for want of memory
        self._is_empty = Event()
        self._is_empty.set()
        self._waiting: list[Callable[[], object]] = []  # what to call when there is room
        self.watchers: list[Callable[[], object]] = []  # what to call when a job has left

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def is_full(self) -> bool:
        """True if there is no place for another job now."""
        return len(self._jobs) >= self.size

    def when_free(self, act: Callable[[], object]) -> None:
        """Call a function once, when there is room: that may be taken by then."""
        if act not in self._waiting:
            self._waiting.append(act)

    def start(self, job: Job) -> None:
        """Have a greenlet do a job; the pool must not be full."""
        self._jobs.add(job)
        self._is_empty.clear()
        self._hand(job)

    def _hand(self, job: Job) -> None:
        """Have a greenlet work on a job, in the next turn of the event loop."""
        if greenlet := self._assign(job):
            gevent.get_hub().loop.run_callback(greenlet.switch)

    def go_on(self, job: Job) -> None:
        """Have a greenlet go on with a job, at once: only the event loop may call this."""
        # A turn later, the loop would have told the kernel to watch no more what is about to be closed.
        if not BALLAST.allows_another() and len(self._greenlets) - len(self._parked) >= _FEW:
            self._late.append(job)
        elif greenlet := self._assign(job):
            greenlet.switch()

    def _assign(self, job: Job) -> "_PooledGreenlet | None":
        """Give a job to a greenlet that is parked, and return it; or to a new one, which starts by itself."""
        if self._parked:
            greenlet = self._parked.pop()
            self._unwanted = min(self._unwanted, len(self._parked))
            greenlet.job = job
            return greenlet
        greenlet = _PooledGreenlet(self, job)
        greenlet.rawlink(self._lose)
        self._greenlets.add(greenlet)
        greenlet.start()
        return None

    def next_late(self) -> Job | None:
        """Give the job that has waited longest for others to be done, if any waits."""
        if len(self._late) > 1 and BALLAST.allows_another():
            # There is memory again, so more and more may go on at a time: a job may take seconds.
            self._hand(self._late[0])
            self._late.popleft()
        return self._late.popleft() if self._late else None

    def park(self, greenlet: "_PooledGreenlet") -> None:
        """Let a greenlet wait a moment for another job."""
        self._parked.append(greenlet)
        if not self._timer:
            self._timer = gevent.get_hub().loop.timer(_LOOK, _LOOK)
            self._timer.start(self._end_the_unwanted, update=True)
        try:
            gevent.get_hub().switch()
        except BaseException:  # it is killed
            if not greenlet.job:
                self._parked.remove(greenlet)
            raise

    def _end_the_unwanted(self) -> None:
        unwanted = self._parked[: self._unwanted]
        del self._parked[: self._unwanted]
        self._unwanted = len(self._parked)
        for greenlet in unwanted:
            gevent.get_hub().loop.run_callback(greenlet.switch)  # without a job
        if not self._parked:
            self._timer.close()
            self._timer = None

    def leave(self, job: Job) -> None:
        """Give a job's place back."""
        self._jobs.discard(job)
        if not self._jobs:
            self._is_empty.set()
        for tell in self.watchers:
            tell()
        self._tell_of_room()

    def _lose(self, greenlet: "_PooledGreenlet") -> None:
        """Forget a greenlet that has ended, and end the job that it leaves, if any."""
        self._greenlets.discard(greenlet)
        try:
            if greenlet.job:
                self._end_left(greenlet.job)
        finally:
            if late := self.next_late():  # which this one would have come to
                self._go_on_late(late)

    def _go_on_late(self, job: Job) -> None:
        try:
            self.go_on(job)
        except MemoryError:
            self._late.appendleft(job)  # for the next greenlet that is done: nobody else knows of it
            raise

    def _end_left(self, job: Job) -> None:
        if getgeneratorstate(job) == GEN_SUSPENDED:
            gevent.spawn(self._end, job)
        else:
            # It was never begun, or is over: to end it needs no greenlet, for which there may be no memory.
            self._end(job)

    def _end(self, job: Job) -> None:
        try:
            job.close()
        finally:
            self.leave(job)

    def resize(self, size: int) -> None:
        """Set how many there may be; those that are there are not affected."""
        self.size = size
        self._tell_of_room()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until there is no job any more, and tell whether that is so."""
        return self._is_empty.wait(timeout)

    def kill(self) -> None:
        """End all jobs, and wait for their end."""
        self._late.clear()
        at_work = {greenlet.job: greenlet for greenlet in self._greenlets if greenlet.job}
        gevent.killall(list(at_work.values()), block=False)
        for job in self._jobs - at_work.keys():
            gevent.spawn(self._end, job)
        self.join()

    def _tell_of_room(self) -> None:
        if self._waiting and not self.is_full:
            # All of them: nobody may be there where the first one accepts.
            waiting, self._waiting = self._waiting, []
            for act in waiting:
                act()


class _PooledGreenlet(gevent.Greenlet):  # type: ignore[type-arg]
    """A greenlet that works on one job after another."""

    def __init__(self, pool: Pool, job: Job) -> None:
        super().__init__()
        self.job: Job | None = job
        self._pool = pool

    def _run(self) -> None:
        while self.job:
            pause = next(self.job, None)
            if pause:
                pause.when_over(self._pool.go_on, self.job)
            else:
                self._pool.leave(self.job)
            self.job = pause = None  # neither is to be kept while this one is parked
            self.job = self._pool.next_late()
            if not self.job:
                self._pool.park(self)
