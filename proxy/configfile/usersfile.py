"""
A file of users: ``name:password`` a line, the password plain or a hash.

The first colon ends the name, and all that follows is the password: there are no quotes, and no comments
behind it. Empty lines and lines that begin with # are skipped. No message repeats what a line says.
"""

import codecs
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from proxy.configfile.content import InvalidConfigError, read_file
from proxy.configtext.outline import Problem, why_no_text_file
from proxy.configtext.syntax import CONTROL
from proxy.users import OF_OTHERS, is_hash, is_of_others, to_bytes, user_problems

_MOST_PROBLEMS = 20  # that are told: of a file of another kind each line is one


@dataclass
class UsersFile:
    """What a file of users has: those who can be, and what there is to say."""

    path: str
    users: dict[str, str] = field(default_factory=dict, repr=False)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def read_users(path: str, others: Collection[str] = ()) -> UsersFile:
    """
    Read a file of users, of whom none may be one of the others.

    What cannot be read is a problem; raises ``LimitError`` if only we cannot do that now.
    """
    read = UsersFile(path)
    try:
        content = read_file(path, may_wait=False)
    except InvalidConfigError as exc:
        read.problems += exc.problems
        return read
    # An empty one has no users yet, and lets nobody in.
    data = content.data
    complaint = why_no_text_file(data) if data.removeprefix(codecs.BOM_UTF8).strip() else ""
    if complaint:
        read.problems.append(Problem(path, complaint))
        return read
    _read_lines(read, content.text, others)
    is_plain = any(not is_hash(to_bytes(password)) for password in read.users.values())
    read.warnings += content.exposures(path, "let themselves in", lambda: is_plain)
    return read


def _read_lines(read: UsersFile, text: str, others: Collection[str]) -> None:
    places: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, password = line.partition(":")
        problem = next(_problems(name, colon, password), "")
        if not problem and name in places:
            problem = f"this user is already in line {places[name]}"
        if not problem and name in others:
            problem = "this user is in [auth_users] too"
        if problem:
            read.problems.append(Problem(read.path, problem, number))
        else:
            places[name] = number
            read.users[name] = password
    _look_for_hashes_of_others(read, places)
    if (more := len(read.problems) - _MOST_PROBLEMS) > 0:
        del read.problems[_MOST_PROBLEMS:]
        read.problems.append(Problem(read.path, f"and {more} more like these"))


def _look_for_hashes_of_others(read: UsersFile, places: dict[str, int]) -> None:
    found = [places[name] for name, password in read.users.items() if is_of_others(password)]
    if found:
        more = f" (and {len(found) - 1} more like this)" if found[1:] else ""
        read.warnings.append(Problem(read.path, OF_OTHERS + more, found[0]))


def _problems(name: str, colon: str, password: str) -> Iterator[str]:
    if not colon:
        yield "has no colon: write name:password"
    try:
        (name + password).encode()
    except UnicodeEncodeError:
        yield "is not UTF-8"
    if CONTROL.search(name + password) or "\t" in name + password:
        yield "has a control character"
    if name != name.strip() or password != password.strip():
        yield "has a blank at an end of the name or the password: such a user goes into [auth_users]"
    yield from (str(problem) for problem in user_problems(name, password))
