"""Standard descriptors as they are given to us: not ready, closed, full."""

import contextlib
import fcntl
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from proxy import console
from proxy.net import descriptors
from tests.integration.programs import COMMAND, REPOSITORY, clean_environment

PIPE = 1 << 12  # bytes


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Make a small pipe that never blocks."""
    ends = os.pipe()
    fcntl.fcntl(ends[0], fcntl.F_SETPIPE_SZ, PIPE)
    for fd in ends:
        os.set_blocking(fd, False)
    yield ends
    for fd in ends:
        with contextlib.suppress(OSError):
            os.close(fd)


def test_a_secret_is_a_line_of_a_pipe_that_is_not_ready(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_STDIN", pipe[0])
    threading.Timer(0.05, os.write, (pipe[1], "pässword \r\nmore".encode())).start()
    assert console.read_secret("Password: ") == "pässword "


def test_a_secret_that_is_no_text_is_refused(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_STDIN", pipe[0])
    os.write(pipe[1], b"p\xe4ssword\n")
    with pytest.raises(console.InputError, match="UTF-8"):
        console.read_secret("Password: ")


def test_what_is_printed_waits_for_a_reader_that_is_slow(pipe: tuple[int, int]) -> None:
    source, sink = pipe
    text = "ü" * 10 * PIPE
    got = bytearray()

    def collect() -> None:
        while data := descriptors.read(source, PIPE):
            got.extend(data)

    reader = threading.Thread(target=collect, daemon=True)
    reader.start()
    stream = console._text(console._Output(sink), None)
    print(text, file=stream, flush=True)
    os.close(sink)
    reader.join(30)
    assert got.decode() == text + "\n"


# -- the program


def run(
    tmp_path: Path, *command: str, stdout: int | IO[str] | None = None
) -> "subprocess.CompletedProcess[str]":
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command,
        cwd=tmp_path,
        env=clean_environment(tmp_path),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
    )
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr
    return done


def test_output_that_does_not_fit_is_one_line_and_exit_1(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = run(tmp_path, *COMMAND, "-c", str(REPOSITORY / "conf" / "proxy.ini"), "-dump", stdout=full)
    assert (done.returncode, done.stderr) == (1, "proxy-server: standard output: No space left on device\n")


def test_output_that_nobody_reads_any_more_ends_it_without_a_word(tmp_path: Path) -> None:
    source, sink = os.pipe()
    os.close(source)
    try:
        done = run(tmp_path, *COMMAND, "-h", stdout=sink)
    finally:
        os.close(sink)
    assert (done.returncode, done.stderr) == (1, "")


def test_output_that_is_closed_is_an_error(tmp_path: Path) -> None:
    done = run(tmp_path, "sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "-version")
    assert (done.returncode, done.stderr) == (1, "proxy-server: standard output: Bad file descriptor\n")


def check(path: Path, errors: int, **environment: str) -> bytes:
    """Check a file, and give what is printed."""
    path.write_text("[listeners]\n[[one]]\nlisten_addr = 127.0.0.1:1080\nprotocol = socks5\n")
    path.chmod(0o600)
    return subprocess.run(
        [*COMMAND, "-c", path, "-check"],
        stdout=subprocess.PIPE,
        stderr=errors,
        env=clean_environment(path.parent, **environment),
        timeout=60,
        check=True,
    ).stdout


def test_how_far_it_is_stands_on_a_line_of_a_terminal_that_is_gone_afterwards(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    try:
        assert check(tmp_path / "proxy.ini", theirs, TERM="xterm") == b"ok\n"
        told = os.read(ours, 1 << 16)  # from a terminal's buffer: it was written before the end
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"\rbuilding listener 1 of 1\x1b[K" in told
    assert told.endswith(b"\r\x1b[K")
    assert b"\n" not in told


def test_how_far_it_is_is_not_told_where_that_cannot_be_taken_away(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    try:
        os.set_blocking(ours, False)
        check(tmp_path / "proxy.ini", theirs, TERM="dumb")
        with pytest.raises(BlockingIOError):
            os.read(ours, 1)
    finally:
        os.close(ours)
        os.close(theirs)
    with open(tmp_path / "errors", "wb") as file:
        check(tmp_path / "proxy.ini", file.fileno(), TERM="xterm")
    assert not (tmp_path / "errors").read_bytes()
