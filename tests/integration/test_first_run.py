"""
The first minutes of a new user: the configuration file that comes with the project, and bad ones.
"""

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration import peers
from tests.integration.netns import Namespace
from tests.integration.programs import (
    COMMAND,
    REPOSITORY,
    Program,
    Proxy,
    clean_environment,
    run_proxy,
    socks_door,
)
from tests.wire import clients, targets
from tests.wire.sockets import read_exact
from tests.wire.targets import Target

PAGE = b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Copy the project's configuration file: what the program writes next to it is not for the project."""
    return Path(shutil.copy(REPOSITORY / "conf" / "proxy.ini", tmp_path))


class TestTheFileOfTheProject:
    """conf/proxy.ini runs as it is."""

    @pytest.fixture
    def space(self) -> Iterator[Namespace]:
        """Make a namespace: nothing there uses the ports of the file."""
        with Namespace() as space:
            yield space

    def test_it_runs_as_it_is(self, space: Namespace, config: Path) -> None:
        with ExitStack() as stack:
            program = stack.enter_context(Program([*space.prefix, *COMMAND, "-c", str(config)]))
            program.wait_listening(1080, 8080)
            page = stack.enter_context(space.run(lambda: targets.Scripted(PAGE)))
            url = f"http://localhost:{page.port}/"
            curl = [peers.find("curl"), "-sS", "-m", "10", "--socks5-hostname", "127.0.0.1:1080", url]
            done = subprocess.run(
                [*space.prefix, *curl], capture_output=True, timeout=60, env=clean_environment("/")
            )
            assert done.stdout == b"hello", done.stderr
            echo = stack.enter_context(space.run(lambda: Target(targets.echo)))
            tunnel = space.run(lambda: clients.websocket(("127.0.0.1", 8080), "localhost", echo.port))
            tunnel.sendall(b"hello")
            assert read_exact(tunnel, 5) == b"hello"
            tunnel.close()
            assert "Traceback" not in program.log
            assert "open proxy" not in program.log.lower(), "it listens on this machine's own addresses only"

    def test_it_is_valid(self, config: Path) -> None:
        """Case 356: and that it is, is said."""
        done = run_proxy("-c", str(config), "-check")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"ok\n", b"")

    def test_its_effective_form_can_be_printed_and_used(self, config: Path, tmp_path: Path) -> None:
        done = run_proxy("-c", str(config), "-dump")
        assert done.returncode == 0, done.stderr
        again = tmp_path / "again.ini"
        again.write_bytes(done.stdout)
        assert run_proxy("-c", str(again), "-check").returncode == 0


class TestMistakes:
    """Each is one clear line with a place in the file, and exit code 2."""

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("[proxy]\ntimeuot = 3s\n", ["proxy.ini:2", "[proxy]", "timeuot", "timeout"]),
            ("[proxy]\ntimeout = soon\n", ["proxy.ini:2", "[proxy]", "timeout", "duration"]),
            ("[prox]\n", ["proxy.ini:1", "prox"]),
            (
                "[listeners]\n[[socks]]\nprotocol = socks6\nlisten_addr = :0\n",
                ["proxy.ini:3", "[listeners.socks]", "protocol"],
            ),
            ("[listeners]\n[[socks]]\nprotocol = socks5\n", ["socks", "listen_addr"]),
            ("no section\n", ["proxy.ini:1"]),
        ],
        ids=["unknown-key", "bad-value", "unknown-section", "bad-choice", "missing-key", "syntax"],
    )
    @pytest.mark.parametrize("option", [[], ["-check"]], ids=["run", "check"])
    def test_a_mistake_has_a_place_and_a_name(
        self, tmp_path: Path, option: list[str], text: str, words: list[str]
    ) -> None:
        """CASES 193, 207."""
        door = "[listeners]\n[[web]]\nprotocol = websocket\nlisten_addr = 127.0.0.1:1\n"
        path = tmp_path / "proxy.ini"
        path.write_text(text if "[listeners]" in text else text + door)
        done = run_proxy("-c", str(path), *option)
        assert done.returncode == 2
        output = (done.stdout + done.stderr).decode()
        assert any(all(word in line for word in words) for line in output.splitlines()), output

    def test_no_mistake_opens_the_door(self, tmp_path: Path) -> None:
        """CASES 52: authentication is required, and there are no users."""
        path = tmp_path / "proxy.ini"
        path.write_text(
            "[listeners]\n[[socks]]\nprotocol = socks5\nlisten_addr = 127.0.0.1:0\nauth = required\n"
        )
        done = run_proxy("-c", str(path))
        assert done.returncode == 2
        assert b"auth" in done.stderr

    @pytest.mark.parametrize(
        "arguments",
        [["-c", "/nonexistent/proxy.ini"], ["-nonsense"], ["-mode", "nonsense"], [], ["-c"]],
        ids=lambda arguments: " ".join(arguments) or "none",
    )
    def test_bad_usage_is_2_and_says_why(self, arguments: list[str]) -> None:
        done = run_proxy(*arguments)
        assert done.returncode == 2
        assert done.stderr.strip()

    @pytest.mark.parametrize("option", ["-h", "--help", "-version", "--version"])
    def test_help_and_version_are_answers(self, option: str) -> None:
        done = run_proxy(option)
        assert done.returncode == 0
        assert done.stdout.strip()
        assert done.stderr == b""

    @pytest.mark.parametrize(
        ("more", "words"),
        [("", "in use"), ("timeuot = 3s\n", "timeuot")],
        ids=["an address that is taken", "a mistake in the file"],
    )
    def test_a_log_in_json_has_nothing_else_in_it(self, tmp_path: Path, more: str, words: str) -> None:
        """CASES 380: whoever collects it gets the start too, also one that fails."""
        path = tmp_path / "proxy.ini"
        with socket.create_server(("127.0.0.1", 0)) as taken:
            door = f"[[socks]]\nprotocol = socks5\nlisten_addr = 127.0.0.1:{taken.getsockname()[1]}\n"
            users = "[auth_users]\nalice = wonderland\n"
            path.write_text(f"[proxy]\nlog_format = json\n{more}{users}[listeners]\n{door}")
            path.chmod(0o644)  # which is worth a warning
            for folder in (tmp_path / ".proxy", history := tmp_path / ".proxy" / "history"):
                folder.mkdir(mode=0o700)
            (history / "000007.ini").write_text("what is this?")  # and so is this
            done = run_proxy("-c", str(path))
        assert done.returncode == (2 if more else 1)
        entries = [json.loads(line) for line in done.stderr.splitlines()]
        assert entries[-1]["level"] == "error"
        assert words in entries[-1]["message"]
        warnings = [each["message"] for each in entries if each["level"] == "warning"]
        assert any("000007.ini is skipped" in each for each in warnings)
        assert any("chmod 600" in each for each in warnings) is not bool(more)

    def test_a_password_becomes_a_hash_that_lets_its_owner_in(self) -> None:
        done = run_proxy("-hash-password", stdin=b"wonderland\n")
        assert done.returncode == 0, done.stderr
        hashed = done.stdout.decode().strip()
        assert "wonderland" not in hashed
        users = {"alice": hashed}
        with (
            Proxy({"listeners": {"socks": socks_door()}, "auth_users": users}) as node,
            Target(targets.echo) as target,
        ):
            tunnel = clients.socks5(node.door("socks"), "127.0.0.1", target.port, ("alice", "wonderland"))
            tunnel.close()
            with pytest.raises(clients.LoginRefused):
                clients.socks5(node.door("socks"), "127.0.0.1", target.port, ("alice", hashed))
