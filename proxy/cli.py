"""
The command line.

Every error is one line on standard error, and none is a traceback.
"""

import errno
import os
import shlex
import signal
from collections.abc import Mapping, Sequence

from proxy import __version__, console, modes, signals
from proxy.console import BAD_USAGE, FAILED, KILLED, OK, InputError, OutputError
from proxy.errors import ConfigError, ProxyError
from proxy.lines import say
from proxy.options import Option, UsageError, describe, read
from proxy.settings.protocols import Protocol
from proxy.settings.upstream import UpstreamType
from proxy.users import to_bytes
from proxy.workers import VARIABLE as WORKER

# What a command line is about; each option belongs to some of these.
_FILE, _SERVER, _CLIENT, _INIT, _HASH = "-c FILE", "-mode server", "-mode client", "-init", "-hash-password"

USAGE = """\
usage: proxy-server -c proxy.ini [-check | -dump | -last-good]
       proxy-server -c proxy.ini -explain TARGET [-listener NAME] [-user NAME] [-from ADDRESS]
       proxy-server -c proxy.ini -test UPSTREAM [HOST:PORT]
       proxy-server -mode server -protocol socks5|websocket|mixed -addr ADDRESS [options]
       proxy-server -mode client -protocol socks5|http|websocket -addr ADDRESS -host HOST -port PORT [options]
       proxy-server ctl [-c proxy.ini] [--json] [--volatile] COMMAND [ARGUMENT ...]   (ctl -h lists them)
       proxy-server -init [FILE]
       proxy-server -hash-password
       proxy-server -version | -h

options (one dash or two):"""

_NO_MEMORY = "there is not enough memory: raise its limit (ulimit -v, MemoryMax=), or free some"
_LOOKS = {"check", "dump", "explain", "test"}  # what ends without having served
_ABOUT_EXPLAIN = {"listener", "user", "from"}
_TARGET = "test-target"  # what stands behind -test UPSTREAM, and is no option
_PROTOCOLS = tuple(each.value for each in Protocol)
_TYPES = tuple(each.value for each in UpstreamType)
OPTIONS = (
    Option("config", "FILE", "run from a configuration file", (_FILE,), also=("c",)),
    Option("check", "", "with -c: check the file, and print every problem", (_FILE,)),
    Option("dump", "", "with -c: print the effective configuration, without secrets", (_FILE,)),
    Option(
        "last-good",
        "",
        "with -c: if the file is invalid, start with the last version that was applied",
        (_FILE,),
    ),
    Option("explain", "TARGET", "with -c: show what the rules decide for a host:port, and why", (_FILE,)),
    Option("listener", "NAME", "with -explain: the listener that the client uses", (_FILE,)),
    Option("user", "NAME", "with -explain: the user, if the client logs in", (_FILE,)),
    Option("from", "ADDRESS", "with -explain: the address of the client", (_FILE,)),
    Option(
        "test",
        "UPSTREAM",
        "with -c: try to reach an upstream, stage by stage, and a HOST:PORT through it",
        (_FILE,),
    ),
    Option("mode", "MODE", "run without a configuration file", (_SERVER, _CLIENT), ("server", "client")),
    Option(
        "protocol", "NAME", "what to serve, or what the proxy speaks", (_SERVER, _CLIENT), choices=_PROTOCOLS
    ),
    Option("addr", "ADDRESS", "where to listen, or where the proxy is", (_SERVER, _CLIENT)),
    Option("username", "NAME", "server: who may use it; client: the user to log in as", (_SERVER, _CLIENT)),
    Option(
        "password",
        "PASSWORD",
        "the password of that user; better in the environment, as PROXY_PASSWORD",
        (_SERVER, _CLIENT),
    ),
    Option("upstream-type", "TYPE", "server: the kind of the upstream", (_SERVER,), choices=_TYPES),
    Option("upstream-address", "ADDRESS", "server: where the upstream proxy is", (_SERVER,)),
    Option("upstream-username", "NAME", "server: the user to log in there as", (_SERVER,)),
    Option(
        "upstream-password",
        "PASSWORD",
        "server: the password of that user; better in PROXY_UPSTREAM_PASSWORD",
        (_SERVER,),
    ),
    Option("upstream-tls-ca", "FILE", "server: trust this CA, not the system's, for TLS", (_SERVER,)),
    Option("tls-ca", "FILE", "client: trust this CA, not the system's, for TLS", (_CLIENT,)),
    Option(
        "proxy",
        "URL",
        "client: reach the proxy through this one; env: the one in the environment",
        (_CLIENT,),
    ),
    Option("host", "HOST", "client: the target", (_CLIENT,)),
    Option("port", "PORT", "client: its port", (_CLIENT,)),
    Option(
        "listen", "ADDRESS", "client: accept connections here, and carry each one to the target", (_CLIENT,)
    ),
    Option(
        "init",
        "FILE",
        "write a short configuration to start from; -: print it",
        (_INIT,),
        default="proxy.ini",
    ),
    Option("hash-password", "", "read a password, print its hash for [auth_users]", (_HASH,)),
    Option("version", "", "print the version"),
    Option("help", "", "print this help", also=("h",)),
)


def run(arguments: Sequence[str]) -> int:
    """Run the program with these arguments, and return its exit code."""
    try:
        try:
            signals.unblock_interrupt()
            if worker := os.environ.pop(WORKER, ""):
                return _work(worker)
            return _control(arguments[1:]) if arguments[:1] == ["ctl"] else _run(arguments)
        finally:
            console.flush()
    except UsageError as exc:
        say(f"proxy-server: {exc} (-h for help)")
        return BAD_USAGE
    except InputError as exc:
        say(f"proxy-server: {exc}")
        return BAD_USAGE
    except OutputError as exc:
        console.give_up_output()
        if not exc.unwanted:
            say(f"proxy-server: {exc}")
        return FAILED
    except ProxyError as exc:
        say(f"proxy-server: {exc}")
        return FAILED
    except KeyboardInterrupt:
        return KILLED + signal.SIGINT
    except Exception as exc:
        if isinstance(exc, MemoryError) or (isinstance(exc, OSError) and exc.errno == errno.ENOMEM):
            say(f"proxy-server: {_NO_MEMORY}")
            return FAILED
        say(f"proxy-server: internal error: {type(exc).__name__}: {exc}")
        return FAILED


def _run(arguments: Sequence[str]) -> int:
    given, others = read(arguments, OPTIONS)
    if "test" in given and others:
        given[_TARGET] = others.pop(0)
    if "help" in given or others[:1] == ["help"]:
        print(f"{USAGE}\n{describe(OPTIONS)}")
        return OK
    if "version" in given:
        if others or len(given) > 1:
            raise UsageError("-version cannot be combined with anything")
        print(f"proxy-server {__version__}")
        return OK
    mode = _mode(given)
    _refuse_strangers(given, others, mode)
    serves = mode == _SERVER or (mode == _FILE and not given.keys() & _LOOKS)
    if not serves:
        signals.unblock()  # a client ends with its terminal
    try:
        return _MODES[mode](given)
    except ConfigError as exc:
        say(f"proxy-server: {exc.field}: {exc}")
        return BAD_USAGE


def _mode(given: Mapping[str, str]) -> str:
    if "config" in given:
        return _FILE
    if "mode" in given:
        return f"-mode {given['mode']}"
    return next((f"-{each}" for each in ("init", "hash-password") if each in given), "")


def _refuse_strangers(given: Mapping[str, str], others: Sequence[str], mode: str) -> None:
    """Refuse what would have no effect: whoever wrote it believes that it has one."""
    if others:
        raise UsageError(_stray(others[0]))
    used = [option for option in OPTIONS if option.name in given]
    for option in used:
        if option.value and not given[option.name]:
            # Most likely a variable of a shell that is not set; without a user, say, a server would be open.
            raise UsageError(f"-{option.name} has an empty value")
    if not mode and used:
        raise UsageError(f"-{used[0].name} belongs to {' or '.join(used[0].modes)}, which is missing")
    if not mode:
        raise UsageError("nothing to do: give -c FILE, -mode server, -mode client or -init")
    strange = [f"-{option.name}" for option in used if mode not in option.modes]
    if strange:
        raise UsageError(f"{', '.join(strange)} cannot be used with {mode}")
    looks = [f"-{option.name}" for option in used if option.name in _LOOKS]
    if len(looks) > 1:
        raise UsageError(f"{' and '.join(looks)} cannot be used together")
    if "last-good" in given and looks:
        raise UsageError(
            "-last-good is for a start: it cannot be used with -check, -dump, -explain and -test"
        )
    lonely = given.keys() & _ABOUT_EXPLAIN
    if lonely and "explain" not in given:
        raise UsageError(f"-{min(lonely)} belongs to -explain, which is missing")


def _stray(word: str) -> str:
    if word == "ctl":
        return "ctl comes first: proxy-server ctl -c FILE COMMAND"
    if option := next((each.name for each in OPTIONS if word in each.names), ""):
        return f"an option begins with a dash: write -{option}"
    if word.endswith((".ini", ".conf")) or os.path.isfile(word):
        return f"to run from a file, write -c {word}"
    return "an argument belongs to no option: a value with blanks goes into quotes"


def _run_file(given: Mapping[str, str]) -> int:
    # The control plane is imported only here: without it there is still a proxy.
    from proxy.configfile.content import InvalidConfigError

    try:
        if given.keys() & _LOOKS:
            return _look(given)
        from proxy import live

        live.serve(given["config"], last_good="last-good" in given)
        return OK
    except InvalidConfigError as exc:
        for problem in exc.problems:
            say(str(problem))
        return BAD_USAGE


def _look(given: Mapping[str, str]) -> int:
    from proxy import offline

    path = given["config"]
    if "dump" in given:
        return offline.dump(path)
    if "check" in given:
        return offline.check(path)
    if "explain" in given:
        listener, user, client = (given.get(each, "") for each in ("listener", "user", "from"))
        return offline.explain(path, given["explain"], listener, user, client)
    return offline.test(path, given["test"], given.get(_TARGET))


def _control(arguments: Sequence[str]) -> int:
    from proxy.ctl import commands

    signals.unblock()
    return commands.run(arguments)


def _work(descriptors: str) -> int:
    from proxy.workers.worker import run

    return run(descriptors)


# -- what helps to write a configuration


def _init(given: Mapping[str, str]) -> int:
    from proxy.starter import STARTER, write_starter

    path = given["init"]
    if path == "-":
        print(STARTER, end="")
        return OK
    write_starter(path)
    run = f"proxy-server -c {shlex.quote(path)}"
    print(f"{path} is written: a proxy for this machine alone. Have a look at it, then run it:\n  {run}")
    return OK


def _hash_password(given: Mapping[str, str]) -> int:
    from proxy.policy.auth import hash_password

    password = console.read_secret("Password: ", again="Again: ")
    if not 1 <= len(to_bytes(password)) <= 255 or "\0" in password:
        raise InputError("a password has 1 to 255 bytes, and no NUL")
    print(hash_password(password))
    return OK


_MODES = {
    _FILE: _run_file,
    _SERVER: modes.run_server,
    _CLIENT: modes.run_client,
    _INIT: _init,
    _HASH: _hash_password,
}
