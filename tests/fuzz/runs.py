"""One run over some inputs of a subject. An input depends on the seed, the subject and its number alone."""

import resource
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from types import FrameType

from tests.fuzz.mutation import make, pieces
from tests.fuzz.subjects import SUBJECTS

PATIENCE = 10.0  # seconds for one input; most take some microseconds
MEMORY = 2 << 30  # bytes of address space for a process


class Hang(BaseException):
    """An input that takes too long; no parser catches it."""


def bound_memory() -> None:
    """Have allocations fail that no input is worth."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def run(subject: str, seed: int, numbers: range) -> str:
    """Try inputs, and describe the first finding; empty if there is none."""
    with _patience():
        for number in numbers:
            if found := _try(subject, seed, number):
                return found
    return ""


def _try(name: str, seed: int, number: int) -> str:
    random = Random(f"{seed} {name} {number}")
    subject = SUBJECTS[name]
    data = make(random, subject.seeds)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        whole = subject.read([data])
        split = subject.read(pieces(random, data))
        assert split == whole, f"whole: {whole!r:.500}\nin pieces: {split!r:.500}"
    except (Exception, Hang):
        said = traceback.format_exc(limit=-4)
        return f"{name}: input {number} of seed {seed}: {data[:2000]!r}\n{said}"
    return ""


@contextmanager
def _patience() -> Iterator[None]:
    def give_up(number: int, frame: FrameType | None) -> None:
        raise Hang(f"no end after {PATIENCE:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
