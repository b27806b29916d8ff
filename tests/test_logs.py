"""Logs that cannot stop the proxy, and that hold one line for each event."""

import errno
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import gevent
import pytest

from proxy import lines, logs
from proxy.config import ProxyConfig
from proxy.errors import LimitError
from proxy.lines import JsonFormatter
from proxy.logs import LineWriter, set_up
from proxy.settings.listener import ServerConfig
from proxy.settings.protocols import Protocol
from tests.wire.greenlets import settle
from tests.wire.processes import descriptors_of
from tests.wire.waits import wait_until

SERVER = ServerConfig("127.0.0.1:0", Protocol.SOCKS5)

# -- the writer


@pytest.fixture
def stalled(tmp_path: Path) -> Iterator[tuple[LineWriter, int]]:
    """Log into a pipe that nobody reads; give the pipe's other end too."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    yield LineWriter(str(path)), reader
    os.close(reader)


def test_a_line_is_written_soon(tmp_path: Path) -> None:
    writer = LineWriter(str(tmp_path / "log"))
    writer.write("one")
    writer.write("two")
    writer.flush()
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_an_existing_file_is_added_to(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")
    writer = LineWriter(str(tmp_path / "log"))
    writer.write("after")
    writer.flush()
    assert (tmp_path / "log").read_text() == "before\nafter\n"


def test_a_new_file_is_nobody_elses_to_read(tmp_path: Path) -> None:
    """User names and targets stand in it."""
    LineWriter(str(tmp_path / "log"))
    assert (tmp_path / "log").stat().st_mode & 0o007 == 0


def test_a_file_that_cannot_be_opened_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LineWriter(str(tmp_path / "missing" / "log"))


def test_a_pipe_without_a_reader_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device or address"):
        LineWriter(str(tmp_path / "pipe"))


def test_a_full_pipe_takes_its_lines_when_it_is_read(stalled: tuple[LineWriter, int]) -> None:
    writer, reader = stalled
    lines = [f"{number} " + "x" * 1000 for number in range(500)]
    for line in lines:
        writer.write(line)
    text = ""

    def is_whole() -> bool:
        nonlocal text
        with suppress(BlockingIOError):
            text += os.read(reader, 1 << 20).decode()
        return text.count("\n") == len(lines)

    wait_until(is_whole, "every line")
    assert text.splitlines() == lines


def test_a_stalled_log_drops_and_counts_and_never_blocks(
    stalled: tuple[LineWriter, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "QUEUE_SIZE", 100)
    writer, reader = stalled
    sent = 5000
    for number in range(sent):  # nobody reads meanwhile: what waited for a reader would wait for ever
        writer.write(f"{number:04} " + "x" * 1000)

    text = ""

    def all_is_told() -> bool:
        nonlocal text
        with suppress(BlockingIOError):
            text += os.read(reader, 1 << 20).decode()
        writer.write("more")  # what was lost is told with the next lines
        return len(numbers_in(text)) + lost_in(text) >= sent

    wait_until(all_is_told, "an account of every line")
    assert lost_in(text) > sent / 2
    assert numbers_in(text) == sorted(set(numbers_in(text)))


def numbers_in(text: str) -> list[int]:
    """Find the lines that were not dropped."""
    return [int(number) for number in re.findall(r"^(\d{4}) x+$", text, re.MULTILINE)]


def lost_in(text: str) -> int:
    """Add up what the log says was lost."""
    told = r"^\S+Z warning \(log lines lost: (\d+): the log did not keep up\)$"
    return sum(int(count) for count in re.findall(told, text, re.MULTILINE))


def test_flushing_a_stalled_log_ends(stalled: tuple[LineWriter, int]) -> None:
    writer, _ = stalled
    for _ in range(200):
        writer.write("x" * 1000)
    writer.flush()


class Disk:
    """Stands in for ``os.write``: it can be full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room: int | None = None  # bytes; None is any number
        self.attempts = 0
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(logs, "_TRY_AGAIN", 0.01)

    def write(self, fd: int, data: bytes) -> int:
        """Write as much as there is room for; raises ``OSError`` if there is none."""
        self.attempts += 1
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._write(fd, data[: self.room])
        if self.room is not None:
            self.room -= written
        return written

    def wait_for_attempts(self, count: int) -> None:
        """Wait until so many more have been made."""
        seen = self.attempts
        wait_until(lambda: self.attempts >= seen + count, "further attempts to write")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Give a disk that can be filled."""
    return Disk(monkeypatch)


@pytest.mark.parametrize("room", [0, 2, 6], ids=["nothing", "half a line", "a line and a half"])
def test_lines_wait_while_the_disk_is_full_and_none_is_torn(tmp_path: Path, disk: Disk, room: int) -> None:
    disk.room = room
    writer = LineWriter(str(tmp_path / "log"))
    for line in ("one", "two", "three"):
        writer.write(line)
    disk.wait_for_attempts(3)
    disk.room = None
    wait_until(lambda: (tmp_path / "log").read_text().endswith("three\n"), "the lines")
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree\n"


def test_a_log_that_is_closed_while_its_disk_is_full_keeps_its_lines_until_there_is_room(
    tmp_path: Path, disk: Disk
) -> None:
    """A reload may have named another file."""
    disk.room = 0
    writer = LineWriter(str(tmp_path / "log"))
    writer.write("one")
    writer.close()  # in one batch with the line, or in the next
    disk.wait_for_attempts(3)
    disk.room = None
    wait_until(lambda: (tmp_path / "log").read_text() == "one\n", "the line")
    wait_until(lambda: not is_open(writer), "the file to be closed")


def is_open(writer: LineWriter) -> bool:
    """Tell whether a log has its file open."""
    try:
        return os.readlink(f"/proc/self/fd/{writer._fd}") == writer.path
    except FileNotFoundError:
        return False


def test_lines_that_a_full_disk_cost_are_counted_with_the_cause(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "QUEUE_SIZE", 10)
    disk.room = 0
    writer = LineWriter(str(tmp_path / "log"))
    writer.formatter = JsonFormatter()
    writer.write("first")
    disk.wait_for_attempts(2)
    for _ in range(15):
        writer.write("more")
    disk.room = None
    wait_until(lambda: (tmp_path / "log").read_text().count("more\n") == 10, "what was kept")
    writer.write("last")
    wait_until(lambda: (tmp_path / "log").read_text().endswith("last\n"), "the last line")
    told = [
        json.loads(line)["message"] for line in (tmp_path / "log").read_text().splitlines() if "{" in line
    ]
    assert told == ["(log lines lost: 5: No space left on device)"]


def test_a_log_that_cannot_be_written_says_so_elsewhere_once_and_when_it_goes_on(
    tmp_path: Path, disk: Disk
) -> None:
    disk.room = 0
    said: list[str] = []
    writer = LineWriter(str(tmp_path / "log"), said.append)
    writer.write("line")
    disk.wait_for_attempts(3)
    settle()
    assert said == ["No space left on device"]
    disk.room = None
    writer.flush()
    wait_until(lambda: "line" in (tmp_path / "log").read_text(), "the line")
    settle()
    assert said == ["No space left on device", ""]


def test_a_log_whose_disk_is_full_holds_up_nobody_at_the_end() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    writer = LineWriter("/dev/full")
    for _ in range(100):
        writer.write("lost")
    writer.flush()
    writer.close()


def test_bytes_that_are_no_text_are_written_all_the_same(tmp_path: Path) -> None:
    writer = LineWriter(str(tmp_path / "log"))
    writer.write("user \udcff")
    writer.flush()
    assert (tmp_path / "log").read_text() == "user \\udcff\n"


# -- all together


@pytest.fixture
def package_log() -> Iterator[logging.Logger]:
    """Give the package's logger, and put it back as it was."""
    logger = logging.getLogger("proxy")
    before = logger.handlers[:], logger.level, logger.propagate
    yield logging.getLogger("proxy.test")
    logger.handlers[:], logger.level, logger.propagate = before
    lines.say_in_json(False)


def test_the_level_decides_what_is_written(package_log: logging.Logger, tmp_path: Path) -> None:
    writer = LineWriter(str(tmp_path / "log"))
    set_up(writer, "warning")
    package_log.info("hidden")
    package_log.warning("shown")
    writer.flush()
    assert [line.split()[1:] for line in (tmp_path / "log").read_text().splitlines()] == [
        ["warning", "shown"]
    ]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_line_that_cannot_be_formatted_is_told_as_a_line(
    package_log: logging.Logger, tmp_path: Path, as_json: bool
) -> None:
    """CASES 380."""
    writer = LineWriter(str(tmp_path / "log"))
    set_up(writer, "info", as_json=as_json)
    package_log.info("%d clients", "many")
    writer.flush()
    (line,) = (tmp_path / "log").read_text().splitlines()
    told = json.loads(line) if as_json else {}
    assert told.get("level", "error") == "error"
    words = told["message"] if as_json else line
    assert re.search(r"(^| error )cannot format a log line: TypeError: .*: '%d clients'$", words)


def test_a_pipe_that_is_not_ready_is_no_trouble(tmp_path: Path) -> None:
    """What is given to us may be non-blocking."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    troubles: list[str] = []
    writer = LineWriter(str(path), troubles.append)
    os.set_blocking(writer._fd, False)
    lines = [f"{number} " + "x" * 1000 for number in range(300)]
    for line in lines:
        writer.write(line)
    text = b""
    while text.count(b"\n") < len(lines):
        with suppress(BlockingIOError):
            text += os.read(reader, 1 << 16)
        gevent.sleep(0.001)
    os.close(reader)
    assert text.decode().splitlines() == lines
    assert troubles == []


def test_a_log_can_be_json(package_log: logging.Logger, tmp_path: Path) -> None:
    writer = LineWriter(str(tmp_path / "log"))
    set_up(writer, "info", as_json=True)
    package_log.info("shown")
    writer.flush()
    assert json.loads((tmp_path / "log").read_text())["message"] == "shown"


def test_setting_up_again_for_a_reload_forgets_nothing_that_was_held_back(
    package_log: logging.Logger, tmp_path: Path
) -> None:
    writer = LineWriter(str(tmp_path / "log"))
    set_up(writer, "info")
    for _ in range(3):
        package_log.info("broken", extra={"collapse": "peer"})
    set_up(writer, "info", as_json=True)
    package_log.info("broken", extra={"collapse": "peer"})
    logs.finish()
    first, last = (tmp_path / "log").read_text().splitlines()
    assert first.endswith("info broken")
    assert json.loads(last)["message"] == "broken (3 more like this)"


def test_setting_up_again_replaces(package_log: logging.Logger, tmp_path: Path) -> None:
    for name in ("first", "second"):
        writer = LineWriter(str(tmp_path / name))
        set_up(writer, "info")
    package_log.info("shown")
    writer.flush()
    assert (tmp_path / "first").read_text() == ""
    assert "shown" in (tmp_path / "second").read_text()


def test_a_call_with_the_wrong_arguments_is_not_what_fails(
    package_log: logging.Logger, tmp_path: Path
) -> None:
    writer = LineWriter(str(tmp_path / "log"))
    set_up(writer, "info")
    package_log.info("%s and %s", "one")
    writer.flush()
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_an_access_log_that_is_gone_goes_on_in_the_file_that_had_its_name(tmp_path: Path) -> None:
    """Its folder was removed, and then the log is reopened, as logrotate has it done."""
    folder = tmp_path / "log"
    folder.mkdir()
    path = str(folder / "access.log")
    made = logs.Logs()
    config = ProxyConfig((SERVER,), access_log=path)
    assert made.change(config) == ()
    os.unlink(path)
    folder.rmdir()
    where = "it is written to the file that had this name before until it can be opened"
    assert made.change(config) == (f"access_log {path}: No such file or directory; {where}",)
    made.finish()


def test_an_access_log_for_which_there_is_no_thread_is_opened_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a shortage like any other one, and leaves no descriptor behind."""
    made = logs.Logs()
    with monkeypatch.context() as short:

        def start_thread(function: object) -> None:
            raise LimitError("no thread")

        short.setattr(logs, "start_thread", start_thread)
        path = str(tmp_path / "access.log")
        (note,) = made.change(ProxyConfig((SERVER,), access_log=path))
        assert note == f"access_log {path}: no thread; it is written to stderr until it can be opened"
        assert path not in [where for _, where in descriptors_of(os.getpid())]
    made.finish()
