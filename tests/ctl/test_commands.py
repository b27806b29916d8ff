"""The client of the control interface: what it asks, where it prints the answer, and how it fails."""

import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from proxy import cli, console
from proxy.ctl import commands as ctl
from proxy.ctl.units import moment
from proxy.policy.auth import Authenticator, hash_password
from tests.ctl.answers import STATUS

APPLIED = {"status": "applied", "version": 13, "problems": [], "notes": ["splice needs a restart"]}


class Server:
    """A server that answers every request in one way, and remembers what it was asked."""

    def __init__(self, folder: Path, status: int = 200, answer: object = None) -> None:
        self.config = folder / "proxy.ini"
        self.asked: list[tuple[str, str, object]] = []
        self.meant = ""  # whom the last request was for
        body = answer if isinstance(answer, str) else json.dumps(answer)
        self._answer = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        (folder / ".proxy").mkdir()
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(folder / ".proxy" / "control.sock"))
        self._sock.listen()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self._sock.accept()
                with peer, peer.makefile("rb") as file:
                    peer.settimeout(10)
                    method, path, _ = file.readline().decode().split()
                    lines = iter(lambda: file.readline().decode().strip(), "")
                    fields = (line.split(": ", 1) for line in lines)
                    headers = {name.lower(): value for name, value in fields}
                    body = file.read(int(headers.get("content-length", 0)))
                    self.meant = headers.get("x-proxy-config", "")
                    self.asked.append((method, path, json.loads(body) if body else None))
                    peer.sendall(self._answer)

    def close(self) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in it
        self._sock.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pxt-") as path:
        yield Path(path)


def run(folder: Path, *arguments: str, status: int = 200, answer: object = APPLIED) -> tuple[int, Any]:
    """Run the client against a server, and give its exit code and what it asked."""
    server = Server(folder, status, answer)
    try:
        code = cli.run(["ctl", "-c", str(server.config), *arguments])
    finally:
        server.close()
    (asked,) = server.asked
    return code, asked


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["reload"], ("POST", "/reload", None)),
        (["rollback"], ("POST", "/rollback", None)),
        (["rollback", "7"], ("POST", "/rollback", {"version": 7})),
        (
            ["set", "proxy.timeout", "5s"],
            ("PATCH", "/config", {"set": {"proxy.timeout": "5s"}, "volatile": False}),
        ),
        (
            ["set", "proxy.access_log", "-"],
            ("PATCH", "/config", {"set": {"proxy.access_log": "-"}, "volatile": False}),
        ),
        (["set", "--volatile", "a.b", "c"], ("PATCH", "/config", {"set": {"a.b": "c"}, "volatile": True})),
        (
            ["set", "a.b", "c", "d.e", "f"],
            ("PATCH", "/config", {"set": {"a.b": "c", "d.e": "f"}, "volatile": False}),
        ),
        (["unset", "a.b", "c.d"], ("PATCH", "/config", {"unset": ["a.b", "c.d"], "volatile": False})),
        (["unset", "a.b", "--volatile"], ("PATCH", "/config", {"unset": ["a.b"], "volatile": True})),
        (["unset", "a.b"], ("PATCH", "/config", {"unset": ["a.b"], "volatile": False})),
        (["set", "a.b", "--", "-c"], ("PATCH", "/config", {"set": {"a.b": "-c"}, "volatile": False})),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_change_is_asked_for_and_its_outcome_told(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], asked: object
) -> None:
    assert run(folder, *arguments) == (0, asked)
    assert capsys.readouterr().out == "applied as version 13\nnote: splice needs a restart\n"


def test_a_password_need_not_stand_on_the_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_STDIN", os.open(folder / "secret", os.O_RDWR | os.O_CREAT))
    (folder / "secret").write_text("p#ss word\n")
    _, (_, _, body) = run(folder, "set", "auth_users.carol")
    os.close(console._STDIN)
    password = body["set"]["auth_users.carol"]
    assert Authenticator({"carol": password}).authenticate("carol", "p#ss word")


def test_the_password_of_a_user_becomes_a_hash(folder: Path) -> None:
    """Case 357."""
    hashed = hash_password("x")
    given = [
        "auth_users.carol",
        "wonderland",
        "auth_users.dave",
        hashed,
        "upstreams.a.proxy_password",
        "plain",
    ]
    _, (_, _, body) = run(folder, "set", *given)
    written = body["set"]
    assert written["auth_users.carol"].startswith("scrypt$")
    assert Authenticator({"carol": written["auth_users.carol"]}).authenticate("carol", "wonderland")
    assert (written["auth_users.dave"], written["upstreams.a.proxy_password"]) == (hashed, "plain")


def test_it_can_stay_as_it_is(folder: Path) -> None:
    """Case 357."""
    _, (_, _, body) = run(folder, "set", "--plain", "auth_users.carol", "wonderland")
    assert body["set"] == {"auth_users.carol": "wonderland"}


@pytest.mark.parametrize("password", ["", "x" * 256], ids=["empty", "long"])
def test_a_password_that_nobody_could_use_is_not_hashed(
    folder: Path, capsys: pytest.CaptureFixture[str], password: str
) -> None:
    """Case 357: the hash of it would look like any other."""
    assert cli.run(["ctl", "-c", str(folder / "proxy.ini"), "set", "auth_users.carol", password]) == 1
    assert capsys.readouterr().err == "proxy-server: auth_users.carol: a password has 1 to 255 bytes\n"


def test_what_is_in_effect_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Case 357."""
    answer = {"version": 3, "text": "[proxy]\ntimeout = 30s\n# \x1b[31m\n"}
    assert run(folder, "show", answer=answer) == (0, ("GET", "/config", None))
    assert capsys.readouterr().out == "[proxy]\ntimeout = 30s\n# \\x1b[31m\n"


def test_what_is_rejected_goes_to_stderr_and_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = {"status": "rejected", "version": 12, "problems": ["proxy.ini:3: bad"], "notes": []}
    code, _ = run(folder, "reload", status=422, answer=answer)
    assert code == 1
    assert capsys.readouterr() == ("", "rejected: version 12 stays\n  proxy.ini:3: bad\n")


def test_an_error_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "kill", "9", status=404, answer={"error": "there is no such connection"})[0] == 1
    assert capsys.readouterr() == ("", "proxy-server: there is no such connection\n")


@pytest.mark.parametrize(
    ("name", "encoded"), [("proxy.ini", b"proxy.ini"), ("my \udcffünf.ini", b"my%20%FF%C3%BCnf.ini")]
)
def test_the_server_is_told_which_file_is_meant(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, encoded: bytes
) -> None:
    """CASES H211: in bytes, as RFC 3986 encodes them, and from the root on."""
    monkeypatch.chdir(folder)
    server = Server(folder, 200, APPLIED)
    assert cli.run(["ctl", "-c", name, "reload"]) == 0
    server.close()
    assert server.meant == f"{folder}/{encoded.decode()}"


@pytest.mark.parametrize("command", [["status"], ["reload"], ["metrics"], ["set", "a.b", "c"]], ids=" ".join)
def test_a_server_that_runs_with_another_file_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """CASES H211."""
    (folder / "proxy.ini").touch()
    answer = {"error": "the server that listens here runs with first.ini"}
    assert run(folder, *command, status=421, answer=answer)[0] == 1
    assert capsys.readouterr() == ("", "proxy-server: the server that listens here runs with first.ini\n")


def test_kill(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "kill", "9", answer={"status": "ended", "id": 9}) == (
        0,
        ("DELETE", "/connections/9", None),
    )
    assert capsys.readouterr().out == "connection 9 is ended\n"


@pytest.mark.parametrize(
    ("numbers", "path"), [(["3", "4"], "/versions/3?to=4"), (["3"], "/versions/3?to=current")]
)
def test_diff(folder: Path, capsys: pytest.CaptureFixture[str], numbers: list[str], path: str) -> None:
    assert run(folder, "diff", *numbers, answer={"diff": "-a\n+b\n"}) == (0, ("GET", path, None))
    assert capsys.readouterr().out == "-a\n+b\n"


def test_metrics_are_printed_as_they_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "# HELP up 1 while it serves\n# TYPE up gauge\nup 1\n"
    assert run(folder, "metrics", answer=text)[0] == 0
    assert capsys.readouterr().out == text


def test_a_file_that_is_not_in_effect_is_seen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Case 353."""
    file = {"in_effect": False, "problem": "proxy.ini:4: [proxy] tiemout: unknown\x1b key", "since": 0.0}
    run(folder, "status", answer=STATUS | {"file": file})
    since = moment(0.0)
    expected = f"the file is not in effect, since {since}: proxy.ini:4: [proxy] tiemout: unknown\\x1b key"
    assert capsys.readouterr().out.splitlines()[2] == expected


def test_json_is_for_scripts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, "--json", "status", answer=STATUS)
    assert json.loads(capsys.readouterr().out) == STATUS


@pytest.mark.parametrize("command", [["status"], ["reload"], ["metrics"], ["set", "a.b", "c"]], ids=" ".join)
def test_without_a_server_it_says_so_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """Also where a server left its socket behind."""
    (folder / "proxy.ini").touch()
    assert cli.run(["ctl", "-c", str(folder / "proxy.ini"), *command]) == 1
    first = capsys.readouterr().err
    Server(folder).close()
    assert cli.run(["ctl", "-c", str(folder / "proxy.ini"), *command]) == 1
    assert first == capsys.readouterr().err
    assert first.startswith(f"proxy-server: no server is found by {folder}/proxy.ini: nothing listens on")
    assert first.count("\n") == 1


def test_a_file_that_does_not_exist_is_said_to_be_missing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Case 357: it was asked for all the same, as a rollback brings a file back."""
    assert cli.run(["ctl", "-c", str(folder / "proxi.ini"), "status"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        f"proxy-server: {folder}/proxi.ini: cannot be read: No such file or directory, and no"
    )
    assert run(folder, "reload")[0] == 0  # the fixture's server has no file


def test_a_file_that_does_not_exist_is_said_to_be_missing_beside_that_of_another_server(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Case 357: a name that is mistyped is in the folder of the right one."""
    answer = {"error": "the server that listens here runs with first.ini"}
    assert run(folder, "status", status=421, answer=answer)[0] == 1
    said = capsys.readouterr().err
    assert said.startswith(
        f"proxy-server: {folder}/proxy.ini: cannot be read: No such file or directory, and the"
    )
    assert said.endswith("control.sock runs with another file\n")


@pytest.mark.parametrize("answer", ["[]", "{}", '{"listeners": 1}', "null", "<html>", '{"error": 5}'])
@pytest.mark.parametrize("arguments", [["status"], ["metrics"], ["upgrade"], ["kill", "1"]], ids=" ".join)
def test_an_answer_that_makes_no_sense_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], answer: str, arguments: list[str]
) -> None:
    """Who answers need not be our server, or may be an older one."""
    code, _ = run(folder, *arguments, answer=answer)
    assert code == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("proxy-server: ")
    assert said.err.count("\n") == 1
    assert "internal error" not in said.err


@pytest.mark.parametrize("arguments", [["limits"], ["top"], ["metrics"]], ids=" ".join)
def test_a_server_that_is_too_old_for_a_command_is_said_to_be(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """It knows no such path, and whoever asked knows of none."""
    assert run(folder, *arguments, status=404, answer={"error": "there is nothing here"})[0] == 1
    assert "is it of another version?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["explain", "example.com"], ["test", "home"]], ids=" ".join)
@pytest.mark.parametrize(("status", "answer"), [(400, {"error": "no port"}), (200, {}), (200, [])])
def test_no_verdict_is_no_refusal_for_a_script_either(
    folder: Path, arguments: list[str], status: int, answer: object
) -> None:
    assert run(folder, "--json", *arguments, status=status, answer=answer)[0] == 2


@pytest.mark.parametrize(
    "arguments", [["status"], ["metrics"], ["show"], ["reload"], ["kill", "1"]], ids=" ".join
)
@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_no_answer_steers_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], as_json: list[str]
) -> None:
    """Whatever stands in it, and wherever."""
    evil = "\x1b[31m\x9b2J\u202e\r"
    answers: dict[str, object] = {
        "status": STATUS | {"program": evil},
        "metrics": f"# HELP up {evil}\nup 1",
        "show": {"text": f"[proxy]\n{evil}"},
        "reload": APPLIED | {"version": evil},
        "kill": {"id": evil},
    }
    assert run(folder, *as_json, *arguments, answer=answers[arguments[0]])[0] == 0
    said = capsys.readouterr()
    lines = (said.out + said.err).split("\n")
    assert all(line.isprintable() for line in lines), lines
    assert "31m" in said.out + said.err


def test_what_is_no_server_of_ours_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = Server(folder)
    server._answer = b"220 mail.example.com\r\n"
    assert cli.run(["ctl", "-c", str(server.config), "status"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    server.close()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-c"],
        ["-c", "proxy.ini"],
        ["-c", "proxy.ini", "stat"],
        ["-c", "proxy.ini", "kill"],
        ["-c", "proxy.ini", "kill", "x"],
        ["-c", "proxy.ini", "status", "now"],
        ["-c", "proxy.ini", "diff", "1", "2", "3"],
        ["-c", "proxy.ini", "set"],
        ["-c", "proxy.ini", "set", "a.b", "c", "d.e"],
        ["-c", "proxy.ini", "rollback", "-1"],
        ["-c", "proxy.ini", "reload", "--volatile"],
        ["-c", "proxy.ini", "unset", "--plain", "a.b"],
        ["-c", "proxy.ini", "--jso", "status"],
        ["-c", "proxy.ini", "set", "auth_users.bob", "-s3cret"],
        ["-c", "proxy.ini", "auth_users.bob", "s3cret"],
    ],
    ids=" ".join,
)
def test_bad_usage_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.run(["ctl", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("proxy-server: ctl: ")
    assert said.count("\n") == 1
    assert "s3cret" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status", "--volatile"], "--volatile belongs to set and unset"),
        (["unset", "proxy.timeout", "--plain"], "--plain belongs to set"),
        (["set", "proxy.timeout", "9s", "proxy.splice"], "set takes pairs of KEY and VALUE, or one KEY"),
        (["kill"], "kill takes 1 argument, not 0"),
        (["diff", "1", "2", "3"], "diff takes 1 to 2 arguments, not 3"),
        (["rollback", "seven"], "rollback takes numbers"),
    ],
)
def test_what_does_not_fit_a_command_is_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert cli.run(["ctl", "-c", "proxy.ini", *arguments]) == 2
    assert capsys.readouterr().err == f"proxy-server: ctl: {said} (proxy-server ctl -h for help)\n"


def test_a_value_with_a_dash_is_told_how_to_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    """CASES 315."""
    assert cli.run(["ctl", "-c", "proxy.ini", "set", "auth_users.bob", "-s3cret"]) == 2
    assert "before a value with a dash, write --" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["-h", "--help", "help"])
def test_help_names_every_command(capsys: pytest.CaptureFixture[str], word: str) -> None:
    assert cli.run(["ctl", word]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {command}" in said for command in ctl.COMMANDS)
