"""A file of users that changes while the program runs."""

import os
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
