"""One time budget over many steps."""

import time

import gevent
import pytest
from gevent import socket

from proxy.net.deadline import Deadline
from tests.wire.greenlets import settle

SOON = 0.1  # seconds
LATE = 20.0  # seconds: how late a busy machine may be; what must not happen takes a minute


def test_what_remains_shrinks_to_nothing_and_not_below() -> None:
    deadline, short = Deadline(60), Deadline(SOON)
    first = deadline.remaining()
    assert 0 < first <= 60
    gevent.sleep(SOON)
    assert 0 < deadline.remaining() < first
    assert short.remaining() == 0.0


@pytest.mark.parametrize(("step", "longest"), [(1.0, 1.0), (100.0, 10.0)])
def test_a_step_ends_no_later_than_the_whole(step: float, longest: float) -> None:
    assert 0 < Deadline(10.0).within(step).remaining() <= longest


def test_a_step_is_on_behalf_of_the_same_one() -> None:
    assert Deadline(10.0, "alice").within(1.0).asker == "alice"


def test_a_block_that_takes_too_long_is_ended_and_named() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^greeting timed out$"), Deadline(SOON).limit("greeting"):
        gevent.sleep(60)
    assert SOON <= time.monotonic() - started < SOON + LATE


def test_a_block_whose_time_is_over_already_is_not_entered() -> None:
    with pytest.raises(TimeoutError, match="greeting"), Deadline(0).limit("greeting"):
        pytest.fail("it was entered")


def test_a_peer_that_drips_does_not_get_more_time() -> None:
    """CASES A35: a timeout of each read would never expire here."""
    ours, theirs = socket.socketpair()

    def drip() -> None:
        while True:
            theirs.sendall(b".")
            gevent.sleep(0.01)

    dripping = gevent.spawn(drip)
    started = time.monotonic()
    with pytest.raises(TimeoutError), Deadline(0.2).limit("handshake"):
        b"".join(iter(lambda: ours.recv(1), b""))
    assert time.monotonic() - started >= 0.2
    dripping.kill()
    ours.close()
    theirs.close()


def test_what_came_in_time_is_read_though_we_could_not_run() -> None:
    """Case 395: the timer is the first to run after a stop, and comes late."""
    ours, theirs = socket.socketpair()

    def read_twice() -> bytes:
        whole = Deadline(0.3)
        with whole.within(0.2).limit("handshake"):
            first = ours.recv(1)
        with whole.limit("handshake"):
            return first + ours.recv(1)

    reading = gevent.spawn(read_twice)
    settle()  # it reads
    theirs.sendall(b"1")
    time.sleep(1.0)  # nothing in this process runs
    gevent.spawn_later(0.05, theirs.sendall, b"2")
    assert reading.get(timeout=LATE) == b"12"
    ours.close()
    theirs.close()


def test_after_a_stop_the_time_ends_all_the_same() -> None:
    """Case 395: a peer gets no more than we missed."""

    def wait() -> float:
        try:
            with Deadline(0.2).limit("handshake"):
                gevent.sleep(60)
        except TimeoutError:
            return time.monotonic()
        return 0.0

    waiting = gevent.spawn(wait)
    settle()  # it waits
    while waiting.ready():  # on a busy machine it was over by then
        waiting = gevent.spawn(wait)
        settle()
    time.sleep(1.0)  # nothing in this process runs
    again = time.monotonic()
    assert 0.1 < waiting.get(timeout=LATE + 1) - again < 0.2 + LATE


def test_one_deadline_covers_all_the_steps_it_is_handed_to() -> None:
    deadline = Deadline(0.1)

    def take_steps() -> None:
        for _ in range(100):
            with deadline.limit("step"):
                gevent.sleep(0.03)

    started = time.monotonic()
    with pytest.raises(TimeoutError, match="step"):
        take_steps()
    assert time.monotonic() - started >= 0.1


def test_a_block_in_time_is_left_alone_afterwards() -> None:
    with Deadline(SOON).limit("handshake"):
        pass
    gevent.sleep(2 * SOON)


def test_the_inner_deadline_ends_only_the_inner_block() -> None:
    with Deadline(10).limit("outer"):
        with pytest.raises(TimeoutError, match="inner"), Deadline(SOON).limit("inner"):
            gevent.sleep(60)
        gevent.sleep(0)


def test_the_outer_deadline_ends_both_blocks() -> None:
    with pytest.raises(TimeoutError, match="outer"), Deadline(SOON).limit("outer"):  # noqa: SIM117
        with Deadline(10).limit("inner"):
            gevent.sleep(60)


def test_a_timeout_of_somebody_else_passes_through() -> None:
    foreign = gevent.Timeout(SOON)
    foreign.start()
    with pytest.raises(gevent.Timeout) as raised, Deadline(10).limit("handshake"):
        gevent.sleep(60)
    assert raised.value is foreign


def test_an_error_of_the_block_passes_through() -> None:
    with pytest.raises(KeyError), Deadline(10).limit("handshake"):
        raise KeyError("mine")


def test_a_library_that_catches_every_error_does_not_catch_the_deadline() -> None:
    def library() -> None:
        try:
            gevent.sleep(60)
        except Exception:
            pytest.fail("it was caught")

    with pytest.raises(TimeoutError, match="handshake"), Deadline(SOON).limit("handshake"):
        library()


def test_a_pause_ends_with_the_deadline() -> None:
    started = time.monotonic()
    Deadline(SOON).pause(60)
    assert time.monotonic() - started < SOON + LATE
