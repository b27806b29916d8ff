"""A file of users: what is read, what is refused, and that no message repeats a password."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.configfile.content import InvalidConfigError
from proxy.configfile.load import load, named_files_in
from proxy.configfile.usersfile import read_users
from proxy.configtext.document import Document
from proxy.policy.auth import Authenticator, hash_password
from proxy.workers.worker import share_of

HASH = "scrypt$14$8$1$AAECAwQFBgcICQoLDA0ODw==$" + "A" * 43 + "="
SECRET = "sesame"
INI = """\
[proxy]
users_file = users
[auth_users]
alice = wonderland
[listeners]
[[socks]]
protocol = socks5
listen_addr = 127.0.0.1:1080
"""


def written(folder: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path = folder / "users"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


def problems(folder: Path, text: str | bytes) -> list[str]:
    path = written(folder, text)
    found = [str(each).removeprefix(str(path)) for each in read_users(str(path), {"alice": ""}).problems]
    assert SECRET not in "".join(found)
    return found


def test_the_first_colon_ends_the_name_and_all_behind_it_is_the_password(tmp_path: Path) -> None:
    lines = [
        "# those of the sales",
        "",
        "bob:builder",
        "dave:a # b:c, \"d\" 'e'",
        "  ",
        f"carol:{HASH}",
        "ä:ö",
    ]
    path = written(tmp_path, "\n".join(lines))
    read = read_users(str(path))
    assert read.users == {"bob": "builder", "dave": "a # b:c, \"d\" 'e'", "carol": HASH, "ä": "ö"}
    assert (read.problems, read.warnings) == ([], [])


def test_line_ends_of_windows_and_a_byte_order_mark_are_none_of_it(tmp_path: Path) -> None:
    path = written(tmp_path, b"\xef\xbb\xbfbob:builder\r\ndave:x\r\n")
    assert read_users(str(path)).users == {"bob": "builder", "dave": "x"}


def test_an_empty_file_has_no_users(tmp_path: Path) -> None:
    for text in ("", "\n", "# later\n", "\ufeff", "\ufeff\r\n"):
        read = read_users(str(written(tmp_path, text)))
        assert (read.users, read.problems) == ({}, [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"bob\n{SECRET}", ":1: has no colon: write name:password"),
        (f":{SECRET}", ":1: a user name has 1 to 255 bytes"),
        ("bob:", ":1: a password has 1 to 255 bytes"),
        (f"bob:{SECRET * 50}", ":1: a password has 1 to 255 bytes"),
        (f"bob: {SECRET}", ":1: has a blank at an end of the name or the password: such a user goes into"),
        (f"bob :{SECRET}", ":1: has a blank at an end of the name or the password: such a user goes into"),
        (f"bob:{SECRET}\nbob:other", ":2: this user is already in line 1"),
        (f"alice:{SECRET}", ":1: this user is in [auth_users] too"),
        (f"bob:{SECRET}\x07", ":1: has a control character"),
        (f"bob:{SECRET}\tx", ":1: has a control character"),
        (f"bob:{SECRET}\xff".encode("latin-1"), ":1: is not UTF-8"),
        (f"bob:scrypt$14${SECRET}", ":1: begins like a password hash, but is not one"),
        (b"bob:a\0b", ": is not a text file: there is a NUL byte in line 1"),
        (b"x" * (17 << 20), ": is larger than 16 MiB: this is not a configuration file"),
    ],
    ids=range(14),
)
def test_what_can_be_no_user_is_refused_by_its_line(tmp_path: Path, text: str | bytes, problem: str) -> None:
    assert problems(tmp_path, text)[0].startswith(problem)


def test_a_file_of_another_kind_is_told_in_few_lines(tmp_path: Path) -> None:
    told = problems(tmp_path, "no colon here\n" * 5000)
    assert len(told) == 21
    assert told[-1] == ": and 4980 more like these"


def test_what_is_no_file_is_a_problem_and_waits_for_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, why in (
        ("fifo", "it is not a regular file"),
        (".", "Is a directory"),
        ("missing", "No such file"),
    ):
        (problem,) = read_users(str(tmp_path / name)).problems
        assert why in str(problem)
    assert read_users("a\0b").problems


def test_hashes_of_other_programs_are_a_warning_that_does_not_repeat_them(tmp_path: Path) -> None:
    """A file of htpasswd has the same form: nobody could log in, but for whoever got hold of a hash."""
    hashes = "$apr1$r31.....$HqJZimcKQFAMYayBlzkI/0", "{SHA}VBPuJHI7uixaa6LQGx4s+5GKNE4="
    path = written(tmp_path, f"# ours\nann:{HASH}\nbob:{hashes[0]}\ncarol:{hashes[1]}\n")
    (warning,) = map(str, read_users(str(path)).warnings)
    assert warning.startswith(
        f"{path}:3: looks like a hash of another program, such as htpasswd, and is taken"
    )
    assert warning.endswith("(and 1 more like this)")
    assert not any(each in warning for each in hashes)


def test_who_else_may_read_or_write_it_is_a_warning(tmp_path: Path) -> None:
    (warning,) = read_users(str(written(tmp_path, "bob:builder", 0o644))).warnings
    assert "has passwords in plain text" in str(warning)
    assert not read_users(str(written(tmp_path, f"bob:{HASH}", 0o644))).warnings
    (warning,) = read_users(str(written(tmp_path, f"bob:{HASH}", 0o666))).warnings
    assert "chmod go-w" in str(warning)


names = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=20)
passwords = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=40)


@given(st.dictionaries(names, passwords.filter(lambda text: not text.startswith("scrypt$")), max_size=20))
def test_what_is_written_reads_back(tmp_path_factory: pytest.TempPathFactory, users: dict[str, str]) -> None:
    folder = tmp_path_factory.mktemp("users")
    path = written(folder, "".join(f"{name}:{password}\n" for name, password in users.items()))
    assert read_users(str(path)).users == users


# As a setting


def configured(folder: Path, users: str, ini: str = INI) -> str:
    written(folder, users)
    path = folder / "proxy.ini"
    path.write_text(ini)
    path.chmod(0o600)
    return str(path)


def test_its_users_are_those_of_each_listener_beside_the_others(tmp_path: Path) -> None:
    config = load(configured(tmp_path, "bob:builder\n")).config
    assert config.listeners[0].auth_users == config.auth_users == {"alice": "wonderland", "bob": "builder"}
    assert config.users_in_file == {"bob"}


def test_what_is_wrong_in_it_is_wrong_with_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError) as refused:
        load(configured(tmp_path, f"bob\nalice:{SECRET}\n"))
    assert [str(each) for each in refused.value.problems] == [
        f"{tmp_path}/users:1: has no colon: write name:password",
        f"{tmp_path}/users:2: this user is in [auth_users] too",
    ]


def test_it_is_among_the_files_that_are_watched_each_named_once() -> None:
    web = "[[{}]]\nprotocol = websocket\nlisten_addr = :1\ntls_cert = b.pem\ntls_key = {}.key\n"
    text = INI + web.format("web", "b") + web.format("more", "a") + "[upstreams]\n[[x]]\ntls_ca = /ca.pem\n"
    assert named_files_in(Document(text), "/etc") == [
        "/ca.pem",
        "/etc/a.key",
        "/etc/b.key",
        "/etc/b.pem",
        "/etc/users",
    ]


def test_without_any_user_a_login_is_needed_all_the_same(tmp_path: Path) -> None:
    """An empty file lets nobody in, and not everybody."""
    without = INI.replace("alice = wonderland\n", "")
    for ini in (without, without + "auth = required\n"):
        (listener,) = load(configured(tmp_path, "", ini)).config.listeners
        assert listener.needs_auth
        assert not listener.auth_users
    (listener,) = load(configured(tmp_path, "", without + "auth = none\n")).config.listeners
    assert not listener.needs_auth


def test_a_limit_for_a_user_of_the_file_gets_no_warning(tmp_path: Path) -> None:
    ini = INI + "[limits]\n[[x]]\nper = user\nconnections = 1\nuser = bob, carol\n"
    told = [str(each) for each in load(configured(tmp_path, "bob:builder\n", ini)).warnings]
    assert [each.partition("] ")[2] for each in told] == ["user: not in [auth_users] and users_file: carol"]


def test_thousands_are_read_in_a_moment_and_no_hash_is_computed(tmp_path: Path) -> None:
    """A hash takes 70 ms: ten thousand would take more than ten minutes."""
    one = hash_password("x").partition("$")[2]
    text = "".join(f"user{number}:scrypt${one}\n" for number in range(10_000))
    assert len(load(configured(tmp_path, text)).config.listeners[0].auth_users) == 10_001


def test_many_listeners_share_what_is_worked_out_of_many_users(tmp_path: Path) -> None:
    """So that they cost their sum, and not their product, in a worker too, which gets a copy of all."""
    written(tmp_path, "".join(f"user{number}:{HASH}\n" for number in range(10)))
    listeners = "".join(
        f"[[socks{number}]]\nprotocol = socks5\nlisten_addr = 127.0.0.1:{2000 + number}\n"
        for number in range(5)
    )
    (tmp_path / "proxy.ini").write_text(INI + listeners)
    config = load(str(tmp_path / "proxy.ini")).config
    assert len(config.listeners) == 6
    for each in (config, pickle.loads(pickle.dumps(share_of(replace(config, workers=2), 0)))):
        tables = [listener.auth_users for listener in each.listeners]
        assert all(table is tables[0] for table in tables)
        assert len(tables[0]) == 11
    first, second = (Authenticator(listener.auth_users) for listener in config.listeners[:2])
    assert first._passwords is second._passwords
    assert first._nobodys != second._nobodys
