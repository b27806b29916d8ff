"""What the options of the command line mean together."""

import errno
import io
import os
import re
from pathlib import Path

import pytest

from proxy import cli
from proxy.app import App
from proxy.console import OutputError

SERVER = ["-mode", "server", "-protocol", "socks5", "-addr", "127.0.0.1:0"]
CLIENT = ["-mode", "client", "-protocol", "socks5", "-addr", "127.0.0.1:1", "-host", "h", "-port", "80"]
SECRET = "hunter2"


@pytest.fixture(autouse=True)
def nobody_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(app: App) -> None:
        raise AssertionError("it serves")

    monkeypatch.setattr(App, "run", run)
    for name in ("PROXY_PASSWORD", "PROXY_UPSTREAM_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command line that is refused, and give the line that says why."""
    assert cli.run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert SECRET not in printed.err
    return printed.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([*SERVER, "-check"], "-check cannot be used with -mode server"),
        ([*SERVER, "-dump"], "-dump"),
        ([*SERVER, "-last-good"], "-last-good"),
        ([*SERVER, "-listen", "127.0.0.1:0"], "-listen"),
        ([*SERVER, "-host", "h", "-port", "80"], "-host, -port"),
        ([*SERVER, "-tls-ca", "ca.pem"], "-tls-ca"),
        ([*SERVER, "-hash-password"], "-hash-password"),
        (["-c", "proxy.ini", "-mode", "server"], "-mode cannot be used with -c FILE"),
        (["-c", "proxy.ini", "-username", "bob", "-password", SECRET], "-username, -password"),
        (["-c", "proxy.ini", "-addr", ":1080", "-protocol", "socks5"], "-protocol, -addr"),
        (["-c", "proxy.ini", "-upstream-type", "direct"], "-upstream-type"),
        (["-c", "proxy.ini", "-listen", ":1"], "-listen"),
        (["-c", "proxy.ini", "-hash-password"], "-hash-password"),
        (["-c", "proxy.ini", "-check", "-last-good"], "-last-good"),
        ([*CLIENT, "-upstream-type", "direct"], "-upstream-type"),
        ([*CLIENT, "-check"], "-check"),
        (["-c", "proxy.ini", "-check", "-dump"], "-check and -dump cannot be used together"),
        (["-c", "proxy.ini", "-test", "x", "-explain", "h:1"], "-explain and -test cannot be used together"),
        (["-c", "proxy.ini", "-test", "x", "h:1", "more"], "an argument belongs to no option"),
        (["-version", "more"], "-version cannot be combined with anything"),
        (["-version", "-check"], "-version cannot be combined with anything"),
        (["-check"], "-check belongs to -c FILE, which is missing"),
        (["-password", SECRET], "-password belongs to -mode server or -mode client"),
        (["-hash-password", "-username", "bob"], "-username"),
        (["-init", "-check"], "-check cannot be used with -init"),
        (["-init", "-c", "proxy.ini"], "-init cannot be used with -c FILE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_that_would_have_no_effect_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    """CASES 352."""
    assert named in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*SERVER, "-upstream-address", "h:1"], "-upstream-type: -upstream-address needs it"),
        ([*SERVER, "-upstream-username", "bob"], "-upstream-type: -upstream-username needs it"),
        ([*SERVER, "-upstream-type", "direct", "-upstream-tls-ca", "ca.pem"], "-upstream-type: a direct"),
        ([*CLIENT, "-tls-ca", "ca.pem"], "-tls-ca: only a wss:// or https:// proxy is reached by TLS\n"),
        (
            ["-mode", "server", "-protocol", "http", "-addr", ":1"],
            "-protocol: with -mode server it must be one of socks5, websocket, mixed",
        ),
        (
            ["-mode", "client", "-protocol", "mixed", "-addr", "h:1", "-host", "h", "-port", "80"],
            "-protocol: with -mode client it must be one of socks5, websocket, http",
        ),
        (
            ["-mode", "server", "-protocol", "websocket", "-addr", "ws://127.0.0.1:0/tunnel"],
            "-addr: has a path, which belongs in the setting path of a configuration file",
        ),
        ([*SERVER, "-username", "bob"], "-password: the user needs one"),
        ([*SERVER, "-password", SECRET], "-username: -password is given"),
        ([*SERVER, "-username", "", "-password", ""], "-username has an empty value"),
        ([*SERVER, "-username", "bob", "-password="], "-password has an empty value"),
        (
            ["-mode", "client", "-protocol", "socks5", "-addr", "h:1", "-host", "[::1]", "-port", "80"],
            "-host: brackets are for an address with a port in one: write ::1\n",
        ),
        ([*CLIENT, "-tls-ca", ""], "-tls-ca has an empty value"),
        (["proxy.ini"], "write -c proxy.ini"),
        (["version"], "write -version"),
        (["-c", "proxy.ini", "check"], "write -check"),
        (["proxy.ini", "-check"], "write -c proxy.ini"),
        (["-c", "proxy.ini", "ctl", "status"], "ctl comes first"),
        (["-init", ""], "-init has an empty value"),
        (["-init", "a.ini", "b.ini"], "write -c b.ini"),
        ([*CLIENT, "-username", "bob", "-password", "my", SECRET], "an argument belongs to no option"),
        ([*CLIENT, "-passwrod", SECRET], "did you mean -password?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_line_that_cannot_be_meant_is_told_what_would_be(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """CASES 315, 333, 352, 360."""
    assert said in refused(capsys, *arguments)


def test_a_password_of_the_environment_needs_a_user(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES 333."""
    monkeypatch.setenv("PROXY_PASSWORD", SECRET)
    assert "-username: PROXY_PASSWORD is set" in refused(capsys, *SERVER)
    monkeypatch.delenv("PROXY_PASSWORD")
    monkeypatch.setenv("PROXY_UPSTREAM_PASSWORD", SECRET)
    way = ["-upstream-type", "socks5", "-upstream-address", "h:1"]
    assert "-upstream-username: PROXY_UPSTREAM_PASSWORD is set" in refused(capsys, *SERVER, *way)


@pytest.mark.parametrize("word", ["-h", "--help", "help"])
def test_the_help_is_printed_however_one_asks_for_it(capsys: pytest.CaptureFixture[str], word: str) -> None:
    assert cli.run([word]) == 0
    assert capsys.readouterr().out.startswith("usage: proxy-server -c")


def test_a_password_may_begin_with_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    """CASES 315."""
    users: list[object] = []
    monkeypatch.setattr(App, "run", lambda app: users.append(app.config.listeners[0].auth_users))
    assert cli.run([*SERVER, "-username", "bob", "-password", "-s3cret"]) == 0
    assert cli.run([*SERVER, "-username", "bob", "-password=-check"]) == 0
    assert users == [{"bob": "-s3cret"}, {"bob": "-check"}]


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))])
def test_a_start_that_finds_no_memory_says_so(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(app: App) -> None:
        raise error

    monkeypatch.setattr(App, "run", run)
    assert cli.run(["-mode", "server", "-protocol", "socks5", "-addr", "127.0.0.1:0"]) == 1
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == (
        "proxy-server: there is not enough memory: raise its limit (ulimit -v, MemoryMax=), or free some"
    )


def test_output_that_fails_late_is_exit_1(capsys: pytest.CaptureFixture[str]) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OutputError(OSError(28, "No space left on device"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", Full())
        patch.setattr("proxy.console.give_up_output", lambda: None)
        assert cli.run(["-version"]) == 1
    assert capsys.readouterr().err == "proxy-server: standard output: No space left on device\n"


def test_a_file_that_exists_is_suggested_whatever_its_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """CASES 360."""
    path = tmp_path / "settings"
    path.touch()
    assert f"write -c {path}" in refused(capsys, str(path))


# -- a configuration to start from


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_init_writes_a_file_that_is_valid_local_and_for_its_owner_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["-init"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("proxy.ini is written: ")
    assert said.endswith("\n  proxy-server -c proxy.ini\n")
    assert os.stat("proxy.ini").st_mode & 0o777 == 0o600
    # It has no warning, and no note of what is open to others.
    assert cli.run(["-c", "proxy.ini", "-check"]) == 0
    assert capsys.readouterr() == ("ok\n", "")


def test_all_settings_that_init_suggests_are_valid_together(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["-init", "all of it.ini"]) == 0
    assert capsys.readouterr().out.endswith("\n  proxy-server -c 'all of it.ini'\n")
    path = folder / "all of it.ini"
    suggested = re.sub("^#(?! |$)", "", path.read_text(), flags=re.MULTILINE)
    path.write_text(suggested)
    assert "\n[[gateway]]\n" in suggested
    assert cli.run(["-c", str(path), "-check"]) == 0
    assert capsys.readouterr() == ("ok\n", "")


def test_init_prints_the_file_where_a_dash_stands_for_its_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["-init", "-"]) == 0
    assert "[listeners]" in capsys.readouterr().out
    assert list(folder.iterdir()) == []


def failed_init(capsys: pytest.CaptureFixture[str], name: str) -> str:
    assert cli.run(["-init", name]) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    return printed.err


def test_init_overwrites_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, link = folder / "mine.ini", folder / "link.ini"
    path.write_text("mine")
    link.symlink_to("nowhere.ini")
    assert failed_init(capsys, "mine.ini").startswith("proxy-server: mine.ini exists already")
    assert failed_init(capsys, "link.ini").startswith("proxy-server: link.ini exists already")
    assert path.read_text() == "mine"
    assert not link.exists()


def test_init_says_why_a_file_cannot_be_written(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = "proxy-server: no/such.ini cannot be written: No such file or directory\n"
    assert failed_init(capsys, "no/such.ini") == wanted

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    wanted = "proxy-server: full.ini cannot be written: No space left on device\n"
    assert failed_init(capsys, "full.ini") == wanted
    assert list(folder.iterdir()) == []  # half a file would be in the way of the next attempt
