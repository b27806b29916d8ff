"""A file of users that changes while the program runs."""

import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.integration.programs import Proxy, run_proxy, socks_door
from tests.integration.test_control import ctl, said
from tests.wire import clients, targets
from tests.wire.clients import LoginRefused
from tests.wire.sockets import read_exact
from tests.wire.targets import Target
from tests.wire.waits import wait_until


class Node(Proxy):
    """A program with a file of users beside its configuration."""

    def __init__(self, users: str, **settings: Any) -> None:
        proxy = {"users_file": "users", "reload_interval": "50ms", **settings}
        users_too = {"alice": "wonderland"}
        super().__init__({"proxy": proxy, "listeners": {"socks": socks_door()}, "auth_users": users_too})
        self.replace(users)

    @property
    def users(self) -> Path:
        """The file."""
        return self.directory / "users"

    def replace(self, users: str) -> None:
        """Put another one in its place, as one does who is read meanwhile."""
        new = self.directory / "new"
        new.write_text(users)
        new.chmod(0o600)
        os.replace(new, self.users)

    def lets_in(self, port: int, user: str, password: str) -> bool:
        """Tell whether somebody may log in."""
        try:
            clients.socks5(self.door("socks"), "127.0.0.1", port, (user, password)).close()
        except LoginRefused:
            return False
        return True


def test_another_file_is_in_effect_by_itself_and_a_bad_one_is_not() -> None:
    with Node("bob:builder\n") as node, Target(targets.echo) as target:
        assert node.lets_in(target.port, "bob", "builder")
        assert node.lets_in(target.port, "alice", "wonderland")
        node.replace("carol:sesame\n")
        wait_until(lambda: node.lets_in(target.port, "carol", "sesame"), "the new user")
        assert not node.lets_in(target.port, "bob", "builder")
        node.wait_for_log("the files that it names were read again")
        node.replace("carol:sesame\nopensesame\n")
        node.wait_for_log("users:2: has no colon: write name:password")
        assert node.lets_in(target.port, "carol", "sesame")
        node.users.unlink()
        node.wait_for_log("users: cannot be read: No such file or directory")
        assert node.lets_in(target.port, "carol", "sesame")
        node.replace("dave:x\n")
        wait_until(lambda: node.lets_in(target.port, "dave", "x"), "the newest user")
        assert "opensesame" not in node.log


def test_a_file_that_is_emptied_lets_nobody_in_and_not_everybody() -> None:
    with Node("bob:builder\n") as node, Target(targets.echo) as target:
        assert ctl(node, "unset", "auth_users.alice").returncode == 0
        node.replace("")
        wait_until(lambda: not node.lets_in(target.port, "bob", "builder"), "him to be gone")
        with pytest.raises(LoginRefused):
            clients.socks5(node.door("socks"), "127.0.0.1", target.port)


@pytest.mark.parametrize("fate", ["keep", "close"])
def test_who_is_gone_is_ended_if_that_is_wanted(fate: str) -> None:
    with Node("bob:builder\ncarol:sesame\n", on_user_change=fate) as node, Target(targets.echo) as target:
        bob, carol = (
            clients.socks5(node.door("socks"), "127.0.0.1", target.port, login)
            for login in (("bob", "builder"), ("carol", "sesame"))
        )
        node.replace("carol:sesame\n")
        node.wait_for_log("the files that it names were read again")
        carol.sendall(b"x")
        assert read_exact(carol, 1) == b"x"
        if fate == "close":
            node.wait_for_log("end=evicted")
        else:
            bob.sendall(b"x")
            assert read_exact(bob, 1) == b"x"
        bob.close()
        carol.close()


def test_nothing_of_it_is_in_versions_and_answers() -> None:
    with Node("bob:opensesame\n") as node, Target(targets.echo) as target:
        assert ctl(node, "set", "proxy.timeout", "20s").returncode == 0
        for command in (["show"], ["versions"], ["diff", "1"], ["status"], ["metrics"]):
            text = said(ctl(node, *command))
            assert "opensesame" not in text
            assert "bob" not in text
        kept = b"".join(
            path.read_bytes() for path in (node.directory / ".proxy").rglob("*") if path.is_file()
        )
        assert b"opensesame" not in kept
        dumped = run_proxy("-c", str(node.config_path), "-dump").stdout
        assert b"opensesame" not in dumped
        assert b"bob" not in dumped
        node.replace("carol:sesame\n")
        wait_until(lambda: node.lets_in(target.port, "carol", "sesame"), "the new user")
        assert ctl(node, "rollback").returncode == 0
        assert node.lets_in(target.port, "carol", "sesame")  # the file as it is


def test_another_file_can_be_set_and_taken_away() -> None:
    with Node("bob:builder\n") as node, Target(targets.echo) as target:
        other = node.directory / "other"
        other.write_text("carol:sesame\n")
        other.chmod(0o600)
        assert ctl(node, "set", "proxy.users_file", "other").returncode == 0
        assert node.lets_in(target.port, "carol", "sesame")
        assert not node.lets_in(target.port, "bob", "builder")
        missing = ctl(node, "set", "proxy.users_file", "missing")
        assert missing.returncode == 1
        assert ctl(node, "unset", "proxy.users_file").returncode == 0
        assert not node.lets_in(target.port, "carol", "sesame")
        assert node.lets_in(target.port, "alice", "wonderland")


def test_a_start_without_the_file_is_refused() -> None:
    with Node("bob:builder\n") as node:
        node.users.unlink()
        checked = run_proxy("-c", str(node.config_path), "-check")
        assert checked.returncode == 2
        assert b"users: cannot be read: No such file" in checked.stderr


def test_thousands_are_replaced_while_clients_log_in_and_none_of_those_who_stay_is_refused() -> None:
    def crowd(newest: str) -> str:
        return "".join(f"user{number}:pass{number}\n" for number in range(5000)) + f"{newest}:sesame\n"

    with Node(crowd("bob")) as node, Target(targets.echo) as target:
        is_over, refused, logins = threading.Event(), [], []

        def log_in() -> None:
            while not is_over.is_set():
                logins.append(1)
                if not node.lets_in(target.port, "user4999", "pass4999"):
                    refused.append(len(logins))

        clerk = threading.Thread(target=log_in, daemon=True)
        clerk.start()
        try:
            for newest in ("carol", "dave", "erin"):
                node.replace(crowd(newest))
                wait_until(partial(node.lets_in, target.port, newest, "sesame"), f"{newest} to be let in")
        finally:
            is_over.set()
            clerk.join(30)
        assert not clerk.is_alive()
        assert logins
        assert refused == []
        assert not node.lets_in(target.port, "bob", "sesame")


def test_a_link_that_is_turned_to_another_folder_is_seen() -> None:
    """As Kubernetes renews a Secret: ``users`` leads to ``..data/users``, and ``..data`` is turned."""
    with Node("bob:builder\n") as node, Target(targets.echo) as target:
        folder = node.directory
        for name, users in (("first", "bob:builder\n"), ("second", "carol:sesame\n")):
            (folder / name).mkdir()
            (folder / name / "users").write_text(users)
        (folder / "..data").symlink_to("first")
        node.users.unlink()
        node.users.symlink_to("..data/users")
        wait_until(lambda: node.lets_in(target.port, "bob", "builder"), "the link to be in effect")
        (folder / "..new").symlink_to("second")
        os.replace(folder / "..new", folder / "..data")
        wait_until(lambda: node.lets_in(target.port, "carol", "sesame"), "the other folder to be in effect")
        assert not node.lets_in(target.port, "bob", "builder")
