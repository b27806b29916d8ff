"""
Find the server that is meant where no configuration file is named.

The kernel knows what runs, so nothing is kept on disk that could be out of date. A process whose command
line names a file only says where to look: a server counts if it answers in the state_dir of that file, and
if nobody but us and root can have put it there. Root is told of the servers of others, and never led to one:
anybody can start a process with any name.
"""

import os
import shlex
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path

from proxy.configfile.load import state_dir_of
from proxy.ctl.ask import ask_health
from proxy.options import UsageError
from proxy.trust import Trust

PROC = Path("/proc")

_OPTIONS = ("-c", "--c", "-config", "--config")


def find_config() -> str:
    """Give the configuration file of the one server of ours that runs; raises ``UsageError``."""
    named = set(_named())
    ours = sorted(path for path, is_ours in named if is_ours and _runs(path))
    if len(ours) == 1:
        return ours[0]
    if ours:
        raise UsageError(f"-c FILE is missing, and several servers run: {_list(ours)}")
    others = sorted(path for path, is_ours in named if not is_ours)
    if others:
        raise UsageError(f"-c FILE is missing, and only other users seem to run a server: {_list(others)}")
    raise UsageError("-c FILE is missing, and you run no server that has a configuration file")


def _list(paths: Sequence[str]) -> str:
    return ", ".join(f"-c {shlex.quote(path)}" for path in paths)


def _named() -> Iterator[tuple[str, bool]]:
    """Read from all processes which files they were started with, and whether they are ours."""
    us = [str(os.geteuid())] * 4
    for process in PROC.glob("[0-9]*"):
        try:
            words = os.fsdecode((process / "cmdline").read_bytes()).split("\0")
            name = _file_in(words)
            if name:
                status = (process / "status").read_text("utf-8", "replace")
                users = status.partition("\nUid:")[2].partition("\n")[0].split()
                yield os.path.normpath(os.path.join(os.readlink(process / "cwd"), name)), users == us
        except OSError:
            pass  # it has ended, or is not for us to look at


def _file_in(words: Sequence[str]) -> str:
    """Give the file with which a command line starts a server; "" if it does not look like that."""
    for place, word in enumerate(words):
        if os.path.basename(word) == "proxy-server" or list(words[place - 1 : place + 1]) == ["-m", "proxy"]:
            rest = words[place + 1 :]
            break
    else:
        return ""
    for option, value in zip(rest, [*rest[1:], ""], strict=True):
        written, equals, glued = option.partition("=")
        if written in _OPTIONS:
            return glued if equals else value
    return ""


def _runs(config: str) -> bool:
    folder = state_dir_of(config)
    if Trust().why_not(folder):
        return False
    status, _ = ask_health(folder, config)
    return status not in (0, HTTPStatus.MISDIRECTED_REQUEST)  # which one says that runs with another file
