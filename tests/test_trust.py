"""Case 378: what others may have made is not taken for ours."""

import grp
import os
import pwd
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from proxy import cli
from proxy.keeping.history import History, Version
from proxy.trust import Trust, UntrustedError
from tests.integration.programs import run_proxy

STRANGER = 54321

Give = Callable[[Path], None]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pxt-") as path:
        yield Path(path)


@pytest.fixture
def give_away(monkeypatch: pytest.MonkeyPatch) -> Give:
    """Give what gives a place to somebody else; or what makes us somebody else, if we are not root."""

    def give(path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, STRANGER, -1, follow_symlinks=False)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: STRANGER)

    return give


def version(number: int) -> Version:
    return Version(number, 1234.5, "file", "x", "[proxy]\n")


def numbers(history: History) -> list[int]:
    return [each.number for each in history.versions]


class TestPlaces:
    def test_what_we_made_is_ours(self, folder: Path) -> None:
        (folder / "state").mkdir(mode=0o700)
        (folder / "link").symlink_to("state")
        for name in ("state", "link", "state/../state", "missing", "missing/too"):
            assert Trust().why_not(folder / name) == ""

    def test_what_belongs_to_somebody_else_is_not(self, folder: Path, give_away: Give) -> None:
        (folder / "state").mkdir(mode=0o755)
        give_away(folder / "state")
        assert "belongs to" in Trust().why_not(folder / "state")

    @pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702], ids=oct)
    def test_nor_is_where_others_may_write(self, folder: Path, mode: int) -> None:
        (folder / "state").mkdir()
        (folder / "state").chmod(mode)
        assert Trust().why_not(folder / "state") == f"others may write in {folder}/state"

    def test_the_members_of_a_group_are_others(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """But for the group that many systems make for each user (umask 002), which has nobody else in it."""
        (folder / "state").mkdir()
        (folder / "state").chmod(0o770)
        gid = (folder / "state").stat().st_gid
        us = type("User", (), {"pw_uid": os.geteuid(), "pw_gid": gid})
        for name, members, is_ours in (
            ("us", [], True),
            ("us", ["us"], True),
            ("us", ["us", "them"], False),
            ("staff", [], False),
        ):
            group = type("Group", (), {"gr_name": name, "gr_mem": members})
            monkeypatch.setattr(grp, "getgrgid", lambda gid, group=group: group)
            monkeypatch.setattr(pwd, "getpwnam", lambda name: {"us": us}[name])
            assert (Trust().why_not(folder / "state") == "") == is_ours

    @pytest.mark.parametrize("kind", ["folder", "link"])
    def test_in_a_folder_of_all_only_what_is_ours_is_meant(
        self, folder: Path, give_away: Give, kind: str
    ) -> None:
        """Such as /tmp: a link of another user leads where he wants, though what is there may be ours."""
        ours, shared = folder / "ours", folder / "shared"
        ours.mkdir(mode=0o700)
        shared.mkdir()
        shared.chmod(0o1777)
        entry = shared / "entry"
        if kind == "link":
            entry.symlink_to(ours)
        else:
            entry.mkdir(mode=0o755)
            (entry / "state").mkdir(mode=0o700)
        state = entry if kind == "link" else entry / "state"
        assert Trust().why_not(state) == ""
        give_away(entry)
        assert "others may write in" in Trust().why_not(state)

    def test_a_circle_of_links_comes_to_an_end(self, folder: Path) -> None:
        (folder / "a").symlink_to("b")
        (folder / "b").symlink_to("a")
        with pytest.raises(OSError, match="symbolic links"), Trust().folder(folder / "a"):
            pass

    def test_who_owns_the_configuration_is_trusted(self, folder: Path, give_away: Give) -> None:
        """Such as the user of a machine whose folder is mounted into a container."""
        if os.geteuid():
            pytest.skip("only root can give a file away")
        (folder / "state").mkdir(mode=0o755)
        (folder / "proxy.ini").touch()
        give_away(folder / "state")
        give_away(folder / "proxy.ini")
        assert Trust().why_not(folder / "state") != ""
        assert Trust(str(folder / "proxy.ini")).why_not(folder / "state") == ""


class TestVersions:
    """They are not started from, rolled back to, or written to; and what is said is said once."""

    @pytest.fixture
    def history(self, folder: Path) -> Path:
        path = folder / "state" / "history"
        made = History(path, 5)
        for number in (1, 2):
            made.add(version(number))
        return path

    @pytest.mark.parametrize("where", ["state_dir", "history"])
    @pytest.mark.parametrize("how", ["stranger", "open"])
    def test_a_folder_that_is_not_ours_alone_is_left_alone(
        self, history: Path, give_away: Give, caplog: pytest.LogCaptureFixture, where: str, how: str
    ) -> None:
        place = history if where == "history" else history.parent
        if how == "open":
            place.chmod(0o777)
        else:
            give_away(place)
        strange = History(history, 5)
        assert (numbers(strange), strange.next_number()) == ([], 1)
        assert len(caplog.messages) == 1
        assert "are not used" in caplog.text
        before = {path.name: path.read_bytes() for path in history.iterdir()}
        assert "in memory only" in strange.add(version(1))
        assert strange.add(version(2)) == ""
        assert {path.name: path.read_bytes() for path in history.iterdir()} == before
        assert numbers(strange) == [1, 2]

    @pytest.mark.parametrize("how", ["stranger", "open", "link", "pipe"])
    def test_so_is_a_version_that_is_not(
        self, history: Path, give_away: Give, caplog: pytest.LogCaptureFixture, how: str
    ) -> None:
        if how == "stranger" and os.geteuid():
            pytest.skip("only root can give a file away")
        one = history / "000001.ini"
        if how == "open":
            one.chmod(0o666)
        elif how == "stranger":
            give_away(one)
        elif how == "link":
            one.rename(history.parent / "elsewhere")
            one.symlink_to(history.parent / "elsewhere")
        else:
            one.unlink()
            os.mkfifo(one)
        again = History(history, 5)
        assert (numbers(again), again.next_number()) == ([2], 3)
        assert caplog.messages[0].startswith(f"{one} is skipped: ")
        again.size = 1
        again.add(version(3))
        assert os.path.lexists(one) == (how != "open")  # what is not ours is not cleared away either

    def test_a_folder_that_becomes_another_ones_is_not_written_to(self, history: Path) -> None:
        made = History(history, 5)
        history.chmod(0o777)
        assert "others may write" in made.add(version(3))
        history.chmod(0o700)
        assert made.add(version(4)) == ""
        assert numbers(History(history, 5)) == [1, 2, 3, 4]


class TestStarting:
    def test_the_last_good_version_is_not_taken_from_where_others_may_write(self, folder: Path) -> None:
        path = folder / "proxy.ini"
        path.write_text("[proxy]\ntiemout = 1\n")
        state = folder / ".proxy"
        good = "[listeners]\n[[socks]]\nprotocol = socks5\nlisten_addr = 127.0.0.1:0\n"
        History(state / "history", 5).add(replace(version(1), text=good))
        state.chmod(0o777)
        done = run_proxy("-c", str(path), "-last-good")
        assert done.returncode == 2
        said = done.stderr.decode()
        assert f"others may write in {state}, so no version there is started with" in said
        assert "tiemout" in said


class TestCtl:
    def test_it_does_not_speak_to_a_socket_that_anybody_may_have_made(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (folder / "proxy.ini").touch()
        state = folder / ".proxy"
        state.mkdir()
        state.chmod(0o777)
        assert cli.run(["ctl", "-c", str(folder / "proxy.ini"), "set", "auth_users.a", "secret"]) == 1
        said = capsys.readouterr().err
        cause = f"others may write in {state}"
        expected = f"{cause}, so {state}/control.sock may belong to anybody, and is not used"
        assert said == f"proxy-server: {expected}\n"

    def test_a_folder_of_another_user_is_his_if_nobody_else_can_have_made_it(
        self, folder: Path, give_away: Give
    ) -> None:
        """So that root can ask the server of a user of its own."""
        if os.geteuid():
            pytest.skip("only root can give a file away")
        (folder / "state").mkdir(mode=0o700)
        give_away(folder / "state")
        Trust().check_listener(folder / "state")
        folder.chmod(0o1777)
        with pytest.raises(UntrustedError):
            Trust().check_listener(folder / "state")
