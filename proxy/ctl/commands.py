"""
``proxy-server ctl``: talk to the running server through its control socket.

The socket is found by the configuration file, even if that is broken at the moment: then a rollback
is what one wants.
"""

import http.client
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from proxy.configfile.content import InvalidConfigError, read_file
from proxy.configfile.load import state_dir_of
from proxy.configtext.syntax import is_text
from proxy.console import BAD_USAGE, FAILED, OK, InputError, read_secret
from proxy.ctl import show
from proxy.ctl.ask import NOT_UNDERSTOOD, NOTHING_HERE, SOCKET_NAME, UNKNOWN, CtlError, ask
from proxy.ctl.find import find_config
from proxy.errors import ConfigError, reason_of
from proxy.lines import say
from proxy.options import Option, UsageError, describe, read
from proxy.policy.auth import hash_password
from proxy.top import screen
from proxy.trust import Trust, UntrustedError
from proxy.users import check_user, is_hash, to_bytes

_PATIENCE = 60.0  # seconds
_PATIENCE_OF_UPGRADE = 60.0  # seconds for the new program to get ready
_LOOK = 0.2  # seconds between two looks whether it is
_PATIENCE_OF_TOP = 5.0  # it asks again anyway
_PATIENCE_OF_TEST = 86400.0  # the server ends it by the timeout of the upstream


def run(arguments: Sequence[str]) -> int:
    """Run ``proxy-server ctl`` with these arguments, and return its exit code."""
    try:
        return _run(arguments)
    except UsageError as exc:
        say(f"proxy-server: ctl: {exc} (proxy-server ctl -h for help)")
        return BAD_USAGE
    except CtlError as exc:
        say(f"proxy-server: {exc}")
        return FAILED


OPTIONS = (
    Option(
        "config",
        "FILE",
        "the configuration file of the server; not needed if you run only one server",
        also=("c",),
    ),
    Option("json", "", "print the server's answer as it is"),
    Option("volatile", "", "set, unset: leave the file as it is"),
    Option("plain", "", "set: do not hash passwords of users"),
    Option("listener", "NAME", "explain: the listener that the client uses"),
    Option("user", "NAME", "explain: the user, if the client logs in"),
    Option("from", "ADDRESS", "explain: the address of the client"),
    Option("help", "", "print this help", also=("h",)),
)
OF_COMMANDS = ("volatile", "plain", "listener", "user", "from")


def _run(arguments: Sequence[str]) -> int:
    """Read a command line, and do what it says. No message repeats what may be a secret."""
    given, words = read(arguments, OPTIONS, first=2, hint=": before a value with a dash, write --")
    if "help" in given or words[:1] == ["help"]:
        print(f"{USAGE}\n\noptions (one dash or two):\n{describe(OPTIONS)}")
        return OK
    if not words or words[0] not in COMMANDS:
        trouble = "unknown command" if words else "the command is missing"
        raise UsageError(f"{trouble}: use one of {', '.join(COMMANDS)}")
    name, *words = words
    command = COMMANDS[name]
    if not command.least <= len(words) <= command.most:
        wanted = str(command.least) if command.least == command.most else f"{command.least} to {command.most}"
        raise UsageError(f"{name} takes {wanted} argument{'s' * (wanted != '1')}, not {len(words)}")
    for option in [each for each in OF_COMMANDS if each in given and each not in command.options]:
        homes = [each for each, one in COMMANDS.items() if option in one.options]
        raise UsageError(f"--{option} belongs to {' and '.join(homes)}")
    if command.takes_numbers and not all(re.fullmatch("[0-9]{1,18}", each) for each in words):
        raise UsageError(f"{name} takes numbers")
    return command.run(_Call(words, given if "config" in given else {**given, "config": find_config()}))


class _Call:
    """What a command was given, and the server that it goes to."""

    def __init__(self, arguments: list[str], given: Mapping[str, str]) -> None:
        self.arguments = arguments
        self.volatile = "volatile" in given
        self.plain = "plain" in given
        self.about = {each: given[each] for each in ("listener", "user", "from") if each in given}
        self._config = given["config"]
        self.as_json = "json" in given

    def ask(
        self, method: str, path: str, content: object = None, *, patience: float = _PATIENCE
    ) -> tuple[int, str]:
        """Ask the server, and return status and body; raises ``CtlError`` if there is none."""
        place = state_dir_of(self._config) / SOCKET_NAME
        try:
            Trust(self._config).check_listener(place.parent)
            status, text = ask(place, method, path, content, patience=patience, config=self._config)
        except (FileNotFoundError, ConnectionRefusedError):
            raise CtlError(self._why_nobody(place)) from None
        except UntrustedError as exc:
            raise CtlError(f"{reason_of(exc)}, so {place} may belong to anybody, and is not used") from None
        except TimeoutError:
            raise CtlError(f"the server at {place} has not answered for {patience:g} s") from None
        except (OSError, ValueError, http.client.HTTPException) as exc:
            reason = reason_of(exc) if isinstance(exc, OSError) else "it does not answer in HTTP"
            raise CtlError(f"cannot talk to the server through {place}: {reason}") from None
        # One who mistypes the file's name is not to be told to give a server a folder of its own.
        if status == HTTPStatus.MISDIRECTED_REQUEST and (problem := self._why_no_file()):
            raise CtlError(f"{problem}, and the server that listens on {place} runs with another file")
        return status, text

    def _why_nobody(self, place: Path) -> str:
        if problem := self._why_no_file():
            # It was asked all the same: a rollback brings back a file that somebody took away.
            return f"{problem}, and no server is found by where it would be: nothing listens on {place}"
        return (
            f"no server is found by {self._config}: nothing listens on {place} "
            "(one that runs keeps the state_dir with which it was started)"
        )

    def _why_no_file(self) -> str:
        """Say why the file cannot be read, if it cannot."""
        try:
            read_file(self._config)
        except InvalidConfigError as exc:
            return str(exc)
        return ""

    def answer(self, method: str, path: str) -> Any:
        """Ask the server, and give its answer; raises ``CtlError`` if it is an error, or makes no sense."""
        status, text = self.ask(method, path, patience=_PATIENCE_OF_TOP)
        try:
            answer = json.loads(text)
            problem = answer.get("error", "")
        except (ValueError, AttributeError):
            raise CtlError(NOT_UNDERSTOOD) from None
        if problem or status >= 400:
            raise CtlError(_told(problem) or f"the server answers {status}")
        return answer

    def show(self, method: str, path: str, form: Callable[[Any], str], content: object = None) -> int:
        """Ask the server, and print its answer in a form for people, or as it is."""
        return self.tell(*self.ask(method, path, content), form)

    def tell(self, status: int, text: str, form: Callable[[Any], str]) -> int:
        """Print an answer; raises ``CtlError`` if it is an error, or makes no sense."""
        try:
            answer = json.loads(text)
            problem = "" if self.as_json else answer.get("error", "")
            shown = json.dumps(answer, indent=2) if self.as_json or problem else form(answer)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise CtlError(NOT_UNDERSTOOD) from None
        if problem:
            raise CtlError(_told(problem))
        print(show.text(shown), file=sys.stdout if status < 400 or self.as_json else sys.stderr)
        return OK if status < 400 else FAILED


def _told(problem: str) -> str:
    """Give what a server says, in words for whoever does not know that it was asked for a path."""
    return UNKNOWN if problem == NOTHING_HERE else problem


def _explain(call: _Call) -> int:
    """Ask what becomes of a target."""
    query = urlencode({"target": call.arguments[0], **call.about})
    return _judge(call, partial(call.ask, "GET", f"/explain?{query}"), show.explanation, "goes")


def _test(call: _Call) -> int:
    """Have the server reach an upstream."""
    content = dict(zip(("upstream", "target"), call.arguments, strict=False))
    ask = partial(call.ask, "POST", "/test", content, patience=_PATIENCE_OF_TEST)
    return _judge(call, ask, show.trial, "ok")


def _judge(call: _Call, ask: Callable[[], tuple[int, str]], form: Callable[[Any], str], verdict: str) -> int:
    """Print an answer with a verdict in it; no answer is no bad one, so a script can tell the two apart."""
    try:
        status, text = ask()
        call.tell(status, text, form)
        return BAD_USAGE if status >= 400 else OK if json.loads(text)[verdict] else FAILED
    except (LookupError, TypeError):
        say(f"proxy-server: {NOT_UNDERSTOOD}")
    except CtlError as exc:
        say(f"proxy-server: {exc}")
    return BAD_USAGE


def _set(call: _Call) -> int:
    if len(call.arguments) % 2 and len(call.arguments) > 1:
        raise UsageError("set takes pairs of KEY and VALUE, or one KEY")
    keys, values = call.arguments[::2], call.arguments[1::2] or [_read_value(call.arguments[0])]
    written = [value if call.plain else _hashed(key, value) for key, value in zip(keys, values, strict=True)]
    content = {"set": dict(zip(keys, written, strict=True)), "volatile": call.volatile}
    return call.show("PATCH", "/config", show.outcome, content)


def _hashed(key: str, value: str) -> str:
    """Hash what is the password of a user, if it is not a hash already."""
    section, _, name = key.partition(".")
    if section != "auth_users" or not name or is_hash(to_bytes(value)):
        return value
    try:
        # The server, which gets the hash, could not say that no such password can be.
        check_user(name, value)
    except ConfigError as exc:
        raise CtlError(f"{key}: {exc}") from None
    if "\0" in value or not is_text(value):
        raise CtlError(f"{key}: a password is UTF-8, and has no NUL")
    return hash_password(value)


def _read_value(key: str) -> str:
    """Read a value that is not to stand on a command line, where other users could see it."""
    try:
        return read_secret(f"{key}: ")
    except InputError as exc:
        raise CtlError(f"{key}: {exc}") from None


def _unset(call: _Call) -> int:
    content = {"unset": call.arguments, "volatile": call.volatile}
    return call.show("PATCH", "/config", show.outcome, content)


def _upgrade(call: _Call) -> int:
    """Begin it, and wait for what the program says that comes of it."""
    status, text = call.ask("POST", "/upgrade", {}, patience=_PATIENCE_OF_UPGRADE)
    if status >= 400:
        return call.tell(status, text, str)
    try:
        number, deadline = json.loads(text)["number"], monotonic() + _PATIENCE_OF_UPGRADE
    except (ValueError, LookupError, TypeError):
        raise CtlError(NOT_UNDERSTOOD) from None
    while monotonic() < deadline:
        time.sleep(_LOOK)
        with suppress(CtlError):  # in between nobody answers
            told = call.answer("GET", "/status").get("upgrade")
            if told and told["number"] == number:
                is_done = told["status"] == "done"
                return call.tell(200 if is_done else 409, json.dumps(told), show.upgrade)
    raise CtlError("the outcome of the upgrade is unknown: see the log")


def _kill(call: _Call) -> int:
    if not re.fullmatch("[0-9]{1,15}(-[0-9]{1,15})?", call.arguments[0]):
        raise UsageError("kill takes the ID of a connection, as `ctl connections` shows it")
    path = f"/connections/{call.arguments[0]}"
    return call.show("DELETE", path, lambda answer: f"connection {answer['id']} is ended")


def _forgive(call: _Call) -> int:
    path = f"/penalties/{quote(call.arguments[0].removesuffix('/64'), safe='')}"
    return call.show("DELETE", path, lambda answer: f"{answer['client']} is forgiven")


def _diff(call: _Call) -> int:
    one, other = (*call.arguments, "current")[:2]
    return call.show("GET", f"/versions/{one}?to={other}", show.diff)


def _rollback(call: _Call) -> int:
    content = {"version": int(call.arguments[0])} if call.arguments else None
    return call.show("POST", "/rollback", show.outcome, content)


def _top(call: _Call) -> int:
    try:
        return screen.run(call.answer, as_json=call.as_json)
    except (LookupError, TypeError):
        raise CtlError(NOT_UNDERSTOOD) from None


def _metrics(call: _Call) -> int:
    status, text = call.ask("GET", "/metrics")
    if status != 200:
        return call.tell(status, text, str)
    if not text.startswith("# "):
        raise CtlError(NOT_UNDERSTOOD)
    print(show.text(text))
    return OK


class _Command(NamedTuple):
    run: Callable[[_Call], int]
    least: int = 0  # arguments
    most: int = 0
    takes_numbers: bool = False
    options: tuple[str, ...] = ()


# Each command stands twice: here for whoever asks for help, and below with what it does.
USAGE = """\
commands for a running server: proxy-server ctl [-c FILE] [--json] COMMAND
  status                  version of the configuration, listeners, connections, upstreams and their health
  top                     all of that live, with rates; h explains the keys
                          printed once if the output is not a terminal
  connections             live connections
  kill ID                 end one of them, by the ID that connections shows
  limits                  who uses how much of which limit
  refusals                the last 200 clients that got no connection, and why
  penalties               addresses with failed logins, and how long no login from there is judged
  forgive ADDRESS         forget the failed logins of an address
  explain TARGET          what the rules decide for a host:port, and why
                          exit code 0: it is let through, 1: it is refused
                          options: --listener NAME, if there are several, --user NAME, --from ADDRESS
  test UPSTREAM [TARGET]  have the server reach an upstream, stage by stage, and a host:port through it
                          exit code 0: reached, 1: a stage fails
  reload                  read the file again, and show the result
  versions                versions of the configuration
  show                    the configuration in effect with all its defaults, without secrets
  diff N [M]              the differences between version N and version M, or the one in effect
  upgrade                 with workers: start the new program in the same process; no client is lost
  rollback [N]            go back to version N, or to the one before, and write it to the file
                          without N, if the file was rejected, put back what is in effect
  set KEY [VALUE]         change a setting, such as listeners.socks.max_connections 2000
                          without VALUE, ctl asks for it, or reads it from standard input: good for passwords
                          before a VALUE that begins with a dash, write --: set KEY -- VALUE
                          several KEY VALUE pairs are changed together, or none of them
                          a user's password is stored as a hash, or with --plain as it is
  unset KEY ...           remove settings, users, listeners or upstreams
                          with --volatile, set and unset leave the file as it is
  metrics                 numbers for Prometheus"""

COMMANDS = {
    "status": _Command(lambda call: call.show("GET", "/status", show.render_status)),
    "top": _Command(_top),
    "connections": _Command(lambda call: call.show("GET", "/connections", show.connections)),
    "kill": _Command(_kill, 1, 1),
    "limits": _Command(lambda call: call.show("GET", "/limits", show.limits)),
    "refusals": _Command(lambda call: call.show("GET", "/refusals", show.refusals)),
    "penalties": _Command(lambda call: call.show("GET", "/penalties", show.penalties)),
    "forgive": _Command(_forgive, 1, 1),
    "explain": _Command(_explain, 1, 1, options=("listener", "user", "from")),
    "test": _Command(_test, 1, 2),
    "reload": _Command(lambda call: call.show("POST", "/reload", show.outcome)),
    "versions": _Command(lambda call: call.show("GET", "/versions", show.versions)),
    "show": _Command(lambda call: call.show("GET", "/config", lambda answer: str(answer["text"]))),
    "diff": _Command(_diff, 1, 2, takes_numbers=True),
    "upgrade": _Command(_upgrade),
    "rollback": _Command(_rollback, 0, 1, takes_numbers=True),
    "set": _Command(_set, 1, 1000, options=("volatile", "plain")),
    "unset": _Command(_unset, 1, 1000, options=("volatile",)),
    "metrics": _Command(_metrics),
}
