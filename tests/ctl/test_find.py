"""Without a file that is named, ctl finds the one server of this user, or says which there are."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proxy import cli
from proxy.ctl import find
from tests.integration.programs import Proxy, socks_door


class Processes:
    """A /proc in which there are only processes that a test wants to be seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def show(self, pid: int) -> None:
        """Show a real process."""
        (self.folder / str(pid)).symlink_to(f"/proc/{pid}")

    def pretend(self, *words: str, user: int, folder: str = "/") -> None:
        """Show one that does not exist."""
        process = self.folder / str(1000 + len(list(self.folder.iterdir())))
        process.mkdir()
        (process / "cmdline").write_bytes("\0".join([*words, ""]).encode())
        (process / "status").write_text(f"Name:\tx\nUid:\t{user}\t{user}\t{user}\t{user}\nGid:\t0\n")
        (process / "cwd").symlink_to(folder)


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Processes:
    monkeypatch.setattr(find, "PROC", tmp_path)
    return Processes(tmp_path)


@contextmanager
def server(spelling: str = "") -> Iterator[Proxy]:
    """Run a server, perhaps with another spelling of its file's name."""
    proxy = Proxy({"listeners": {"socks": socks_door()}}, real=True)
    proxy.command[-1] = spelling.format(name=proxy.directory.name) or proxy.command[-1]
    with proxy:
        yield proxy


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Have ctl look for a server that it does not find, and give the line that says why."""
    assert cli.run(["ctl", "status"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    return printed.err.removeprefix("proxy-server: ctl: -c FILE is missing, and ")


@pytest.mark.parametrize("spelling", ["", "proxy.ini", "./../{name}/proxy.ini"])
def test_the_one_server_that_runs_is_asked(
    spelling: str, processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    with server(spelling) as proxy:
        processes.show(proxy.pid)
        processes.show(os.getpid())
        assert cli.run(["ctl", "status"]) == 0
        assert f"process {proxy.pid}," in capsys.readouterr().out


def test_of_several_servers_none_is_chosen(processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    with server() as one, server() as other:
        processes.show(one.pid)
        processes.show(other.pid)
        files = sorted(f"-c {each.config_path}" for each in (one, other))
        assert said(capsys).startswith(f"several servers run: {', '.join(files)} (")
        one.signal(signal.SIGKILL)
        one.wait(30)
        # What is left of it on disk does not count.
        assert cli.run(["ctl", "status"]) == 0
        assert f"process {other.pid}," in capsys.readouterr().out


def test_a_server_counts_once_however_many_processes_name_its_file(processes: Processes) -> None:
    with server() as proxy:
        processes.show(proxy.pid)
        words = ["sh", "-c", "proxy-server", "proxy-server", f"--config={proxy.config_path}"]
        processes.pretend(*words, user=os.geteuid())
        assert find.find_config() == str(proxy.config_path)


def test_a_process_that_only_names_a_file_is_no_server(
    processes: Processes, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("config")
    (folder / "proxy.ini").touch()
    us = os.geteuid()
    processes.pretend("proxy-server", "-c", str(folder / "proxy.ini"), user=us)
    processes.pretend("proxy-server", "-c", user=us)
    processes.pretend("proxy-server", "-mode", "server", user=us)
    processes.pretend("vi", "-c", "x", user=us)
    processes.pretend(user=us)
    assert said(capsys).startswith("you run no server that has a configuration file")


def test_no_socket_is_asked_where_others_may_have_put_it(
    processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    with server() as proxy:
        processes.show(proxy.pid)
        (proxy.directory / ".proxy").chmod(0o777)
        assert said(capsys).startswith("you run no server that has a configuration file")


def test_the_servers_of_others_are_named_and_not_asked(
    processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    with server() as proxy:
        processes.pretend("proxy-server", "-c", str(proxy.config_path), user=os.geteuid() + 1)
        processes.pretend("proxy-server", "-c", "a b.ini", user=os.geteuid() + 1, folder="/etc")
        names = sorted(
            [f"-c {proxy.config_path}", "-c '/etc/a b.ini'"], key=lambda each: each.replace("'", "")
        )
        assert said(capsys).startswith(f"only other users seem to run a server: {', '.join(names)} (")


def test_another_server_that_has_taken_the_folder_is_not_the_one_that_is_meant(processes: Processes) -> None:
    with server() as proxy:
        processes.show(proxy.pid)
        another = proxy.directory / "other.ini"
        another.touch()
        processes.pretend("proxy-server", "-c", str(another), user=os.geteuid())
        assert find.find_config() == str(proxy.config_path)


def test_where_there_is_no_proc_the_file_is_to_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(find, "PROC", tmp_path / "nowhere")
    assert said(capsys).startswith("you run no server that has a configuration file")


def test_the_kernel_tells_of_a_server() -> None:
    # Other tests may run servers on this machine at the same time.
    with server() as proxy:
        assert (str(proxy.config_path), True) in set(find._named())
