"""
``proxy-server ctl``: talk to the running server through its control socket.

The socket is found by the configuration file, even if that is broken at the moment: then a rollback
is what one wants.
"""

import argparse
import getpass
import http.client
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from proxy.control import show
from proxy.control.ask import SOCKET_NAME, ask
from proxy.control.history import state_dir_of
from proxy.errors import reason_of
from proxy.logs import say

OK, FAILED, BAD_USAGE = 0, 1, 2
_PATIENCE = 60.0  # seconds

USAGE = """\
commands for a running server: proxy-server ctl -c FILE [--json] COMMAND
  status                  version of the configuration, listeners, connections, upstreams and their health
  connections             live connections
  kill ID                 end one of them
  reload                  read the file again, and say what came of it
  versions                versions of the configuration
  diff N [M]              what differs from version N to version M, or to the one in effect
  rollback [N]            go back to version N, or to the one before, and write it to the file
  set KEY [VALUE]         change a setting, such as listeners.socks.max_connections 2000
                          without VALUE it is asked for, or read from standard input: good for passwords
                          several KEY VALUE pairs are changed together, or none of them
  unset KEY ...           take settings, users, listeners or upstreams out
                          with --volatile, set and unset leave the file as it is
  metrics                 numbers for Prometheus"""


class CtlError(Exception):
    """What the user is told, in one line."""


def run(arguments: Sequence[str]) -> int:
    """Run ``proxy-server ctl`` with these arguments, and return its exit code."""
    options = _parse(arguments)
    try:
        return _COMMANDS[options.command](_Call(options))
    except CtlError as exc:
        say(f"proxy-server: {exc}")
        return FAILED
    except (BrokenPipeError, KeyboardInterrupt):
        return FAILED


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        say(f"proxy-server: ctl: {message} (proxy-server ctl -h for help)")
        sys.exit(BAD_USAGE)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="proxy-server ctl",
        usage="proxy-server ctl -c FILE [--json] COMMAND",
        description=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("-c", "-config", "--config", dest="config", metavar="FILE", required=True)
    parser.add_argument("-json", "--json", action="store_true", help="print the server's answer as it is")
    parser.add_argument("-volatile", "--volatile", action="store_true", help="set, unset: not into the file")
    parser.add_argument("-h", "-help", "--help", action="help", help="print this help")
    parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND", help="one of these above")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="and what belongs to it")
    options = parser.parse_intermixed_args(arguments)
    least, most = _ARGUMENTS.get(options.command, (0, 0))
    if not least <= len(options.arguments) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        parser.error(f"{options.command} takes {wanted} arguments, not {len(options.arguments)}")
    if options.command == "set" and len(options.arguments) % 2 and len(options.arguments) > 1:
        parser.error("set takes pairs of KEY and VALUE, or one KEY")
    if options.volatile and options.command not in ("set", "unset"):
        parser.error("--volatile belongs to set and unset")
    if options.command in _NUMBERED and not all(each.isdecimal() for each in options.arguments):
        parser.error(f"{options.command} takes numbers")
    return options


class _Call:
    """A command, and the server that it goes to."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.arguments: list[str] = options.arguments
        self.volatile: bool = options.volatile
        self._config: str = options.config
        self._as_json: bool = options.json

    def ask(self, method: str, path: str, content: object = None) -> tuple[int, str]:
        """Ask the server, and return status and body; raises ``CtlError`` if there is none."""
        place = state_dir_of(self._config) / SOCKET_NAME
        try:
            return ask(place, method, path, content, patience=_PATIENCE, config=self._config)
        except (FileNotFoundError, ConnectionRefusedError):
            raise CtlError(
                f"no server is found by {self._config}: nothing listens on {place} "
                "(one that runs keeps the state_dir with which it was started)"
            ) from None
        except (OSError, http.client.HTTPException) as exc:
            reason = reason_of(exc) if isinstance(exc, OSError) else "it does not answer in HTTP"
            raise CtlError(f"cannot talk to the server through {place}: {reason}") from None

    def show(self, method: str, path: str, form: Callable[[Any], str], content: object = None) -> int:
        """Ask the server, and print its answer in a form for people, or as it is."""
        status, text = self.ask(method, path, content)
        answer = json.loads(text)
        if self._as_json:
            print(json.dumps(answer, indent=2))
        elif "error" in answer:
            raise CtlError(answer["error"])
        else:
            print(form(answer), file=sys.stdout if status < 400 else sys.stderr)
        return OK if status < 400 else FAILED


def _status(call: _Call) -> int:
    return call.show("GET", "/status", show.status)


def _connections(call: _Call) -> int:
    return call.show("GET", "/connections", show.connections)


def _kill(call: _Call) -> int:
    path = f"/connections/{call.arguments[0]}"
    return call.show("DELETE", path, lambda answer: f"connection {answer['id']} is ended")


def _reload(call: _Call) -> int:
    return call.show("POST", "/reload", show.outcome)


def _versions(call: _Call) -> int:
    return call.show("GET", "/versions", show.versions)


def _diff(call: _Call) -> int:
    other = call.arguments[1] if len(call.arguments) > 1 else "current"
    return call.show("GET", f"/versions/{call.arguments[0]}?to={other}", show.diff)


def _rollback(call: _Call) -> int:
    content = {"version": int(call.arguments[0])} if call.arguments else None
    return call.show("POST", "/rollback", show.outcome, content)


def _set(call: _Call) -> int:
    keys, values = call.arguments[::2], call.arguments[1::2] or [_read_value(call.arguments[0])]
    content = {"set": dict(zip(keys, values, strict=True)), "volatile": call.volatile}
    return call.show("PATCH", "/config", show.outcome, content)


def _read_value(key: str) -> str:
    """Read a value that is not to stand on a command line, where other users could see it."""
    if sys.stdin.isatty():
        return getpass.getpass(f"{key}: ")
    try:
        return sys.stdin.readline().rstrip("\r\n")
    except UnicodeDecodeError:
        raise CtlError(f"{key}: what stands on standard input is not UTF-8") from None


def _unset(call: _Call) -> int:
    content = {"unset": call.arguments, "volatile": call.volatile}
    return call.show("PATCH", "/config", show.outcome, content)


def _metrics(call: _Call) -> int:
    status, text = call.ask("GET", "/metrics")
    if status != 200:
        raise CtlError(json.loads(text)["error"])
    print(text, end="")
    return OK


_COMMANDS: dict[str, Callable[[_Call], int]] = {
    "status": _status,
    "connections": _connections,
    "kill": _kill,
    "reload": _reload,
    "versions": _versions,
    "diff": _diff,
    "rollback": _rollback,
    "set": _set,
    "unset": _unset,
    "metrics": _metrics,
}
_ARGUMENTS = {"kill": (1, 1), "diff": (1, 2), "rollback": (0, 1), "set": (1, 1000), "unset": (1, 1000)}
_NUMBERED = {"kill", "diff", "rollback"}
