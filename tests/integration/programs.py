"""
Real programs: started, waited for, their output kept in a file, and ended whatever happens.

Readiness is read from the kernel's table of listening sockets, so that no probing connection takes a
place, or leaves a line in a log, that a test counts.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, TypeVar

import pytest

from tests.wire.forks import Fork, Nursery
from tests.wire.processes import listening_paths, listening_ports, sockets_of
from tests.wire.sockets import Door, free_port
from tests.wire.waits import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "proxy")
START_TIMEOUT = 90.0  # seconds: two busy cores may take long to start Python

T = TypeVar("T")
AnyProgram = TypeVar("AnyProgram", bound="Program")
Config = Mapping[str, Any]


def clean_environment(home: Path | str, **extra: str) -> dict[str, str]:
    """Make an environment in which nothing of the developer's own can change a result."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    kept["PATH"] = kept.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    return {**kept, "HOME": str(home), "LANG": "C.UTF-8", "PYTHONPATH": str(REPOSITORY), **extra}


def _end_with_us() -> list[str]:
    """Write what to put before a command so that it ends even if the tests are killed."""
    setpriv = shutil.which("setpriv")
    # The kernel watches the thread that starts it: of the main one alone we know that it stays.
    usable = setpriv and threading.current_thread() is threading.main_thread()
    return [str(setpriv), "--pdeathsig", "KILL", "--"] if usable else []


@cache
def _nursery() -> Nursery:
    return Nursery(clean_environment("/"))


class Program:
    """
    A process and its group, with all it prints in one file.

    In tests our own program is a fork (``tests.wire.forks``); what is measured, and what is ``real``, is a
    start as users have it.
    """

    forks: ClassVar[bool] = False

    running: ClassVar[list["Program"]] = []

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
        stderr: int | None = None,
        real: bool = False,
    ) -> None:
        # Not below pytest's own directory: its long names leave no room for a Unix socket's path.
        self._own_directory = None if directory else tempfile.TemporaryDirectory(prefix="pxt-")
        self.directory = directory or Path(self._own_directory.name)  # type: ignore[union-attr]
        self.command = [str(part) for part in command]
        self.environment = {**clean_environment(self.directory), **(environment or {})}
        self.log_path = self.directory / "output.log"
        self._stderr = stderr
        self._real = real
        self._process: subprocess.Popen[bytes] | Fork | None = None

    @property
    def process(self) -> "subprocess.Popen[bytes] | Fork":
        """The process, which must have been started."""
        assert self._process is not None, "not started"
        return self._process

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def log(self) -> str:
        """All that the program has printed so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def start(self) -> None:
        """Start the process; what it prints is appended to the log."""
        with self.log_path.open("ab") as log, open(os.devnull, "rb") as nothing:
            stderr = log.fileno() if self._stderr is None else self._stderr
            if not self._real and _is_a_fork(self.command, self.environment):
                arguments, descriptors = (
                    self.command[len(COMMAND) :],
                    (nothing.fileno(), log.fileno(), stderr),
                )
                self._process = _nursery().start(arguments, self.directory, self.environment, descriptors)
            else:
                self._process = subprocess.Popen(
                    [*_end_with_us(), *self.command],
                    cwd=self.directory,
                    env=self.environment,
                    stdin=nothing,
                    stdout=log,
                    stderr=stderr,
                    start_new_session=True,
                )
        Program.running.append(self)

    def wait_listening(self, *places: int | Door) -> None:
        """Wait until the process listens on all these ports, or at these doors; fail at once if it ends."""
        doors = [("", each) if isinstance(each, int) else each for each in places]
        ports = {port for _, port in doors if port}
        paths = {path for path, port in doors if not port}

        def ready() -> bool:
            if self.process.poll() is not None:
                pytest.fail(f"{self} ended with {self.process.returncode}:\n{self.log[-4000:]}")
            return ports <= listening_ports(self.pid) and paths <= listening_paths(self.pid)

        wait_until(ready, f"{self} to listen on {places}", START_TIMEOUT)

    def wait_for_log(self, text: str, timeout: float = 60.0) -> str:
        """Wait until the log holds a text, and give the line that does."""
        wait_until(lambda: text in self.log, f"{text!r} in the output of {self}", timeout)
        return next(line for line in self.log.splitlines() if text in line)

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        self.process.send_signal(number)

    def wait(self, timeout: float) -> int:
        """Wait for the process to end, and give its exit code; fail the test at the deadline."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self} still runs after {timeout:g} s")

    def kill(self) -> None:
        """End the process and all that it started, at once."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(30)

    def stop(self) -> None:
        """End the process in the way that is right for it."""
        self.kill()

    def __str__(self) -> str:
        return " ".join(Path(part).name for part in self.command[:3])

    def __enter__(self: AnyProgram) -> AnyProgram:
        try:
            self.start()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._process is not None:
            self.kill()
            Program.running.remove(self)
        if self._own_directory:
            self._own_directory.cleanup()


class Proxy(Program):
    """
    Our own program, run from a configuration file that a test gives as a mapping.

    Leaving the ``with`` block stops it as a service manager would, and checks that it obeyed and
    that its users saw no traceback.
    """

    def __init__(
        self,
        config: Config,
        *,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        stderr: int | None = None,
        starts: bool = True,
        real: bool = False,
    ) -> None:
        super().__init__((), environment=environment, stderr=stderr, real=real)
        self.config_path = self.directory / "proxy.ini"
        self.command = [*prefix, *COMMAND, "-c", str(self.config_path)]
        self.starts = starts  # False: it is expected to end by itself, or a test ends it
        self.write(config)

    def write(self, config: Config) -> None:
        """Write the configuration file."""
        # Tests leave connections behind: the stop at the end shall not wait for them.
        proxy = {"drain_timeout": "100ms", **config.get("proxy", {})}
        self.config = {**config, "proxy": proxy}
        self.config_path.write_text(ini(self.config), encoding="utf-8")
        self.config_path.chmod(0o600)

    def door(self, name: str) -> Door:
        """Give host and port of a listener, or the path of its Unix socket, for a client."""
        address = str(self.config["listeners"][name]["listen_addr"])
        if address.startswith("unix:"):
            return address.removeprefix("unix:"), 0
        host, _, port = address.rpartition(":")
        return host.strip("[]") or "127.0.0.1", int(port)

    def url(self, name: str, scheme: str = "ws") -> str:
        """Give the URL of a WebSocket listener."""
        return f"{scheme}://localhost:{self.door(name)[1]}/"

    @property
    def control_socket(self) -> Path:
        """Where the control interface listens, unless the file says something else."""
        return self.directory / ".proxy" / "control.sock"

    def wait_for_control(self) -> None:
        """Wait until the control interface accepts: its socket is there a moment before."""
        self.wait_listening((str(self.control_socket), 0))

    @property
    def connections(self) -> int:
        """How many TCP sockets the program holds, its listeners among them."""
        return len(sockets_of(self.pid))

    def wait_until_empty(self, timeout: float = 30.0) -> None:
        """Wait until the program holds nothing but its listeners."""
        listeners = len(self.config["listeners"])
        wait_until(lambda: self.connections <= listeners, "the last connection to be closed", timeout)

    def start(self) -> None:
        """Start the program, and wait until all its listeners accept, and its control interface."""
        super().start()
        if self.starts:
            self.wait_listening(*map(self.door, self.config["listeners"]))
            if self.config.get("proxy", {}).get("workers", 1) > 1:
                self.wait_for_log("workers serve")  # until then clients wait in the kernel's queue
            # It is opened a moment later than the listeners.
            wait_until(self._has_control_or_says_why_not, "the control interface", START_TIMEOUT)

    def _has_control_or_says_why_not(self) -> bool:
        if self.process.poll() is not None or "no control socket" in self.log:
            return True
        return any(path.endswith("/control.sock") for path in listening_paths(self.pid))

    def stop(self) -> None:
        """Stop the program by SIGTERM; fail if it does not obey, had died, or printed a traceback."""
        ended = self.process.poll()
        if ended is None:
            self.signal(signal.SIGTERM)
            ended = self.wait(30)
        log = self.log
        assert "Traceback" not in log, f"a user saw a traceback:\n{log[-6000:]}"
        if self.starts:
            assert ended in (0, -signal.SIGKILL), f"{self} ended with {ended}:\n{log[-4000:]}"

    def __str__(self) -> str:
        return f"proxy {self.pid if self._process else '(not started)'}"


def ini(config: Mapping[str, Any], depth: int = 1) -> str:
    """Write a mapping as a configuration file with nested sections."""
    lines = [
        f"{_quoted(name)} = {_quoted(value)}" for name, value in config.items() if not _is_section(value)
    ]
    for name, value in config.items():
        if _is_section(value):
            lines.append(f"{'[' * depth}{name}{']' * depth}\n{ini(value, depth + 1)}")
    return "\n".join(lines)


def _is_section(value: object) -> bool:
    return isinstance(value, Mapping)


def _quoted(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_quoted, value))
    text = str(value)
    return f'"{text}"' if set(text) & set(",#'= ") else text


def socks_door(**settings: Any) -> dict[str, Any]:
    """Describe a SOCKS5 listener on a port of its own."""
    return {"protocol": "socks5", "listen_addr": f"127.0.0.1:{free_port()}", **settings}


def web_door(**settings: Any) -> dict[str, Any]:
    """Describe a WebSocket listener on a port of its own."""
    return {"protocol": "websocket", "listen_addr": f"127.0.0.1:{free_port()}", **settings}


def mixed_door(**settings: Any) -> dict[str, Any]:
    """Describe a mixed listener on a port of its own."""
    return {"protocol": "mixed", "listen_addr": f"127.0.0.1:{free_port()}", **settings}


def upstream(kind: str, address: str | Door, **settings: Any) -> dict[str, Any]:
    """Describe a way out that is asked once, and only when it is needed: a test wants the first answer."""
    if isinstance(address, tuple):
        address = f"ws://{address[0]}:{address[1]}/" if kind == "websocket" else f"{address[0]}:{address[1]}"
    return {"type": kind, "proxy_address": address, "retry_count": 0, "spare": 0, **settings}


def run_proxy(
    *arguments: str,
    stdin: bytes | IO[bytes] = b"",
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    timeout: float = 90.0,
    real: bool = False,
) -> "subprocess.CompletedProcess[bytes]":
    """Run our program to its end, and check that whatever it says has no traceback."""
    with tempfile.TemporaryDirectory(prefix="pxt-") as home:
        command = [*prefix, *COMMAND, *arguments]
        variables = {**clean_environment(home), **(environment or {})}
        if not real and isinstance(stdin, bytes) and _is_a_fork(command, variables):
            done = _run_fork(arguments, home, variables, stdin, timeout)
        else:
            done = subprocess.run(
                command,
                cwd=home,
                env=variables,
                input=stdin if isinstance(stdin, bytes) else None,
                stdin=None if isinstance(stdin, bytes) else stdin,
                capture_output=True,
                timeout=timeout,
            )
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    return done


def _run_fork(
    arguments: Sequence[str], home: str, environment: Mapping[str, str], stdin: bytes, timeout: float
) -> "subprocess.CompletedProcess[bytes]":
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        descriptors = given.fileno(), out.fileno(), err.fileno()
        fork = _nursery().start(arguments, home, environment, descriptors)
        try:
            code = fork.wait(timeout)
        finally:
            fork.kill()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(list(arguments), code, out.read(), err.read())


def _is_a_fork(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    is_ours = tuple(command[: len(COMMAND)]) == COMMAND
    return Program.forks and is_ours and _nursery().can_start(environment)
