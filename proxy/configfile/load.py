"""
The INI file: read it into a configuration, or say everything that is wrong with it.

A file goes through four steps: its text is parsed (``document``), looked at for what cannot be there
(``outline``), given to configobj with the configspec for each value, and made into dataclasses, which say
what values mean to one another (``build``). Each step refuses what is wrong and hands on the rest, so that
one reading finds every mistake. A configuration comes out only if there was none.
"""

import os
import pathlib
from typing import NamedTuple

from proxy.config import ProxyConfig
from proxy.configfile.build import NAMED_FILES, Builder
from proxy.configfile.content import Content, InvalidConfigError, read_file
from proxy.configtext.document import NOWHERE, Document
from proxy.configtext.outline import Outline, Problem, why_no_text_file
from proxy.users import is_hash, to_bytes


class Loaded(NamedTuple):
    """A configuration, and what its author should know nevertheless."""

    config: ProxyConfig
    warnings: tuple[Problem, ...] = ()


def load(path: str) -> Loaded:
    """Read a configuration file. Raises ``InvalidConfigError``, also for a file that cannot be read."""
    return understand(read_file(path), path, folder_of(path))


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
    told = content.exposures(path, "control the server", lambda: _has_plain_secrets(config))
    return Loaded(config, (*told, *outline.warnings))


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
