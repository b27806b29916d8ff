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
    """What a file had when it was read, and what is known of it; that is nothing of a text from elsewhere."""

    data: bytes
    found: os.stat_result | None = None

    @property
    def text(self) -> str:
        """As text; bytes that are not UTF-8 become what no text has."""
        return self.data.decode("utf-8-sig", "surrogateescape")

    @cached_property
    def document(self) -> Document:
        """The text, parsed; what is too large for a configuration is not looked at."""
        return Document(self.data.decode("utf-8", "surrogateescape") if len(self.data) <= MAX_BYTES else "")


def load(path: str) -> Loaded:
    """Read a configuration file. Raises ``InvalidConfigError``, also for a file that cannot be read."""
    return understand(read_file(path), path, folder_of(path))


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
        raise InvalidConfigError((Problem(path, reason),)) from exc
    except ValueError as exc:
        raise InvalidConfigError((Problem(path, "this cannot be a file name"),)) from exc


def understand(content: Content, path: str, folder: str = "", *, with_files: bool = True) -> Loaded:
    """
    Read the configuration from a file's content, or raise ``InvalidConfigError``; problems call it ``path``.

    Relative paths in it start at ``folder``. The files that it names, and the names of listeners, are
    looked up only ``with_files``.
    """
    outline = Outline(content.document, path, why_no_text_file(content.data))
    config = Builder(outline, folder, with_files=with_files).build()
    if outline.problems or config is None:
        raise InvalidConfigError(tuple(sorted(outline.problems, key=lambda problem: problem.line)))
    warnings = tuple(outline.warnings)
    if found := content.found:
        told = Trust(path).exposures(found, "control the server", has_passwords=_has_plain_secrets(config))
        warnings = (*(Problem(path, each) for each in told), *warnings)
    return Loaded(config, warnings)


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


def state_dir_of(path: str) -> pathlib.Path:
    """Tell where the state of a server is kept whose file may be missing or invalid."""
    # A relative folder starts at the file's own.
    return pathlib.Path(folder_of(path)) / (os.path.expanduser(peek(path, "state_dir")) or ".proxy")


def peek(config_path: str, key: str) -> str:
    """Read a setting of [proxy] from a file that may be missing or invalid; "" if there is none."""
    try:
        document = read_file(config_path).document
    except InvalidConfigError:
        return ""
    homes = (("proxy",), NOWHERE)  # also below a header that is broken, which may be that of [proxy]
    return next((value for path, name, value in document.values() if path in homes and name == key), "")
