"""
The INI file: read it into a configuration, or say everything that is wrong with it.

A file goes through four steps: its text is parsed (``document``), looked at for what cannot be there
(``outline``), given to configobj with the configspec for each value, and made into dataclasses, which say
what values mean to one another (``build``). Each step refuses what is wrong and hands on the rest, so that
one reading finds every mistake. A configuration comes out only if there was none.
"""

import errno
import os
import pathlib
import stat
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from proxy.config import ProxyConfig
from proxy.configfile.build import NAMED_FILES, Builder
from proxy.configtext.document import NOWHERE, Document
from proxy.configtext.outline import MAX_BYTES, Outline, Problem, why_no_text_file
from proxy.errors import ConfigError, is_shortage, reason_of
from proxy.net.limits import from_reserve, untold_shortage
from proxy.trust import Trust
from proxy.users import is_hash, to_bytes


class InvalidConfigError(ConfigError):
    """The file cannot be used; ``problems`` has all that is wrong with it, in the order of its lines."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(problems[0].key, f"{problems[0]}{more}")
        self.problems = problems


class Loaded(NamedTuple):
    """A configuration, and what its author should know nevertheless."""

    config: ProxyConfig
    warnings: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Content:
    """What a file had when it was read, and what is known of it."""

    data: bytes
    found: os.stat_result

    @property
    def text(self) -> str:
        """As text; bytes that are not UTF-8 become what no text has."""
        return self.data.decode("utf-8-sig", "surrogateescape")

    @cached_property
    def document(self) -> Document:
        """The text, parsed."""
        return _parsed(self.data)


def load(path: str) -> Loaded:
    """Read a configuration file. Raises ``InvalidConfigError``, also for a file that cannot be read."""
    return understand(read_file(path), path)


def read_file(path: str) -> Content:
    """
    Read a file without a look at what is in it.

    Raises ``InvalidConfigError`` if it cannot be read, and ``LimitError`` if only we cannot do that now.
    """
    try:
        with from_reserve(lambda: open(path, "rb")) as file:
            return Content(found=os.fstat(file.fileno()), data=file.read(MAX_BYTES + 1))
    except OSError as exc:
        if is_shortage(exc):
            raise untold_shortage(f"{path} cannot be read now", exc) from exc
        reason = "is a folder" if exc.errno == errno.EISDIR else f"cannot be read: {reason_of(exc)}"
        raise InvalidConfigError((Problem(path, 0, "", "", reason),)) from exc
    except ValueError as exc:
        raise InvalidConfigError((Problem(path, 0, "", "", "this cannot be a file name"),)) from exc


def understand(content: Content, path: str) -> Loaded:
    """Read the configuration from a file's content, with all that there is to say of the file itself."""
    config, warnings = _build(content.document, content.data, path, folder_of(path), with_files=True)
    mode, told = content.found.st_mode, []
    if mode & 0o077 and _has_plain_secrets(config):
        what = "has passwords in plain text, and other users of this machine may access it"
        told.append(f"{what}: chmod 600 {path}")
    if stat.S_ISREG(mode) and Trust(path).others_may_write(content.found):
        what = "other users of this machine may write it, and so control the server"
        told.append(f"{what}: chmod go-w {path}")
    return Loaded(config, (*(Problem(path, 0, "", "", each) for each in told), *warnings))


def named_files_in(document: Document, folder: str) -> list[str]:
    """
    List the files that are read with a document in a folder, which need not be a valid configuration.

    They are certificates and keys, and a file of users.
    """
    named = {value for _, key, value in document.values() if key in NAMED_FILES and value}
    return sorted(os.path.join(folder, os.path.expanduser(name)) for name in named)


def folder_of(path: str) -> str:
    """Tell where the relative paths start that stand in a configuration file."""
    return os.path.dirname(os.path.abspath(path))


def state_dir(config_path: str, configured: str) -> pathlib.Path:
    """Tell where the state of a server is kept; a relative folder starts at the file's own."""
    return pathlib.Path(os.path.abspath(config_path)).parent / (os.path.expanduser(configured) or ".proxy")


def state_dir_of(config_path: str) -> pathlib.Path:
    """The same, best effort, for a file that may be missing or invalid."""
    return state_dir(config_path, peek(config_path, "state_dir"))


def peek(config_path: str, key: str) -> str:
    """Read a setting of [proxy] from a file that may be missing or invalid; "" if there is none."""
    try:
        document = read_file(config_path).document
    except InvalidConfigError:
        return ""
    homes = (("proxy",), NOWHERE)  # also below a header that is broken, which may be that of [proxy]
    return next((value for path, name, value in document.values() if path in homes and name == key), "")


def parse(data: bytes, path: str, *, folder: str = "", with_files: bool = False) -> Loaded:
    """
    Read a configuration from a file's content; ``path`` is what problems call it.

    Relative paths in it start at ``folder``. The TLS files that it names, and the names of listeners,
    are looked up only ``with_files``.
    """
    return _build(_parsed(data), data, path, folder, with_files=with_files)


def _parsed(data: bytes) -> Document:
    # What is too large for a configuration is not looked at.
    return Document(data.decode("utf-8", "surrogateescape") if len(data) <= MAX_BYTES else "")


def _build(document: Document, data: bytes, path: str, folder: str, *, with_files: bool) -> Loaded:
    outline = Outline(document, path, why_no_text_file(data))
    config = Builder(outline, folder, with_files=with_files).build()
    if outline.problems or config is None:
        raise InvalidConfigError(tuple(sorted(outline.problems, key=lambda problem: problem.line)))
    return Loaded(config, tuple(outline.warnings))


def _has_plain_secrets(config: ProxyConfig) -> bool:
    return bool(
        config.control_token
        or any(each.proxy_password or each.headers for each in config.upstreams)
        or any(
            not is_hash(to_bytes(password))
            for name, password in config.auth_users.items()
            if name not in config.users_in_file
        )
    )
