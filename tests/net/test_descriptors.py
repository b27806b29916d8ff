"""
Descriptors that others gave us: they may be non-blocking, and then "not now" is no end and no error.
"""

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from proxy.net import descriptors

PIPE = 1 << 12  # bytes

Acts = list[Callable[[], object]]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Make a pipe that never blocks, and has little room; its ends are files of their own."""
    source, sink = os.pipe()
    with open(source, "rb", 0), open(sink, "wb", 0) as writer:
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE)
        os.set_blocking(source, False)
        os.set_blocking(sink, False)
        yield source, sink


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Acts:
    """Do these in turn, each time it is found that a descriptor is not ready, and then wait for it."""
    acts: Acts = []
    real = descriptors._wait

    def wait(fd: int, events: int) -> None:
        acts.pop(0)()
        real(fd, events)

    monkeypatch.setattr(descriptors, "_wait", wait)
    return acts


def fill(sink: int) -> int:
    """Write until there is no room, and give the number of bytes."""
    count = 0
    with suppress(BlockingIOError):
        while True:
            count += os.write(sink, bytes(PIPE))
    return count


def test_nothing_to_read_now_is_no_end(pipe: tuple[int, int], waits: Acts) -> None:
    source, sink = pipe
    waits.append(lambda: os.write(sink, b"late"))
    assert descriptors.read(source, 100) == b"late"
    assert waits == []


def test_the_end_is_found_by_whoever_waits_for_more(pipe: tuple[int, int], waits: Acts) -> None:
    source, sink = pipe
    waits.append(lambda: os.dup2(source, sink))  # which closes the only end that could be written to
    assert descriptors.read(source, 100) == b""
    assert waits == []


def test_what_was_said_before_the_end_comes_first(pipe: tuple[int, int]) -> None:
    source, sink = pipe
    os.write(sink, b"last words")
    os.dup2(source, sink)
    assert descriptors.read(source, 4) == b"last"
    assert descriptors.read(source, 100) == b" words"
    assert descriptors.read(source, 100) == b""


def test_no_room_now_is_no_error(pipe: tuple[int, int], waits: Acts) -> None:
    source, sink = pipe
    count = fill(sink)
    waits.append(lambda: os.read(source, count))
    assert descriptors.write(sink, b"more") == 4
    assert os.read(source, PIPE) == b"more"
    assert waits == []


def test_all_of_what_is_larger_than_the_room_arrives_in_order(pipe: tuple[int, int]) -> None:
    source, sink = pipe
    data = os.urandom(10 * PIPE + 1)
    got = bytearray()

    def collect() -> None:
        while len(got) < len(data):
            got.extend(descriptors.read(source, PIPE))

    reader = threading.Thread(target=collect, daemon=True)
    reader.start()
    descriptors.write_all(sink, memoryview(data))
    reader.join(30)
    assert bytes(got) == data


def test_who_waits_for_room_that_never_comes_is_told(pipe: tuple[int, int], waits: Acts) -> None:
    """The reader leaves meanwhile: that is an error of the one who writes, not something to wait for."""
    source, sink = pipe
    fill(sink)
    waits.append(lambda: os.dup2(sink, source))
    with pytest.raises(BrokenPipeError):
        descriptors.write(sink, b"more")
    assert waits == []


def test_nothing_to_write_is_written_at_once(pipe: tuple[int, int]) -> None:
    _, sink = pipe
    fill(sink)
    descriptors.write_all(sink, b"")


def test_a_descriptor_that_is_closed_is_an_error(pipe: tuple[int, int]) -> None:
    source, sink = pipe
    with pytest.raises(OSError, match="Bad file descriptor"):
        descriptors.read(sink, 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        descriptors.write(source, b"x")
