"""Standard input and output as one end of a relay."""

import os

import gevent

from proxy.relaying.relay import DataForwarder
from proxy.relaying.stream import Ending
from proxy.stdio import StdioStream
from tests.wire.greenlets import Pair, send_and_end, settle
from tests.wire.sockets import read_to_end


class Pipes:
    """What a shell would have given us as standard input and output."""

    def __init__(self) -> None:
        self.stdin, self.to_stdin = os.pipe()
        self.from_stdout, self.stdout = os.pipe()


def read_pipe(descriptor: int) -> bytes:
    """Read a pipe to its end, with the loop running on."""
    pool = gevent.get_hub().threadpool
    return b"".join(iter(lambda: pool.apply(os.read, (descriptor, 1 << 16)), b""))


def test_pipes_are_an_end_of_a_relay(pair: Pair) -> None:
    """The end of stdin is a FIN; the end of the target is the end of stdout."""
    pipes = Pipes()
    target, far = pair
    running = gevent.spawn(DataForwarder().forward_data, StdioStream(pipes.stdin, pipes.stdout), far)
    typed, shown = os.urandom(300_000), os.urandom(300_000)

    def type_it() -> None:
        pool = gevent.get_hub().threadpool
        for start in range(0, len(typed), 1 << 15):
            pool.apply(os.write, (pipes.to_stdin, typed[start : start + (1 << 15)]))
        os.close(pipes.to_stdin)

    gevent.spawn(type_it)
    assert read_to_end(target) == typed
    reading = gevent.spawn(read_pipe, pipes.from_stdout)
    target.sendall(shown)
    target.close()
    assert reading.get() == shown
    assert (running.get().sent, running.get().received) == (len(typed), len(shown))


def test_a_pipe_is_left_as_it_was_found() -> None:
    """Others may share it: a non-blocking terminal breaks the shell that started us."""
    pipes = Pipes()
    stream = StdioStream(pipes.stdin, pipes.stdout)
    assert os.get_blocking(pipes.stdin)
    assert os.get_blocking(pipes.stdout)
    os.close(pipes.to_stdin)
    stream.begin_close(Ending.FINISHED)
    stream.finish_close()


def test_pipes_that_others_made_non_blocking_are_an_end_of_a_relay(pair: Pair) -> None:
    """Not now is no end: stdin may have nothing yet, and stdout no room."""
    pipes = Pipes()
    os.set_blocking(pipes.stdin, False)
    os.set_blocking(pipes.stdout, False)
    target, far = pair
    running = gevent.spawn(DataForwarder().forward_data, StdioStream(pipes.stdin, pipes.stdout), far)
    settle()  # there is nothing to read yet
    os.write(pipes.to_stdin, b"typed")
    os.close(pipes.to_stdin)
    assert read_to_end(target) == b"typed"
    shown = os.urandom(1 << 20)  # more than a pipe takes
    sending = gevent.spawn(send_and_end, target, shown)
    settle()  # the pipe is full
    assert read_pipe(pipes.from_stdout) == shown
    sending.get()
    assert running.get().ending is Ending.FINISHED
    assert not os.get_blocking(pipes.stdin)
