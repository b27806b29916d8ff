"""The control interface: who may ask, what is answered, and that nothing can be made of it by mistake."""

import base64
import contextlib
import hashlib
import http.client
import json
import os
import re
import socket as std_socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.event
import pytest
from gevent import socket
from prometheus_client.parser import text_string_to_metric_families

from proxy.config import ProxyConfig
from proxy.configfile.dump import dump
from proxy.control.admin import Admin
from proxy.control.http import MAX_BODY, PLACES
from proxy.control.program import Program
from proxy.ctl.ask import SOCKET_NAME, ask, is_taken
from proxy.errors import ProxyError
from proxy.keeping.candidate import Conflict, Outcome
from proxy.keeping.history import Version
from proxy.keeping.inifile import Trouble
from proxy.limiter import Limiter
from proxy.metrics import Metrics
from proxy.relaying.stream import Ending
from proxy.settings.listener import ServerConfig
from proxy.settings.protocols import Protocol
from proxy.socks5.server import Socks5Server
from proxy.trust import Trust

TOKEN = "open sesame"
SECRET = "wonderland"


class FakeKeeper:
    """A keeper that remembers what it was asked."""

    def __init__(self, **settings: Any) -> None:
        listener = ServerConfig("127.0.0.1:0", Protocol.SOCKS5, "socks", auth_users={"alice": SECRET})
        self.config = ProxyConfig(listeners=(listener,), auth_users=listener.auth_users, **settings)
        self.outcomes = {"applied": 1, "unchanged": 0, "rejected": 0}
        self.asked: list[Any] = []
        self.outcome = Outcome("applied", 3, (), ())
        self.has_left = False  # the folder
        self.trouble: Trouble | None = None
        self._all = [
            Version(number, 1000.0 + number, "file", f"change {number}", SECRET) for number in (1, 2)
        ]
        self.current = self._all[-1]

    def leave_folder(self) -> None:
        self.has_left = True

    def versions(self) -> list[Version]:
        return self._all

    def get(self, number: int) -> Version:
        return {each.number: each for each in self._all}[number]

    def redacted(self, version: Version) -> str:
        return f"text of {version.number}"

    def digest(self) -> str:
        return "abc"

    def shown(self) -> str:
        return dump(self.config)

    def diff(self, old: Version, new: Version) -> str:
        return f"from {old.number} to {new.number}"

    def reload(self, source: str) -> Outcome:
        return self._note("reload", source)

    def rollback(self, number: int | None) -> Outcome:
        if number is not None:
            self.get(number)
        return self._note("rollback", number)

    def change(self, edits: Any, *, volatile: bool = False, if_match: int | None = None) -> Outcome:
        if if_match not in (None, self.current.number):
            raise Conflict(self.current)
        return self._note("change", edits, volatile)

    def _note(self, *what: Any) -> Outcome:
        self.asked.append(what)
        return self.outcome


class House:
    """A running program with a control interface, all in this process."""

    def __init__(self, directory: Path, *, why_not_ours: str = "", **settings: Any) -> None:
        self.keeper = FakeKeeper(**settings)
        metrics = Metrics()
        server = Socks5Server(self.keeper.config.listeners[0], metrics=metrics)
        self.reopened = 0
        self.app = SimpleNamespace(
            servers=[server],
            metrics=metrics,
            limiter=Limiter(),
            draining=False,
            draining_for=0.0,
            reopen_logs=self._reopen_logs,
        )
        self.path = directory / SOCKET_NAME
        self.config = directory / "proxy.ini"
        self.admin = Admin(
            Program(self.app),
            self.keeper,  # type: ignore[arg-type]
            str(self.config),
            directory,
            Trust(),
            why_not_ours=why_not_ours,
        )

    def _reopen_logs(self) -> tuple[str, ...]:
        self.reopened += 1
        return ()

    @property
    def server(self) -> Socks5Server:
        return self.app.servers[0]  # type: ignore[no-any-return]

    def __enter__(self) -> "House":
        self.server.listen()
        self.admin.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.admin.stop()
        self.server.shutdown()

    def talk(self, data: bytes) -> bytes:
        """Send bytes to the Unix socket, and read to the end."""
        with socket.socket(std_socket.AF_UNIX) as sock:
            sock.connect(str(self.path))
            return talk(sock, data)

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """Make a request, and read the JSON of its answer."""
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        status, _, text = parse(self.talk(request(method, path, content, **headers)))
        return status, json.loads(text)


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [
        f"{name.replace('_', '-')}: {value}" for name, value in ({"Host": "localhost"} | headers).items()
    ]
    if body and "Content_Length" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + body


def talk(sock: socket.socket, data: bytes) -> bytes:
    sock.sendall(data)
    return b"".join(iter(lambda: sock.recv(65536), b""))


class _Fake:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> Any:
        import io

        return io.BytesIO(self._data)


def parse(data: bytes) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Parse an answer by the standard library."""
    answer = http.client.HTTPResponse(_Fake(data))  # type: ignore[arg-type]
    answer.begin()
    return answer.status, answer.headers, answer.read()


class Recorded:
    """A session that only remembers how it was ended."""

    def __init__(self, number: int, stop: Callable[[Ending], None]) -> None:
        self.id = number
        self.stop = stop


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    with gevent.Timeout(20):
        yield


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not below pytest's own: its long names leave no room for a Unix socket's path.
    with tempfile.TemporaryDirectory(prefix="pxt-") as path:
        yield Path(path)


@pytest.fixture
def house(directory: Path) -> Iterator[House]:
    with House(directory) as house:
        yield house


@pytest.fixture
def tcp(directory: Path) -> Iterator[Callable[[bytes], bytes]]:
    """Give what talks to the control interface on TCP."""
    with House(directory, control_listen_addr="127.0.0.1:0", control_token=TOKEN) as house:
        address = house.admin.addresses[0]

        def ask(data: bytes) -> bytes:
            with socket.create_connection((address.host, address.port)) as sock:
                return talk(sock, data)

        yield ask


class TestSocket:
    def test_is_for_its_owner_alone(self, house: House) -> None:
        """DESIGN 1.8: mode 0600."""
        assert stat.S_IMODE(house.path.stat().st_mode) == 0o600
        assert os.listdir(house.path.parent) == [SOCKET_NAME]

    def test_the_folder_is_made_for_its_owner_alone(self, directory: Path) -> None:
        with House(directory / "state") as house:
            assert stat.S_IMODE(house.path.parent.stat().st_mode) == 0o700

    def test_what_a_crash_left_behind_gives_way(self, directory: Path) -> None:
        with socket.socket(std_socket.AF_UNIX) as left:
            left.bind(str(directory / SOCKET_NAME))
        with House(directory) as house:
            assert house.ask("GET", "/healthz")[0] == 200

    def test_is_gone_after_the_stop(self, directory: Path) -> None:
        with House(directory) as house:
            pass
        assert not house.path.exists()

    def test_a_second_server_leaves_the_folder_alone(
        self, house: House, caplog: pytest.LogCaptureFixture
    ) -> None:
        """CASES H211: whoever means the one must not reach the other."""
        folder = house.path.parent
        before = house.path.stat().st_ino
        with House(folder, why_not_ours="it is taken") as second:
            assert second.keeper.has_left
            assert house.path.stat().st_ino == before
        assert house.ask("GET", "/healthz")[0] == 200
        (said,) = caplog.messages
        assert said == (
            "it is taken: this server has no control socket, and keeps its versions in memory only; "
            f"set another state_dir in {second.config}, and start it again"
        )

    def test_a_second_server_that_finds_it_taken_at_the_last_moment_does_too(
        self, house: House, caplog: pytest.LogCaptureFixture
    ) -> None:
        """CASES H211: both started at once, and both found the folder free."""
        before = house.path.stat().st_ino
        with House(house.path.parent) as second:
            assert second.keeper.has_left
            assert house.path.stat().st_ino == before
        assert "is the state_dir of another server" in caplog.text
        assert not house.keeper.has_left

    def test_it_does_not_come_back_when_the_other_one_has_gone(self, directory: Path) -> None:
        """CASES H211: what it knows of its versions is not what stands there."""
        with House(directory, why_not_ours="it was taken") as second:
            assert second.keeper.has_left
            assert not second.path.exists()

    def test_a_folder_where_others_may_write_is_left_alone(
        self, directory: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Case 378."""
        directory.chmod(0o777)
        with House(directory) as house:
            assert house.keeper.has_left
            assert not house.path.exists()
        assert caplog.messages[0].startswith(
            f"others may write in {directory}: this server has no control socket"
        )

    def test_a_folder_is_taken_while_a_server_listens_there(self, directory: Path) -> None:
        assert not is_taken(directory)
        with House(directory) as house:
            assert is_taken(directory)
            house.app.draining = True
            assert not is_taken(directory)
            house.app.draining = False
        assert not is_taken(directory)
        with socket.socket(std_socket.AF_UNIX) as left:
            left.bind(str(directory / SOCKET_NAME))
        assert not is_taken(directory)
        assert not is_taken(directory / ("x" * 120))

    def test_also_by_one_that_has_no_time_to_answer(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("proxy.ctl.ask._PATIENCE", 0.05)
        with socket.socket(std_socket.AF_UNIX) as busy:
            busy.bind(str(directory / SOCKET_NAME))
            busy.listen()
            assert is_taken(directory)

    def test_a_successor_comes_while_the_first_drains_and_keeps_its_own(self, directory: Path) -> None:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(House(directory))
            first.app.draining = True
            with House(directory) as second:
                stack.close()
                assert second.ask("GET", "/healthz") == (200, {"status": "ok"})

    @pytest.mark.parametrize("how", ["taken away", "not to be had"])
    def test_what_is_gone_is_opened_anew(self, directory: Path, how: str) -> None:
        """Such as by what clears /tmp, or because the disk was full: that passes, and a reload asks again."""
        with contextlib.ExitStack() as stack:
            blocked = directory / "state"
            if how == "not to be had":
                blocked.touch()
            house = stack.enter_context(House(blocked))
            blocked.unlink() if how == "not to be had" else house.path.unlink()
            for _ in range(2):
                house.admin.reopen()
                assert house.ask("GET", "/healthz")[0] == 200

    def test_that_of_a_successor_is_left_alone(self, directory: Path) -> None:
        with House(directory) as first:
            first.app.draining = True
            with House(directory) as second:
                inode = second.path.stat().st_ino
                first.admin.reopen()
                assert second.path.stat().st_ino == inode

    def test_where_there_can_be_none_the_proxy_runs_on(
        self, directory: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (directory / "file").touch()
        with House(directory / "file" / "state"):
            assert "no control socket" in caplog.text

    def test_a_path_that_is_too_long_is_said(self, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
        """One byte decides: unix(7) has room for 107."""
        room = 107 - len(f"{directory}//{SOCKET_NAME}")
        with House(directory / ("x" * room)) as house:
            assert (caplog.text, house.ask("GET", "/healthz")[0]) == ("", 200)
        with House(directory / ("x" * (room + 1))):
            assert "no control socket" in caplog.text
            assert "path too long" in caplog.text


class TestWhoIsMeant:
    """CASES H211: ctl with another file must not change this server. 421: RFC 9110, section 15.5.20."""

    def says(self, house: House, path: str | Path) -> int:
        status, answer = house.ask("GET", "/status", X_Proxy_Config=str(path))
        if status == 421:
            said = f"the server that listens here runs with {house.config}: "
            assert answer == {"error": said + "give each server its own state_dir"}
        return status

    def test_its_own_file_by_any_name(self, house: House) -> None:
        house.config.touch()
        (house.config.parent / "link.ini").symlink_to("proxy.ini")
        assert self.says(house, house.config) == 200
        assert self.says(house, house.config.parent / "link.ini") == 200
        assert self.says(house, house.config.parent / "." / "%70roxy.ini") == 200

    def test_another_file_is_refused(self, house: House) -> None:
        other = house.config.parent / "other.ini"
        other.touch()
        assert self.says(house, other) == 421  # here it has none of its own,
        house.config.touch()
        assert self.says(house, other) == 421  # and here it has
        assert self.says(house, "") == 421
        assert self.says(house, "/%00") == 421

    def test_what_the_file_is_at_the_time_counts(self, house: House) -> None:
        """Such as in a ConfigMap, where links are switched."""
        old, new = house.config.parent / "old.ini", house.config.parent / "new.ini"
        old.touch()
        new.touch()
        house.config.symlink_to(old)
        assert (self.says(house, old), self.says(house, new)) == (200, 421)
        house.config.unlink()
        house.config.symlink_to(new)
        assert (self.says(house, old), self.says(house, new)) == (421, 200)

    def test_a_file_that_is_missing_is_known_by_its_place(self, house: House) -> None:
        """A rollback brings it back."""
        assert self.says(house, house.config) == 200
        assert self.says(house, house.config.parent / "x" / ".." / "proxy.ini") == 200

    def test_ctl_and_the_server_spell_a_path_in_one_way(self, directory: Path) -> None:
        folder = directory / "a b%2f\udcffü"
        with House(folder) as house:
            answers = [
                ask(house.path, "GET", "/healthz", patience=10, config=str(folder / name))[0]
                for name in ("proxy.ini", "other.ini")
            ]
        assert answers == [200, 421]

    def test_nothing_is_changed_for_somebody_else(self, house: House) -> None:
        for method, path in (("POST", "/reload"), ("POST", "/rollback"), ("PATCH", "/config")):
            assert house.ask(method, path, {}, X_Proxy_Config="/other.ini")[0] == 421
        assert house.keeper.asked == []

    def test_on_tcp_it_is_the_same_for_who_knows_the_token(self, tcp: Callable[[bytes], bytes]) -> None:
        headers: Any = {"X_Proxy_Config": "/other.ini"}
        assert parse(tcp(request("GET", "/status", **headers)))[0] == 401
        assert parse(tcp(request("GET", "/status", Authorization=f"Bearer {TOKEN}", **headers)))[0] == 421


class TestLooking:
    def test_status(self, house: House) -> None:
        status, answer = house.ask("GET", "/status")
        assert status == 200
        assert answer["version"]["number"] == 2
        assert (answer["state"], answer["live"], answer["total"]) == ("running", 0, 0)
        (listener,) = answer["listeners"]
        assert listener["addresses"] == [str(house.server.addresses[0])]

    def test_connections(self, house: House) -> None:
        address = house.server.addresses[0]
        with socket.create_connection((address.host, address.port)) as client:
            client.sendall(b"\x05")
            while not (found := house.ask("GET", "/connections")[1]["connections"]):
                gevent.sleep(0.001)
            here = client.getsockname()
        (one,) = found
        assert (one["client"], one["state"], one["listener"]) == (
            f"{here[0]}:{here[1]}",
            "handshake",
            "socks",
        )

    def test_versions(self, house: House) -> None:
        _, answer = house.ask("GET", "/versions")
        assert answer["current"] == 2
        assert [each["number"] for each in answer["versions"]] == [1, 2]
        assert house.ask("GET", "/versions/1")[1]["text"] == "text of 1"
        assert house.ask("GET", "/versions/1?to=2")[1]["diff"] == "from 1 to 2"
        assert house.ask("GET", "/versions/1?to=current")[1]["diff"] == "from 1 to 2"

    @pytest.mark.parametrize(
        "path", ["/versions/9", "/versions/1?to=9", "/versions/x", "/nothing", "/status/"]
    )
    def test_what_is_not_there_is_404(self, house: House, path: str) -> None:
        assert house.ask("GET", path)[0] == 404

    def test_metrics_are_what_prometheus_reads(self, house: House) -> None:
        status, headers, text = parse(house.talk(request("GET", "/metrics")))
        assert status == 200
        # https://prometheus.io/docs/instrumenting/exposition_formats/
        assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
        names = {family.name for family in text_string_to_metric_families(text.decode())}
        assert names >= {
            *("proxy_connections", "proxy_bytes", "proxy_handshake_seconds", "proxy_dial_seconds"),
            *("proxy_failures", "proxy_config_version", "proxy_reloads", "process_cpu_seconds"),
        }

    def test_health(self, house: House) -> None:
        assert house.ask("GET", "/healthz") == (200, {"status": "ok"})
        house.app.draining = True
        assert house.ask("GET", "/healthz") == (503, {"status": "draining"})

    def test_what_is_in_effect(self, house: House) -> None:
        """Case 357."""
        status, answer = house.ask("GET", "/config")
        assert (status, answer["version"]) == (200, 2)
        assert "alice = ********" in answer["text"]
        assert house.keeper.asked == []

    @pytest.mark.parametrize(
        "path", ["/status", "/connections", "/limits", "/versions", "/versions/1", "/config", "/metrics"]
    )
    def test_no_answer_has_a_secret(self, directory: Path, path: str) -> None:
        with House(directory, control_token=TOKEN) as house:
            answer = house.talk(request("GET", path))
            assert SECRET.encode() not in answer
            assert TOKEN.encode() not in answer

    def test_head_is_get_without_the_body(self, house: House) -> None:
        """RFC 9110, section 9.3.2."""
        answer = house.talk(request("HEAD", "/healthz"))
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\n")


class TestChanging:
    @pytest.mark.parametrize("path", ["/reload", "/rollback", "/connections/1"])
    def test_get_changes_nothing(self, house: House, path: str) -> None:
        """CASES J224."""
        status, headers, _ = parse(house.talk(request("GET", path)))
        assert status == 405
        assert "GET" not in headers["Allow"]
        assert house.keeper.asked == []

    def test_reload(self, house: House) -> None:
        answer = {"status": "applied", "version": 3, "problems": [], "notes": []}
        assert house.ask("POST", "/reload") == (200, answer)
        assert house.keeper.asked == [("reload", "ctl")]

    def test_what_is_rejected_says_why(self, house: House) -> None:
        """CASES 193, 211."""
        house.keeper.outcome = Outcome("rejected", 2, ("proxy.ini:3: [proxy] timeout: bad",), ())
        status, answer = house.ask("POST", "/reload")
        assert (status, answer["status"], answer["version"]) == (422, "rejected", 2)
        assert answer["problems"] == ["proxy.ini:3: [proxy] timeout: bad"]

    def test_rollback(self, house: House) -> None:
        house.ask("POST", "/rollback")
        house.ask("POST", "/rollback", {"version": 1})
        assert house.keeper.asked == [("rollback", None), ("rollback", 1)]
        assert house.ask("POST", "/rollback", {"version": 9})[0] == 404

    def test_set_and_unset_are_one_change(self, house: House) -> None:
        """CASES 211."""
        body = {"set": {"proxy.timeout": "5s", "proxy.max_connections": 9, "proxy.enable_upstream": False}}
        assert house.ask("PATCH", "/config", body | {"unset": ["auth_users.bob"]})[0] == 200
        ((_, edits, volatile),) = house.keeper.asked
        assert edits == [
            ("proxy.timeout", "5s"),
            ("proxy.max_connections", "9"),
            ("proxy.enable_upstream", "no"),
            ("auth_users.bob", None),
        ]
        assert volatile is False

    def test_volatile(self, house: House) -> None:
        house.ask("PATCH", "/config", {"set": {"proxy.timeout": "5s"}, "volatile": True})
        assert house.keeper.asked == [("change", [("proxy.timeout", "5s")], True)]

    def test_the_loser_of_two_changes_is_told(self, house: House) -> None:
        body = {"unset": ["auth_users.bob"]}
        status, answer = house.ask("PATCH", "/config", body, If_Match='"1"')
        assert (status, answer["version"]) == (412, 2)
        assert house.keeper.asked == []
        assert house.ask("PATCH", "/config", body, If_Match='"2"')[0] == 200

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[]",
            b"\xff",
            b"[" * 50_000,
            b"{}",
            b'{"set": {}}',
            b'{"set": []}',
            b'{"set": {"a.b": null}}',
            b'{"set": {"a.b": NaN}}',
            b'{"set": {"a.b": -Infinity}}',
            b'{"set": {"a.b": 1e999}}',
            b'{"set": {"a.b": ["x"]}}',
            b'{"unset": "a.b"}',
            b'{"unset": [1]}',
            b'{"set": {"a.b": "x"}, "unset": ["a.b"]}',
            b'{"set": {"a.b": "x"}, "volatile": 1}',
            b'{"set": {"a.b": "x"}, "volatil": true}',
        ],
        ids=lambda body: body[:40].decode("latin-1"),
    )
    def test_a_body_that_is_not_understood_changes_nothing(self, house: House, body: bytes) -> None:
        status, answer = house.ask("PATCH", "/config", body)
        assert (status, list(answer)) == (400, ["error"])
        assert house.keeper.asked == []

    @pytest.mark.parametrize(
        ("number", "written"),
        [("2.5", "2.5"), ("0.5e1", "5.0"), ("1e-7", "0.0000001")],
    )
    def test_a_number_may_have_a_fraction(self, house: House, number: str, written: str) -> None:
        """RFC 8259, section 6; the file knows no exponents."""
        assert house.ask("PATCH", "/config", b'{"set": {"proxy.timeout": %s}}' % number.encode())[0] == 200
        assert house.keeper.asked == [("change", [("proxy.timeout", written)], False)]

    @pytest.mark.parametrize("value", ["x", '"1', "1.5", 'W/"1"', '"1", "2"'])
    def test_an_if_match_that_is_no_version_is_refused(self, house: House, value: str) -> None:
        assert house.ask("PATCH", "/config", {"unset": ["a.b"]}, If_Match=value)[0] == 400
        assert house.keeper.asked == []

    @pytest.mark.parametrize(
        ("method", "path"), [("POST", "/reload"), ("POST", "/rollback"), ("PATCH", "/config")]
    )
    def test_a_server_that_stops_keeps_its_configuration(self, house: House, method: str, path: str) -> None:
        """CASES 206."""
        house.app.draining = True
        assert house.ask(method, path)[0] == 409
        assert house.keeper.asked == []

    def test_kill_ends_a_connection_wherever_it_is(self, house: House) -> None:
        address = house.server.addresses[0]
        with socket.create_connection((address.host, address.port)) as client:
            client.sendall(b"\x05")
            while not house.server.sessions:
                gevent.sleep(0.001)
            (session,) = house.server.sessions
            assert house.ask("DELETE", f"/connections/{session.id}")[0] == 200
            assert client.recv(1) == b""
        assert house.ask("DELETE", f"/connections/{session.id}")[0] == 404

    def test_kill_is_an_eviction(self, house: House) -> None:
        """RFC 6455, section 7.4.1: a WebSocket client is told 1008."""
        stopped: list[Ending] = []
        session: Any = Recorded(7, stopped.append)
        house.server.sessions.add(session)
        house.ask("DELETE", "/connections/7")
        house.server.sessions.clear()
        assert stopped == [Ending.EVICTED]


class TestStrictness:
    def test_a_body_is_bounded_before_it_is_read(self, house: House) -> None:
        head = request("PATCH", "/config", Content_Length=str(MAX_BODY + 1))
        assert parse(house.talk(head))[0] == 413

    @pytest.mark.parametrize("length", ["-1", "1e3", "x", "9" * 30, "\xb2"])
    def test_a_length_that_is_none_is_refused(self, house: House, length: str) -> None:
        assert parse(house.talk(request("POST", "/reload", Content_Length=length)))[0] in (400, 413)

    def test_a_chunked_body_is_refused(self, house: House) -> None:
        data = request("POST", "/reload", Transfer_Encoding="chunked") + b"0\r\n\r\n"
        assert parse(house.talk(data))[0] == 411

    @pytest.mark.parametrize(
        "data", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\n\n", b"hello\r\n\r\n"]
    )
    def test_what_is_no_http_is_400(self, house: House, data: bytes) -> None:
        assert parse(house.talk(data))[0] == 400
        assert house.ask("GET", "/healthz")[0] == 200

    def test_a_second_request_behind_the_first_is_not_served(self, house: House) -> None:
        house.talk(request("GET", "/healthz") + request("POST", "/reload"))
        assert house.keeper.asked == []

    def test_a_request_in_pieces_is_understood(self, house: House) -> None:
        with socket.socket(std_socket.AF_UNIX) as sock:
            sock.connect(str(house.path))
            for byte in request("POST", "/rollback", b'{"version": 1}'):
                sock.sendall(bytes([byte]))
            assert parse(talk(sock, b""))[0] == 200

    def test_a_slow_client_is_cut(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("proxy.control.http.PATIENCE", 0.1)
        assert parse(house.talk(b"GET /status HT"))[0] == 408

    def test_who_says_nothing_takes_nobodys_place(self, directory: Path) -> None:
        """The places are not shared by those who know the token and those who need not say anything."""
        with House(directory, control_listen_addr="127.0.0.1:0", control_token=TOKEN) as house:
            address = house.admin.addresses[0]
            with contextlib.ExitStack() as stack:
                for _ in range(3 * PLACES):
                    stack.enter_context(socket.create_connection((address.host, address.port)))
                with socket.create_connection((address.host, address.port)) as sock:
                    answer = talk(sock, request("GET", "/healthz", Authorization=f"Bearer {TOKEN}"))
            assert parse(answer)[0] == 200

    def test_a_failure_of_ours_is_one_line(
        self, house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(house.keeper, "reload", lambda source: 1 // 0)
        assert house.ask("POST", "/reload") == (500, {"error": "internal error"})
        assert "control: internal error: ZeroDivisionError" in caplog.text


class TestPage:
    """DESIGN 1.14."""

    def get(self, answer: bytes) -> tuple[http.client.HTTPMessage, str]:
        status, headers, body = parse(answer)
        assert status == 200
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        return headers, body.decode()

    def test_is_one_small_file_that_needs_nothing_from_elsewhere(self, house: House) -> None:
        _, text = self.get(house.talk(request("GET", "/")))
        assert len(text.encode()) <= 24 * 1024
        for word in ("http:", "https:", "import(", "innerHTML", "outerHTML", "insertAdjacent", " style="):
            assert word not in text
        assert re.findall(r"<(?:script|link|img|iframe|object|embed)\b[^>]*>", text) == ["<script>"]
        assert not re.search(r"<[^>]* on\w+=", text)

    def test_its_policy_allows_what_is_in_it_and_nothing_else(self, house: House) -> None:
        """CSP 3, section 6.7.3: the hash is that of the text between the tags."""
        headers, text = self.get(house.talk(request("GET", "/")))
        policy = dict(each.split(" ", 1) for each in headers["Content-Security-Policy"].split("; "))
        for name in ("script", "style"):
            inside = text.partition(f"<{name}>")[2].partition(f"</{name}>")[0]
            digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
            assert policy[f"{name}-src"] == f"'sha256-{digest}'"
        assert policy["connect-src"] == "'self'"
        nothing = ("default-src", "base-uri", "form-action", "frame-ancestors")
        assert {policy[name] for name in nothing} == {"'none'"}
        assert headers["X-Content-Type-Options"] == "nosniff"

    def test_on_tcp_anybody_gets_it_with_nothing_in_it_and_it_asks_for_the_token(
        self, directory: Path
    ) -> None:
        with House(directory, control_listen_addr="127.0.0.1:0", control_token=TOKEN) as house:
            address = house.admin.addresses[0]
            with socket.create_connection((address.host, address.port)) as sock:
                _, text = self.get(talk(sock, request("GET", "/")))
            with socket.create_connection((address.host, address.port)) as sock:
                assert parse(talk(sock, request("POST", "/")))[0] == 401
            _, here = self.get(house.talk(request("GET", "/")))
        assert text == here.replace('data-token="none"', 'data-token="needed"')
        assert text != here


class TestBrowser:
    """A browser comes to the socket by a port that ssh forwards, and any page in it may ask that port."""

    @pytest.mark.parametrize("host", ["localhost:9180", "127.0.0.1:9180", "[::1]:9180", "LOCALHOST"])
    def test_our_page_may_ask(self, house: House, host: str) -> None:
        assert house.ask("POST", "/reload", Host=host, Origin=f"http://{host}")[0] == 200

    @pytest.mark.parametrize(
        "origin", ["null", "http://attacker.example", "http://localhost:3000", "http://localhost", ""]
    )
    @pytest.mark.parametrize(
        ("method", "path"),
        [("POST", "/reload"), ("POST", "/rollback"), ("PATCH", "/config"), ("DELETE", "/connections/1")],
    )
    def test_a_page_of_another_origin_may_not(
        self, house: House, method: str, path: str, origin: str
    ) -> None:
        """Fetch, section 3.2: a browser sends the header with whatever is neither GET nor HEAD."""
        assert house.ask(method, path, Host="localhost:9180", Origin=origin)[0] == 403
        assert house.keeper.asked == []

    @pytest.mark.parametrize(
        "host", ["attacker.example", "attacker.example:9180", "localhost.attacker.example"]
    )
    def test_nor_one_whose_name_was_made_to_lead_here(self, house: House, host: str) -> None:
        """DNS rebinding: its origin is the same as ours, and its requests for it are no others."""
        assert house.ask("GET", "/status", Host=host)[0] == 421
        assert house.ask("POST", "/reload", Host=host, Origin=f"http://{host}")[0] == 421
        assert house.keeper.asked == []

    def test_what_is_no_browser_need_say_no_host(self, house: House) -> None:
        assert parse(house.talk(b"GET /healthz HTTP/1.0\r\n\r\n"))[0] == 200


class TestTcp:
    """CASES J224."""

    def test_is_off_by_default(self, house: House) -> None:
        assert house.admin.addresses == []

    def test_the_token_opens_it(self, tcp: Callable[[bytes], bytes]) -> None:
        assert parse(tcp(request("GET", "/status", Authorization=f"Bearer {TOKEN}")))[0] == 200

    @pytest.mark.parametrize("path", ["/healthz", "/livez"])
    def test_whether_it_is_well_needs_none_and_is_all_that_is_told(
        self, tcp: Callable[[bytes], bytes], path: str
    ) -> None:
        """DESIGN 1.13: a load balancer has no token."""
        status, _, body = parse(tcp(request("GET", path)))
        assert status == 200
        assert json.loads(body) == {"status": "ok" if path == "/healthz" else "alive"}
        assert parse(tcp(request("POST", path)))[0] == 401

    @pytest.mark.parametrize(
        "given",
        ["", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer \xe9"],
    )
    @pytest.mark.parametrize("path", ["/status", "/healthz?x", "/nothing"])
    def test_without_it_nothing_is_told(self, tcp: Callable[[bytes], bytes], path: str, given: str) -> None:
        headers: Any = {"Authorization": given} if given else {}
        status, answered, body = parse(tcp(request("GET", path, **headers).replace(b"\xc3\xa9", b"\xe9")))
        assert (status, answered["WWW-Authenticate"]) == (401, "Bearer")
        assert list(json.loads(body)) == ["error"]

    def test_a_failure_is_logged_in_the_form_of_fail2ban(
        self, tcp: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
    ) -> None:
        tcp(request("GET", "/status", Authorization="Bearer guess"))
        assert "authentication failed: client=127.0.0.1 user=- listener=control" in caplog.text
        assert "guess" not in caplog.text

    def test_a_token_that_was_changed_while_the_request_came_opens_nothing(self, directory: Path) -> None:
        with House(directory, control_listen_addr="127.0.0.1:0", control_token=TOKEN) as house:
            address = house.admin.addresses[0]
            head = request("POST", "/reload", b"{}", Authorization=f"Bearer {TOKEN}")
            with socket.create_connection((address.host, address.port)) as sock:
                sock.sendall(head[:-1])
                read, expired = house.admin._is_token, gevent.event.Event()

                def read_and_tell(authorization: str) -> bool:
                    is_token = read(authorization)
                    expired.set()
                    return is_token

                house.admin._is_token = read_and_tell  # type: ignore[method-assign]
                expired.wait()
                house.keeper.config = replace(house.keeper.config, control_token="another")
                assert parse(talk(sock, head[-1:]))[0] == 401
            assert house.keeper.asked == []

    @pytest.mark.parametrize(
        "host", ["attacker.example", "attacker.example:9180", "127.0.0.1.attacker.example", ""]
    )
    @pytest.mark.parametrize("given", ["", "Bearer guess"])
    def test_a_name_that_is_not_ours_is_refused(
        self, tcp: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture, host: str, given: str
    ) -> None:
        """
        Case 309. DNS rebinding: a page of attacker.example, whose name was made to lead here.

        Its victim's address is not to be banned for it.
        """
        headers: Any = {"Authorization": given} if given else {}
        status, _, body = parse(tcp(request("GET", "/status", Host=host, **headers)))
        assert status == 421  # RFC 9110, section 15.5.20
        assert "send the token" in json.loads(body)["error"]
        assert "authentication failed" not in caplog.text

    def test_for_who_knows_the_token_any_name_will_do(self, tcp: Callable[[bytes], bytes]) -> None:
        """Case 309: such as that of a container."""
        data = request("GET", "/status", Host="proxy:9180", Authorization=f"Bearer {TOKEN}")
        assert parse(tcp(data))[0] == 200
        assert parse(tcp(data.replace(b"Host: proxy:9180\r\n", b"")))[0] == 400  # RFC 9112, section 3.2

    def test_a_load_balancer_that_speaks_an_old_http_may_look(self, tcp: Callable[[bytes], bytes]) -> None:
        """As HAProxy does by default; in HTTP/1.1 a request without Host is wrong (RFC 9112, section 3.2)."""
        assert parse(tcp(b"GET /healthz HTTP/1.0\r\n\r\n"))[0] == 200
        assert parse(tcp(b"GET /healthz HTTP/1.1\r\n\r\n"))[0] == 400
        assert parse(tcp(b"GET /status HTTP/1.0\r\n\r\n"))[0] == 400

    @pytest.mark.parametrize(
        "host", ["localhost", "LOCALHOST:9180", "127.0.0.1:9180", "[::1]:9180", "192.0.2.1"]
    )
    def test_an_address_is_nobodys_name(self, tcp: Callable[[bytes], bytes], host: str) -> None:
        data = request("GET", "/status", Host=host, Authorization=f"Bearer {TOKEN}")
        assert parse(tcp(data))[0] == 200

    def test_two_hosts_are_refused(self, tcp: Callable[[bytes], bytes]) -> None:
        data = request("GET", "/status", host="attacker.example", Authorization=f"Bearer {TOKEN}")
        assert parse(tcp(data))[0] == 400

    def test_no_other_origin_is_allowed_anything(self, tcp: Callable[[bytes], bytes]) -> None:
        """What a browser asks before it lets a page of another origin send a token, or a PATCH."""
        preflight = request(
            "OPTIONS",
            "/config",
            Origin="https://attacker.example",
            Access_Control_Request_Method="PATCH",
            Authorization=f"Bearer {TOKEN}",
        )
        for data in (preflight, request("GET", "/status", Origin="null", Authorization=f"Bearer {TOKEN}")):
            status, headers, _ = parse(tcp(data))
            assert not any(name.lower().startswith("access-control") for name in headers)
        assert status == 200
        assert parse(tcp(preflight))[0] == 405

    def test_an_address_in_use_is_an_error_of_the_start(self, directory: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            house = House(directory, control_listen_addr=address, control_token=TOKEN)
            with pytest.raises(ProxyError, match=r"cannot listen on 127\.0\.0\.1"):
                house.admin.start()


class TestWhatMeansNothing:
    """A request is done as it was written, or refused: nothing in it is passed over."""

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("POST", "/rollback?version=1"),
            ("POST", "/reload?force=1"),
            ("PATCH", "/config?volatile=true"),
            ("DELETE", "/connections/1?user=bob"),
            ("GET", "/status?listener=socks"),
            ("GET", "/versions?limit=1"),
            ("GET", "/versions/1?from=2"),
            ("GET", "/connections?limit=1&limit=2"),
        ],
    )
    def test_a_query_that_would_have_no_effect_is_refused(self, house: House, method: str, path: str) -> None:
        status, answer = house.ask(method, path)
        assert (status, list(answer)) == (400, ["error"])
        assert house.keeper.asked == []

    @pytest.mark.parametrize("path", ["/healthz?t=1", "/livez?t=1", "/metrics?collect=all"])
    def test_who_looks_after_servers_may_add_one(self, house: House, path: str) -> None:
        assert parse(house.talk(request("GET", path)))[0] == 200

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("POST", "/reload", b'{"force": true}'),
            ("POST", "/reload", b"now"),
            ("POST", "/upgrade", b'{"to": "1.0"}'),
            ("POST", "/rollback", b'{"version": 1, "version": 2}'),
            ("PATCH", "/config", b'{"set": {"proxy.timeout": "5s"}, "set": {"proxy.timeout": "6s"}}'),
            ("PATCH", "/config", b'{"set": {"proxy.timeout": "5s", "proxy.timeout": "6s"}}'),
        ],
    )
    def test_so_is_a_body_that_would_have_none(
        self, house: House, method: str, path: str, body: bytes
    ) -> None:
        status, answer = house.ask(method, path, body)
        assert (status, list(answer)) == (400, ["error"])
        assert house.keeper.asked == []

    def test_a_compressed_body_is_none_of_ours(self, house: House) -> None:
        """RFC 9110, section 15.5.16."""
        body = {"set": {"proxy.timeout": "5s"}}
        assert house.ask("PATCH", "/config", body, Content_Encoding="gzip")[0] == 415
        assert house.ask("PATCH", "/config", body, Content_Encoding="identity")[0] == 200

    def test_curl_says_of_all_that_it_sends_that_it_is_a_form(self, house: House) -> None:
        """Else each ``curl -d`` would need a header."""
        kind = "application/x-www-form-urlencoded"
        assert house.ask("PATCH", "/config", {"set": {"proxy.timeout": "5s"}}, Content_Type=kind)[0] == 200

    def test_a_request_without_a_host_is_none(self, house: House) -> None:
        """RFC 9112, section 3.2; HTTP/1.0 knows no such thing."""
        data = request("GET", "/status").replace(b"Host: localhost\r\n", b"")
        assert parse(house.talk(data))[0] == 400
        assert parse(house.talk(data.replace(b"HTTP/1.1", b"HTTP/1.0")))[0] == 200

    def test_the_methods_that_will_do_are_named(self, house: House) -> None:
        """RFC 9110, section 15.5.6: all of them, so HEAD too."""
        _, headers, _ = parse(house.talk(request("PUT", "/config", b"{}")))
        assert headers["Allow"] == "HEAD, GET, PATCH"
        _, headers, _ = parse(house.talk(request("GET", "/reload")))
        assert headers["Allow"] == "POST"
