"""One configuration is in effect; whatever cannot be leaves it, and the file, as they were."""

import errno
import os
import socket
import stat
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import pytest

from proxy.config import ProxyConfig
from proxy.configfile import build, content
from proxy.configfile.content import InvalidConfigError
from proxy.configfile.usersfile import UsersFile, read_users
from proxy.configtext.outline import MAX_BYTES
from proxy.errors import LimitError, ProxyError
from proxy.keeping import files
from proxy.keeping.candidate import Conflict, Outcome
from proxy.keeping.keeper import Keeper
from tests.integration.certificates import Authority, Certificate

TEXT = """\
# Mine.
[proxy]
timeout = 30s  # enough

[auth_users]
alice = wonderland

[listeners]
[[socks]]
protocol = socks5
listen_addr = 127.0.0.1:1080
upstream = home

[upstreams]
[[home]]
type = socks5
proxy_address = 10.0.0.1:1080
"""
OTHER = TEXT.replace("30s", "20s")
LATIN_1 = TEXT.replace("Mine", "Mi\xe9").encode("latin-1")
BAD = TEXT.replace("timeout", "tiemout")


@pytest.fixture(autouse=True)
def within_a_minute() -> Iterator[None]:
    with gevent.Timeout(60):
        yield


class House:
    """A file, and whoever runs what stands in it."""

    def __init__(self, folder: Path, text: str = TEXT) -> None:
        self.path = folder / "proxy.ini"
        self.path.write_text(text)
        self.path.chmod(0o600)
        self.folder = folder / "state"
        self.running: list[ProxyConfig] = []
        self.busy = ""  # a reason for which nothing can be applied
        self.short: LimitError | None = None  # and one that passes
        self.keeper = self.start()

    def start(self, **how: bool) -> Keeper:
        keeper = Keeper(str(self.path), self.folder, 20, self.apply)
        self.warnings = keeper.start(**how)
        self.running.append(keeper.config)
        keeper.record()
        return keeper

    def apply(self, config: ProxyConfig) -> tuple[str, ...]:
        if self.busy:
            raise ProxyError(self.busy)
        if self.short:
            raise self.short
        self.running.append(config)
        return ()

    def write(self, text: str) -> None:
        self.path.write_text(text)

    @property
    def timeout(self) -> float:
        return self.running[-1].listeners[0].timeout

    @property
    def numbers(self) -> list[int]:
        return [version.number for version in self.keeper.versions()]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def rejected(house: House, outcome: Outcome | None, *words: str, version: int = 1) -> None:
    """Check that nothing changed, and that it is said why."""
    assert outcome is not None
    assert (outcome.status, outcome.version) == ("rejected", version)
    assert all(word in " ".join(outcome.problems) for word in words), outcome.problems
    assert house.keeper.current.number == version
    assert house.timeout == 30


class TestStarting:
    def test_the_first_version_is_what_the_file_says(self, house: House) -> None:
        current = house.keeper.current
        assert (current.number, current.source, current.text) == (1, "start", TEXT)
        assert abs(current.time - time.time()) < 60
        assert house.keeper.config.listeners[0].timeout == 30

    def test_a_restart_with_the_same_file_is_the_same_version(self, house: House) -> None:
        assert house.start().current == house.keeper.current

    def test_a_restart_with_another_file_is_a_new_version(self, house: House) -> None:
        house.write(OTHER)
        assert house.start().current.summary == "proxy.timeout 30s -> 20s"
        assert house.start().current.number == 2

    def test_what_never_ran_is_no_version(self, house: House) -> None:
        house.write(OTHER)
        Keeper(str(house.path), house.folder, 20, house.apply).start()
        assert [each.number for each in house.start().versions()] == [1, 2]

    def test_an_invalid_file_is_an_error(self, house: House) -> None:
        house.write(BAD)
        with pytest.raises(InvalidConfigError, match="tiemout"):
            house.start()

    def test_the_last_good_version_is_taken_if_that_is_wanted(self, house: House) -> None:
        house.write(BAD)
        house.keeper = house.start(last_good=True)
        assert house.keeper.current.number == 1
        assert any("tiemout" in each for each in house.warnings)
        assert "version 1" in house.warnings[-1]
        assert house.keeper.reload_if_changed() is None
        assert house.path.read_text() == BAD

    def test_a_volatile_version_is_not_the_last_good_one(self, house: House) -> None:
        house.keeper.change([("proxy.timeout", "9s")], volatile=True)
        house.write(BAD)
        house.keeper = house.start(last_good=True)
        assert house.timeout == 30

    def test_what_was_volatile_and_stands_in_the_file_at_the_next_start_is_so_no_more(
        self, house: House
    ) -> None:
        house.keeper.change([("proxy.timeout", "20s")], volatile=True)
        house.write(OTHER)
        current = house.start().current
        assert (current.number, current.volatile, current.text) == (3, False, OTHER)

    def test_without_a_good_version_there_is_no_start(self, tmp_path: Path) -> None:
        path = tmp_path / "proxy.ini"
        path.write_text(BAD)
        with pytest.raises(InvalidConfigError):
            Keeper(str(path), tmp_path / "state", 20, lambda config: ()).start(last_good=True)


class TestWithoutAFolder:
    """CASES H211: it is another server's."""

    def test_nothing_is_read_or_written_there(self, house: House) -> None:
        keeper = Keeper(str(house.path), None, 20, house.apply)
        house.write(BAD)
        with pytest.raises(InvalidConfigError):
            keeper.start(last_good=True)
        house.write(OTHER)
        keeper.start()
        keeper.record()
        assert (keeper.current.number, keeper.current.summary) == (1, "the first version")
        assert keeper.change([("proxy.timeout", "9s")]) == Outcome("applied", 2)
        assert keeper.rollback() == Outcome("applied", 3)
        assert [each.number for each in keeper.versions()] == [1, 2, 3]
        assert os.listdir(house.folder / "history") == ["000001.ini"]

    def test_it_can_be_left_at_the_last_moment(self, house: House) -> None:
        house.write(OTHER)
        keeper = Keeper(str(house.path), house.folder, 20, house.apply)
        keeper.start()
        keeper.leave_folder()
        keeper.record()
        assert [(each.number, each.text) for each in keeper.versions()] == [(1, OTHER)]
        assert keeper.change([("proxy.timeout", "9s")]) == Outcome("applied", 2)
        assert os.listdir(house.folder / "history") == ["000001.ini"]


class TestReloading:
    def test_another_text_is_a_new_version(self, house: House) -> None:
        house.write(OTHER)
        assert house.keeper.reload_if_changed() == Outcome("applied", 2)
        assert (house.timeout, house.keeper.current.source) == (20, "file")
        assert house.keeper.current.summary == "proxy.timeout 30s -> 20s"

    def test_the_same_text_is_not(self, house: House) -> None:
        house.write(TEXT)
        assert house.keeper.reload_if_changed() is None
        assert house.keeper.reload() == Outcome("unchanged", 1)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (BAD, ("tiemout", "did you mean timeout?")),
            (TEXT.replace("30s", "-1"), ("[proxy] timeout",)),
            (TEXT + "[listener]\n", ("unknown section", "[listeners]")),
            ("", ("empty",)),
            (TEXT + "\ud800", ("UTF-8",)),
            (TEXT.replace("timeout", "timeout = 1\ntimeout"), ("already set",)),
        ],
        ids=["unknown-key", "value", "unknown-section", "empty", "latin-1", "twice"],
    )
    def test_what_cannot_be_is_refused_and_said_once(
        self, house: House, text: str, words: tuple[str, ...]
    ) -> None:
        """CASES H193, H196, H207, H208."""
        house.path.write_bytes(text.encode(errors="surrogatepass"))
        rejected(house, house.keeper.reload_if_changed(), str(house.path), *words)
        assert house.keeper.reload_if_changed() is None
        rejected(house, house.keeper.reload(), *words)
        assert house.numbers == [1]

    def test_where_the_state_lives_stays_where_it_was_at_the_start(self, house: House) -> None:
        """CASES H211: from then on nobody would find the server."""
        elsewhere = TEXT.replace("[proxy]", "[proxy]\nstate_dir = elsewhere")
        house.write(elsewhere)
        rejected(
            house, house.keeper.reload_if_changed(), "proxy.state_dir: cannot change while the server runs"
        )
        house.write(TEXT)
        rejected(house, house.keeper.change([("proxy.state_dir", "elsewhere")]), "restart the server")
        assert house.path.read_text() == TEXT
        assert len(house.running) == 1

    def test_a_byte_order_mark_and_windows_line_ends_are_accepted(self, house: House) -> None:
        """CASES H208."""
        house.path.write_bytes(b"\xef\xbb\xbf" + OTHER.replace("\n", "\r\n").encode())
        assert house.keeper.reload_if_changed() == Outcome("applied", 2)

    def test_a_missing_file_is_refused_and_its_return_is_nothing_new(self, house: House) -> None:
        """CASES H196."""
        house.path.unlink()
        rejected(house, house.keeper.reload_if_changed(), "No such file")
        assert house.keeper.reload_if_changed() is None
        house.write(TEXT)
        assert house.keeper.reload_if_changed() == Outcome("unchanged", 1)

    def test_what_cannot_be_applied_is_not_tried_again_until_it_changes(self, house: House) -> None:
        house.busy = "cannot listen on 127.0.0.1:1080: Address already in use"
        house.write(OTHER)
        rejected(house, house.keeper.reload_if_changed(), "already in use")
        house.busy = ""
        assert house.keeper.reload_if_changed() is None
        assert house.keeper.reload() == Outcome("applied", 2)

    def test_what_takes_effect_later_only_is_said(self, house: House) -> None:
        house.write(f"{TEXT}[control]\nlisten_addr = 127.0.0.1:9180\ntoken = open sesame\n")
        outcome = house.keeper.reload()
        assert (outcome.status, outcome.notes) == (
            "applied",
            ("control.listen_addr takes effect at the next start",),
        )
        # Once, as it is the same after the next change.
        assert house.keeper.change([("proxy.timeout", "7s")]).notes == ()

    def test_outcomes_are_counted(self, house: House) -> None:
        for text in (OTHER, OTHER, BAD):
            house.write(text)
            house.keeper.reload()
        assert house.keeper.outcomes == {"applied": 1, "unchanged": 1, "rejected": 1}

    def test_passwords_that_others_may_read_are_warned_of(self, house: House) -> None:
        """CASES J223."""
        house.write(OTHER)
        house.path.chmod(0o644)
        assert "chmod 600" in house.keeper.reload().notes[0]

    def test_a_reload_during_another_waits_for_it(self, house: House) -> None:
        def slow(config: ProxyConfig) -> tuple[str, ...]:
            gevent.sleep(0.02)
            return house.apply(config)

        house.keeper._apply = slow
        house.write(OTHER)
        both = [gevent.spawn(house.keeper.reload) for _ in range(2)]
        gevent.joinall(both, raise_error=True)
        assert [each.get().status for each in both] == ["applied", "unchanged"]


class TestLargeFiles:
    def test_nobody_else_waits_for_one_to_be_read(self, house: House) -> None:
        """
        What others wait is what a thread keeps the interpreter for: of all that reading costs, a small part.

        It is measured in processor time, so that other programs make no difference to it.
        """
        parts = []
        for attempt in range(3):
            users = "".join(f"user{number} = password-{number}-{attempt}\n" for number in range(5000))
            house.write(TEXT.replace("[listeners]", f"{users}[listeners]"))
            reload = gevent.spawn(house.keeper.reload)
            turns = list(turns_beside(reload))
            parts.append(max(turns) / sum(turns))
            assert reload.get().status == "applied"
        assert min(parts) < 0.2


def turns_beside(other: "gevent.Greenlet[..., Any]") -> Iterator[float]:
    """Take turns like a connection does, until another greenlet is done, and tell how long each took."""
    one, two = socket.socketpair()
    with one, two:
        while not other.dead:
            started = time.process_time()
            one.send(b"x")
            two.recv(1)
            gevent.sleep(0)
            yield time.process_time() - started


class TestCertificates:
    @pytest.fixture
    def pairs(self, tmp_path: Path) -> list[Certificate]:
        authority = Authority(tmp_path)
        return [authority.issue(name, "localhost") for name in ("one", "two")]

    @pytest.fixture
    def house(self, tmp_path: Path, pairs: list[Certificate]) -> House:
        files = "\n".join(f"{name} = {path}" for name, path in pairs[0].settings.items())
        door = f"[[web]]\nprotocol = websocket\nlisten_addr = 127.0.0.1:8080\n{files}\n"
        return House(tmp_path, TEXT.replace("[upstreams]", f"{door}[upstreams]"))

    def test_those_that_changed_are_read_again_and_make_no_version(
        self, house: House, pairs: list[Certificate]
    ) -> None:
        renew(*pairs)
        assert house.keeper.reload_if_changed() == RENEWED
        assert len(house.running) == 2
        assert house.keeper.reload_if_changed() is None

    def test_a_certificate_without_its_key_is_refused_until_the_key_is_there(
        self, house: House, pairs: list[Certificate]
    ) -> None:
        pairs[1].cert.replace(pairs[0].cert)
        rejected(house, house.keeper.reload_if_changed(), "[listeners.web] tls_cert", "does not belong")
        assert house.keeper.reload_if_changed() is None
        pairs[1].key.replace(pairs[0].key)
        outcome = house.keeper.reload_if_changed()
        assert outcome is not None
        assert outcome.status == "applied"

    def test_a_file_is_not_to_be_put_back_where_only_a_certificate_is_at_fault(
        self, house: House, pairs: list[Certificate]
    ) -> None:
        """It is what is in effect already: a rollback goes to the version before, or says why it cannot."""
        house.keeper.change([("proxy.idle_timeout", "1h")])
        pairs[1].cert.replace(pairs[0].cert)
        outcome = house.keeper.reload()
        rejected(house, outcome, "[listeners.web] tls_cert", "does not belong", version=2)
        assert outcome.notes == ()
        rejected(house, house.keeper.rollback(), "version 1:", "does not belong", version=2)

    def test_relative_names_start_at_the_folder_of_the_file(
        self, house: House, pairs: list[Certificate], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Case 356: however a version comes into effect, and also for what a rejected file waits for."""
        monkeypatch.chdir("/")
        name = pairs[1].cert.name
        pairs[1].cert.rename(house.path.parent / "later")
        changes = [("listeners.web.tls_cert", "one.pem"), ("listeners.web.tls_key", "./one.key")]
        assert house.keeper.change(changes).status == "applied"
        assert house.running[-1].listeners[-1].tls_cert == str(pairs[0].cert)
        house.write(house.path.read_text().replace("one.pem", name).replace("./one.key", "two.key"))
        rejected(house, house.keeper.reload_if_changed(), f"{name}: No such file", version=2)
        (house.path.parent / "later").rename(pairs[1].cert)
        assert house.keeper.reload_if_changed() == Outcome("applied", 3)
        assert house.keeper.rollback(2).status == "applied"
        house.write(BAD)
        house.keeper = house.start(last_good=True)
        assert house.running[-1].listeners[-1].tls_key == f"{house.path.parent}/./one.key"

    def test_one_that_is_renewed_beside_a_broken_file_is_read_all_the_same(
        self, house: House, pairs: list[Certificate]
    ) -> None:
        """CASES H193: the old configuration stays, and its certificates are those of today."""
        house.write(BAD)
        rejected(house, house.keeper.reload_if_changed(), "tiemout")
        renew(*pairs)
        assert house.keeper.reload_if_changed() == RENEWED
        assert house.keeper.reload_if_changed() is None

    def test_one_that_is_renewed_while_the_file_breaks_is_not_forgotten(
        self, house: House, pairs: list[Certificate]
    ) -> None:
        """CASES H193."""
        text = house.path.read_text()
        house.write(BAD)
        renew(*pairs)
        rejected(house, house.keeper.reload(), "tiemout")
        house.write(text)
        assert house.keeper.reload() == RENEWED
        assert house.keeper.reload() == Outcome("unchanged", 1)

    def test_a_new_one_does_not_bring_back_a_text_that_was_rolled_back_from(
        self, house: House, pairs: list[Certificate], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """CASES H202: what the file says counts again when it changes, and not before."""
        text = house.path.read_text()
        house.write(text.replace("30s", "20s"))
        house.keeper.reload()
        deny_writing(monkeypatch)
        assert house.keeper.rollback().version == 3
        renew(*pairs)
        assert house.keeper.reload_if_changed() == replace(RENEWED, version=3)
        assert (house.timeout, house.keeper.reload_if_changed()) == (30, None)
        house.write(text.replace("30s", "10s"))
        assert house.keeper.reload_if_changed() == Outcome("applied", 4)
        assert house.timeout == 10

    @pytest.mark.parametrize("wish", ["reload_if_changed", "reload"])
    def test_one_that_was_missing_is_looked_for_until_it_is_there(
        self, house: House, pairs: list[Certificate], wish: str
    ) -> None:
        """CASES H193: a file is refused for a certificate that is not there yet."""
        away = pairs[1].cert.rename(pairs[1].cert.with_suffix(".away"))
        house.write(with_certificate(house, pairs[1]).replace("30s", "20s"))
        rejected(house, getattr(house.keeper, wish)(), "tls_cert", "No such file")
        assert {str(pairs[1].cert), str(pairs[1].key)} < set(house.keeper.fingerprint())
        assert house.keeper.reload_if_changed() is None
        away.rename(pairs[1].cert)
        assert house.keeper.reload_if_changed() == Outcome("applied", 2)
        assert (house.timeout, house.keeper.reload_if_changed()) == (20, None)
        assert str(pairs[0].cert) not in house.keeper.fingerprint()

    def test_one_that_was_missing_at_the_start_is_looked_for_too(
        self, house: House, pairs: list[Certificate]
    ) -> None:
        """CASES H193."""
        away = pairs[1].cert.rename(pairs[1].cert.with_suffix(".away"))
        house.write(with_certificate(house, pairs[1]))
        house.keeper = house.start(last_good=True)
        assert house.keeper.reload_if_changed() is None
        away.rename(pairs[1].cert)
        assert house.keeper.reload_if_changed() == Outcome("applied", 2)

    def test_one_that_appears_does_not_bring_back_a_text_that_was_rolled_back_from(
        self, house: House, pairs: list[Certificate], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """CASES H202."""
        away = pairs[1].cert.rename(pairs[1].cert.with_suffix(".away"))
        house.write(with_certificate(house, pairs[1]).replace("30s", "20s"))
        house.keeper.reload()
        deny_writing(monkeypatch)
        assert house.keeper.rollback(1).version == 2
        away.rename(pairs[1].cert)
        assert house.keeper.reload_if_changed() is None

    def test_those_that_a_file_names_are_known_however_broken_it_is(self, house: House) -> None:
        """CASES H208."""
        house.path.write_bytes(b'[[\xff\ntls_cert = "/etc/a b.pem"  # ours\n= \ntls_key = /etc/\0\n[')
        assert house.keeper.reload().status == "rejected"
        assert {"/etc/a b.pem", "/etc/\0"} < set(house.keeper.fingerprint())
        assert house.keeper.reload_if_changed() is None


def with_certificate(house: House, pair: Certificate) -> str:
    """Write the text of the file with another certificate."""
    names = {"tls_cert": pair.cert, "tls_key": pair.key}
    lines = house.path.read_text().splitlines()
    keys = [line.partition(" = ")[0] for line in lines]
    return "\n".join(
        f"{key} = {names[key]}" if key in names else line for key, line in zip(keys, lines, strict=True)
    )


class TestWarnings:
    """What can be, and is hardly meant, is told with each change that brings it about."""

    STRANGER = "rules.r.user: not in [auth_users]: bbo"

    def test_a_change_tells_what_it_brings_about_and_that_once(self, house: House) -> None:
        outcome = house.keeper.change([("rules.r.user", "bbo"), ("auth_users.bob", "x")])
        assert (outcome.status, outcome.notes) == ("applied", (self.STRANGER,))
        assert house.keeper.change([("proxy.timeout", "9s")]).notes == ()
        assert house.keeper.change([("rules.r.user", "bob")]).notes == ()
        volatile = house.keeper.change([("rules.r.user", "bbo")], volatile=True)
        assert self.STRANGER in volatile.notes

    def test_so_does_a_rollback(self, house: House) -> None:
        house.keeper.change([("rules.r.user", "bbo"), ("auth_users.bob", "x")])
        house.keeper.change([("rules.r.user", "bob")])
        assert house.keeper.rollback(2).notes == (self.STRANGER,)

    def test_what_the_start_has_told_is_not_told_again(self, tmp_path: Path) -> None:
        house = House(tmp_path, f"{TEXT}[rules]\n[[r]]\nuser = bbo\n")
        assert len(house.warnings) == 1
        assert house.keeper.change([("proxy.timeout", "9s")]).notes == ()

    def test_a_certificate_that_is_renewed_with_one_that_has_expired_is_told(
        self, tmp_path: Path, authority: Authority
    ) -> None:
        now, over = authority.issue("now", "localhost"), authority.issue("over", "localhost", expired=True)
        house = House(tmp_path)
        keys = [("listeners.socks.protocol", "mixed"), ("listeners.socks.tls_cert", str(now.cert))]
        assert house.keeper.change([*keys, ("listeners.socks.tls_key", str(now.key))]).notes == ()
        renew(now, over)
        outcome = house.keeper.reload_if_changed()
        assert outcome
        assert outcome.notes[0].startswith(f"listeners.socks.tls_cert: {now.cert} has expired, at ")


RENEWED = Outcome("applied", 1, notes=("the files that it names were read again",))


def renew(old: Certificate, new: Certificate) -> None:
    new.cert.replace(old.cert)
    new.key.replace(old.key)


class TestTrouble:
    """Case 353: a file that is not in effect is seen."""

    def test_its_first_problem_and_since_when_are_known_until_it_is_mended(self, house: House) -> None:
        assert house.keeper.trouble is None
        house.write(BAD)
        before = time.time()
        house.keeper.reload_if_changed()
        assert house.keeper.trouble is not None
        first = house.keeper.trouble
        assert "tiemout" in first.problem
        assert before <= first.since <= time.time()
        house.write("")
        house.keeper.reload_if_changed()
        assert house.keeper.trouble == replace(first, problem=f"{house.path}: is empty")
        house.write(TEXT)
        house.keeper.reload_if_changed()
        assert house.keeper.trouble is None

    def test_a_change_that_is_refused_is_no_trouble_of_the_file(self, house: House) -> None:
        rejected(house, house.keeper.change([("proxy.timeout", "x")]), "duration")
        assert house.keeper.trouble is None

    def test_a_bug_that_keeps_the_file_out_of_effect_is_one(self, house: House) -> None:
        house.write(OTHER)
        house.keeper._apply = lambda config: (str(1 // 0),)
        with pytest.raises(ZeroDivisionError):
            house.keeper.reload()
        assert house.keeper.trouble is not None
        assert house.keeper.trouble.problem == "internal error: ZeroDivisionError"
        house.keeper._apply = house.apply
        assert house.keeper.reload().status == "applied"
        assert house.keeper.trouble is None

    def test_a_version_that_the_file_does_not_have_is_one(self, house: House) -> None:
        house.write(OTHER)
        house.keeper.reload()
        house.path.unlink()
        house.path.mkdir()
        house.keeper.rollback(1)
        assert house.keeper.trouble is not None
        assert "could not be written" in house.keeper.trouble.problem

    def test_so_is_a_mounted_file_in_whose_place_there_is_another_one(
        self, house: House, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An editor replaced it outside; inside, the name leads to one that has no other name left."""
        left = os.open(house.path, os.O_RDONLY)
        house.path.unlink()
        house.keeper._file.path = f"/proc/self/fd/{left}"
        house.keeper.reload_if_changed()
        house.keeper.reload_if_changed()
        os.close(left)
        assert house.keeper.trouble is not None
        assert "mount its folder" in house.keeper.trouble.problem
        assert caplog.messages == [house.keeper.trouble.problem]

    def test_so_is_a_start_with_the_last_good_version(self, house: House) -> None:
        house.write(BAD)
        house.keeper = house.start(last_good=True)
        assert house.keeper.trouble is not None
        assert "tiemout" in house.keeper.trouble.problem
        house.keeper.rollback()
        assert house.keeper.trouble is None
        assert house.path.read_text() == TEXT


class TestRollingBack:
    """CASES H202."""

    def test_the_version_before_comes_back_as_a_new_one_and_into_the_file(self, house: House) -> None:
        first = house.running[-1]
        house.write(OTHER.replace("alice", "bob").replace("10.0.0.1", "10.0.0.2"))
        house.keeper.reload()
        assert house.keeper.rollback() == Outcome("applied", 3)
        assert house.running[-1] == first
        assert house.path.read_text() == house.keeper.current.text == TEXT
        assert house.keeper.current.source == "rollback"
        assert house.keeper.current.summary.startswith("back to version 1: users +alice -bob")
        assert house.keeper.reload_if_changed() is None

    def test_the_bad_file_is_replaced_by_the_version_in_effect(self, house: House) -> None:
        house.write(BAD)
        house.keeper.reload_if_changed()
        assert house.keeper.rollback(1) == Outcome("applied", 2)
        assert house.path.read_text() == TEXT
        assert house.keeper.reload_if_changed() is None

    @pytest.mark.parametrize("when", ["running", "starting"])
    def test_a_file_that_is_no_text_is_replaced_by_the_version_in_effect(
        self, house: House, when: str
    ) -> None:
        """CASES H208: also one with which the program was started (-last-good)."""
        house.path.write_bytes(LATIN_1)
        if when == "starting":
            house.keeper = house.start(last_good=True)
        assert house.keeper.rollback(1) == Outcome("applied", 2)
        assert house.path.read_text() == TEXT
        assert house.keeper.reload_if_changed() is None

    def test_each_goes_one_further_back_and_not_forth_again(self, house: House) -> None:
        """Case 351."""
        for seconds in (20, 15, 10):
            house.write(TEXT.replace("30s", f"{seconds}s"))
            house.keeper.reload()
        went = [(house.keeper.rollback(), house.timeout) for _ in range(3)]
        assert went == [(Outcome("applied", 5), 15), (Outcome("applied", 6), 20), (Outcome("applied", 7), 30)]
        rejected(house, house.keeper.rollback(), "no version before", version=7)

    def test_so_it_does_after_a_restart_and_after_another_change(self, house: House) -> None:
        """Case 351."""
        for seconds in (20, 15):
            house.write(TEXT.replace("30s", f"{seconds}s"))
            house.keeper.reload()
        house.keeper.rollback()
        house.keeper = house.start()
        house.keeper.change([("proxy.timeout", "9s")])
        went = [(house.keeper.rollback().status, house.timeout) for _ in range(2)]
        assert went == [("applied", 20), ("applied", 30)]

    def test_where_one_was_named_the_next_goes_on_from_that(self, house: House) -> None:
        """Case 351."""
        for seconds in (20, 15, 10):
            house.write(TEXT.replace("30s", f"{seconds}s"))
            house.keeper.reload()
        house.keeper.rollback(2)
        assert (house.keeper.rollback(), house.timeout) == (Outcome("applied", 6), 30)

    def test_what_it_went_back_to_may_be_forgotten_meanwhile(self, house: House) -> None:
        """Case 351: then nothing older is left, and what is newer is not older."""
        house.write(TEXT.replace("[proxy]", "[proxy]\nhistory_size = 2"))
        house.keeper.reload()
        house.write(house.path.read_text().replace("30s", "20s"))
        house.keeper.reload()
        assert house.keeper.rollback() == Outcome("applied", 4)
        rejected(house, house.keeper.rollback(), "no version before", version=4)

    @pytest.mark.parametrize("text", [BAD, "", None], ids=["bad", "empty", "missing"])
    @pytest.mark.parametrize("is_judged", [True, False])
    def test_a_file_that_is_rejected_gets_back_what_is_in_effect(
        self, house: House, text: str | None, is_judged: bool
    ) -> None:
        """Case 351: and not the version before that."""
        house.write(OTHER)
        house.keeper.reload()
        if text is None:
            house.path.unlink()
        else:
            house.write(text)
        if is_judged:
            outcome = house.keeper.reload()
            assert outcome.notes == ("proxy-server ctl rollback puts version 2 back into the file",)
        note = f"{house.path} is as version 2 again"
        assert house.keeper.rollback() == Outcome("unchanged", 2, notes=(note,))
        assert house.path.read_text() == OTHER
        assert (house.keeper.reload_if_changed(), house.timeout, house.numbers) == (None, 20, [1, 2])
        assert house.keeper.rollback() == Outcome("applied", 3)

    def test_a_shortage_of_our_own_is_told_as_such(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Case 340: whether the file is rejected is not to be told then."""

        def refuse(path: str) -> None:
            raise LimitError("proxy.ini cannot be read now: too many open files")

        house.write(OTHER)
        house.keeper.reload()
        monkeypatch.setattr("proxy.configfile.load.load", refuse)
        monkeypatch.setattr(house.keeper._file, "is_new", lambda: True)
        outcome = house.keeper.rollback()
        assert (outcome.status, outcome.problems) == (
            "rejected",
            ("proxy.ini cannot be read now: too many open files",),
        )

    def test_so_does_one_that_could_not_be_applied(self, house: House) -> None:
        """Case 351."""
        house.busy = "Address already in use"
        house.write(OTHER)
        house.keeper.reload()
        house.keeper.rollback()
        assert house.path.read_text() == TEXT

    def test_what_is_volatile_stays_so(self, house: House) -> None:
        """Case 351: the file gets back what it held, and not what lay over it."""
        house.keeper.change([("proxy.timeout", "9s")], volatile=True)
        house.write(BAD)
        house.keeper.reload_if_changed()
        house.keeper.rollback()
        assert (house.path.read_text(), house.timeout) == (TEXT, 9)

    def test_a_file_that_was_mended_meanwhile_is_not_taken_for_rejected(self, house: House) -> None:
        """Case 351: nobody has looked at it yet."""
        house.write(OTHER)
        house.keeper.reload()
        house.write(BAD)
        house.keeper.reload()
        house.write(OTHER)
        assert (house.keeper.rollback(), house.timeout) == (Outcome("applied", 3), 30)

    def test_an_earlier_run_s_version_can_be_gone_back_to(self, house: House) -> None:
        house.write(OTHER)
        house.keeper = house.start()
        assert house.keeper.rollback() == Outcome("applied", 3)
        assert house.timeout == 30

    def test_the_first_version_has_none_before(self, house: House) -> None:
        rejected(house, house.keeper.rollback(), "no version before")

    def test_an_unknown_version_is_an_error(self, house: House) -> None:
        with pytest.raises(KeyError):
            house.keeper.rollback(7)

    def test_what_cannot_be_applied_leaves_the_file_as_it_was(self, house: House) -> None:
        house.write(OTHER)
        house.keeper.reload()
        house.write(TEXT)
        house.keeper.reload()
        house.busy = "Address already in use"
        rejected(house, house.keeper.rollback(2), "in use", version=3)
        assert house.path.read_text() == TEXT
        assert house.keeper.reload_if_changed() is None

    def test_a_missing_file_stays_missing_if_what_it_would_get_cannot_be_applied(self, house: House) -> None:
        house.path.unlink()
        house.busy = "Address already in use"
        rejected(house, house.keeper.rollback(1), "in use")
        assert not house.path.exists()

    def test_a_link_that_leads_to_nothing_stays_one(self, house: House, tmp_path: Path) -> None:
        house.path.unlink()
        house.path.symlink_to("real.ini")
        house.busy = "Address already in use"
        rejected(house, house.keeper.rollback(1), "in use")
        assert (house.path.is_symlink(), house.path.exists()) == (True, False)
        assert sorted(os.listdir(tmp_path)) == ["proxy.ini", "state"]

    def test_what_cannot_be_read_is_not_replaced_because_it_could_not_be_put_back(self, house: House) -> None:
        house.path.unlink()
        house.path.symlink_to(house.path)
        outcome = house.keeper.rollback(1)
        assert (outcome.status, outcome.version) == ("applied", 2)
        assert "could not be written: Too many levels of symbolic links" in outcome.notes[0]
        assert house.path.is_symlink()

    def test_a_file_that_is_too_large_is_put_back_whole(self, house: House) -> None:
        size = MAX_BYTES + 1000
        house.path.write_bytes(b"#" * size)
        house.busy = "Address already in use"
        rejected(house, house.keeper.rollback(1), "in use")
        assert house.path.stat().st_size == size

    def test_a_file_that_cannot_be_put_back_is_named(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As on a disk that is full by then."""
        house.write(BAD)

        def busy(config: ProxyConfig) -> tuple[str, ...]:
            monkeypatch.setattr(files, "replace", full)
            raise ProxyError("Address already in use")

        def full(path: str, data: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        house.keeper._apply = busy
        outcome = house.keeper.rollback(1)
        told = f"{house.path} could not be put back, and holds what was refused: No space left on device"
        assert outcome.problems == ("Address already in use", told)
        assert (outcome.status, house.path.read_text()) == ("rejected", TEXT)

    def test_a_missing_file_is_written(self, house: House) -> None:
        house.path.unlink()
        assert house.keeper.rollback(1) == Outcome("applied", 2)
        assert house.path.read_text() == TEXT
        assert stat.S_IMODE(house.path.stat().st_mode) == 0o600

    def test_a_version_that_is_valid_no_more_is_refused(self, house: House, tmp_path: Path) -> None:
        authorities = Authority(tmp_path).root.cert
        house.write(
            TEXT.replace("10.0.0.1:1080", f"wss://a.example/\ntls_ca = {authorities}").replace(
                "type = socks5", "type = websocket"
            )
        )
        assert house.keeper.reload().status == "applied"
        house.write(TEXT)
        house.keeper.reload()
        authorities.unlink()
        rejected(house, house.keeper.rollback(2), "version 2:", "tls_ca", version=3)

    def test_a_file_that_cannot_be_written_does_not_keep_anybody_from_going_back(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        house.write(OTHER)
        house.keeper.reload()
        deny_writing(monkeypatch)
        outcome = house.keeper.rollback()
        assert (outcome.status, house.timeout) == ("applied", 30)
        assert "could not be written" in outcome.notes[0]
        assert house.path.read_text() == OTHER
        assert house.keeper.reload_if_changed() is None


def deny_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the folder of the file one that cannot be written to, for root too."""

    def refuse(path: str, data: bytes) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("proxy.keeping.files.replace", refuse)


class TestChanging:
    """CASES H211."""

    def test_a_change_is_applied_and_written_with_the_comments(self, house: House) -> None:
        assert house.keeper.change([("proxy.timeout", "20s")]) == Outcome("applied", 2)
        assert house.path.read_text() == OTHER
        assert (house.timeout, house.keeper.current.source) == (20, "ctl")
        assert house.keeper.current.summary == "proxy.timeout 30s -> 20s"
        assert house.keeper.reload_if_changed() is None

    def test_several_are_one_or_none(self, house: House) -> None:
        edits = [("listeners.web.protocol", "websocket"), ("listeners.web.listen_addr", "127.0.0.1:8080")]
        rejected(
            house, house.keeper.change([("proxy.timeout", "20s"), *edits[:1]]), "listeners.web.listen_addr"
        )
        assert house.path.read_text() == TEXT
        assert house.keeper.change(edits).status == "applied"
        assert [each.name for each in house.keeper.config.listeners] == ["socks", "web"]

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("proxy.timeout", "soon", ("proxy.timeout: not a duration",)),
            ("proxy.tiemout", "1s", ("proxy.tiemout: unknown key; did you mean timeout?",)),
            ("listeners.socks.upstream", "hoem", ("listeners.socks.upstream", "did you mean home?")),
            ("auth_users.carol", "", ("auth_users.carol",)),
            ("auth_users.carol", "a\nroot = b", ("auth_users.carol", "control character")),
            ("proxy.timeout\nfoo", "1s", ("not the name of a setting",)),
            ("auth_users.bob", None, ("auth_users.bob: is not set",)),
            ("listeners.socks.listen_addr", None, ("listeners.socks.listen_addr", "missing")),
            ("listeners.socks", None, ("listeners", "no listener")),
        ],
    )
    def test_what_cannot_be_is_refused_by_its_name(
        self, house: House, name: str, value: str | None, words: tuple[str, ...]
    ) -> None:
        rejected(house, house.keeper.change([(name, value)]), *words)
        assert house.path.read_text() == TEXT

    def test_no_problem_repeats_a_password(self, house: House) -> None:
        outcome = house.keeper.change([("auth_users.carol", "scrypt$looking-glass")])
        rejected(house, outcome, "auth_users.carol")
        assert "looking-glass" not in str(outcome)

    def test_mode_and_link_stay(self, house: House, tmp_path: Path) -> None:
        real = tmp_path / "real.ini"
        house.path.rename(real)
        real.chmod(0o640)
        house.path.symlink_to(real)
        assert house.keeper.change([("proxy.timeout", "20s")]).status == "applied"
        assert (house.path.is_symlink(), real.read_text()) == (True, OTHER)
        assert stat.S_IMODE(real.stat().st_mode) == 0o640
        assert sorted(os.listdir(tmp_path)) == ["proxy.ini", "real.ini", "state"]

    @pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
    def test_the_owner_stays(self, house: House) -> None:
        os.chown(house.path, 1234, 4321)
        house.keeper.change([("proxy.timeout", "20s")])
        assert (house.path.stat().st_uid, house.path.stat().st_gid) == (1234, 4321)

    def test_a_file_that_cannot_be_written_refuses_it(
        self, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deny_writing(monkeypatch)
        rejected(house, house.keeper.change([("proxy.timeout", "20s")]), "Permission denied", "volatile")

    def test_what_cannot_be_applied_leaves_the_file_as_it_was(self, house: House) -> None:
        house.busy = "Address already in use"
        rejected(house, house.keeper.change([("proxy.timeout", "20s")]), "in use")
        assert house.path.read_text() == TEXT
        assert house.keeper.reload_if_changed() is None

    def test_who_does_not_wait_for_the_end_leaves_it_to_the_next_look(self, house: House) -> None:
        def slow(config: ProxyConfig) -> tuple[str, ...]:
            with gevent.Timeout(0):
                gevent.sleep(60)
            return ()

        house.keeper._apply = slow
        with pytest.raises(gevent.Timeout):
            house.keeper.change([("proxy.timeout", "20s")])
        assert house.path.read_text() == OTHER
        house.keeper._apply = house.apply
        assert house.keeper.reload_if_changed() == Outcome("applied", 2)

    def test_somebody_s_edit_that_is_not_in_effect_is_not_overwritten(self, house: House) -> None:
        house.write(BAD)
        rejected(house, house.keeper.change([("proxy.timeout", "20s")]), "not in effect")
        assert house.path.read_text() == BAD

    @pytest.mark.parametrize(
        ("damage", "why"),
        [
            (lambda path: path.write_bytes(LATIN_1), ":1: byte 0xe9 at offset 4 is not UTF-8"),
            (lambda path: path.write_text(BAD), ":3: [proxy] tiemout: unknown key"),
            (lambda path: path.unlink(), "No such file"),
            (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
        ],
        ids=["latin-1", "invalid", "missing", "folder"],
    )
    @pytest.mark.parametrize("when", ["running", "starting"])
    def test_a_file_that_cannot_be_used_refuses_it_and_is_told_of(
        self, house: House, damage: Callable[[Path], object], why: str, when: str
    ) -> None:
        """CASES H208."""
        damage(house.path)
        if when == "starting":
            house.keeper = house.start(last_good=True)
        rejected(house, house.keeper.change([("proxy.timeout", "20s")]), f"{house.path} has", why)

    def test_the_second_of_two_is_told_of_the_first(self, house: House) -> None:
        first = gevent.spawn(house.keeper.change, [("proxy.timeout", "20s")], if_match=1)
        second = gevent.spawn(house.keeper.change, [("auth_users.bob", "x")], if_match=1)
        gevent.joinall([first, second])
        assert first.value == Outcome("applied", 2)
        assert isinstance(second.exception, Conflict)
        assert second.exception.current.number == 2
        assert house.path.read_text() == OTHER

    def test_two_at_once_that_match_nothing_are_both_made(self, house: House) -> None:
        edits = [("proxy.timeout", "20s"), ("auth_users.bob", "x")]
        gevent.joinall([gevent.spawn(house.keeper.change, [each]) for each in edits], raise_error=True)
        assert house.path.read_text() == OTHER.replace("wonderland\n", "wonderland\nbob = x\n")

    def test_what_is_set_already_is_no_change(self, house: House) -> None:
        assert house.keeper.change([("proxy.timeout", "30s")]) == Outcome("unchanged", 1)


class TestVolatileChanges:
    @pytest.fixture(autouse=True)
    def changed(self, house: House) -> None:
        outcome = house.keeper.change([("proxy.timeout", "9s")], volatile=True)
        assert (outcome.status, outcome.version) == ("applied", 2)
        assert "not written" in outcome.notes[0]

    def test_it_is_in_effect_and_not_in_the_file(self, house: House) -> None:
        assert (house.timeout, house.path.read_text()) == (9, TEXT)
        assert house.keeper.current.volatile
        assert house.keeper.reload_if_changed() is None

    def test_the_next_text_of_the_file_replaces_it(self, house: House) -> None:
        house.write(TEXT.replace("alice", "bob"))
        outcome = house.keeper.reload_if_changed()
        assert outcome is not None
        assert outcome.notes == ("volatile changes are gone: proxy.timeout",)
        assert house.timeout == 30

    def test_a_reload_that_was_asked_for_replaces_it_too(self, house: House) -> None:
        assert house.keeper.reload().status == "applied"
        assert (house.timeout, house.keeper.current.volatile) == (30, False)

    def test_a_change_that_is_written_leaves_it_in_effect_and_out_of_the_file(self, house: House) -> None:
        house.keeper.change([("auth_users.bob", "x")])
        assert house.timeout == 9
        assert "bob = x" in house.path.read_text()
        assert "timeout = 30s" in house.path.read_text()

    def test_a_change_of_the_same_setting_that_is_written_ends_it(self, house: House) -> None:
        house.keeper.change([("proxy.timeout", "20s")])
        assert (house.timeout, house.path.read_text()) == (20, OTHER)
        assert not house.keeper.current.volatile

    def test_going_back_makes_it_no_part_of_anything(self, house: House) -> None:
        house.keeper.rollback()
        assert (house.timeout, house.path.read_text()) == (30, TEXT)


class TestLookingBack:
    def test_no_secret_is_shown(self, house: House) -> None:
        """CASES H210."""
        house.keeper.change([("auth_users.alice", "looking glass"), ("auth_users.bob", "cheshire")])
        old, new = house.keeper.versions()
        said = house.keeper.redacted(new) + house.keeper.diff(old, new) + repr([old, new])
        for secret in ("wonderland", "looking glass", "cheshire"):
            assert secret not in said
        assert "+bob = ********" in house.keeper.diff(old, new)

    def test_an_unknown_version_is_an_error(self, house: House) -> None:
        with pytest.raises(KeyError):
            house.keeper.get(7)

    def test_the_current_version_is_listed_though_it_was_not_recorded(self, tmp_path: Path) -> None:
        path = tmp_path / "proxy.ini"
        path.write_text(TEXT)
        keeper = Keeper(str(path), tmp_path / "state", 20, lambda config: ())
        keeper.start()
        assert keeper.versions() == [keeper.current]

    def test_damaged_files_of_the_history_stop_nothing(self, house: House) -> None:
        """CASES H202: a file with an odd text is compared, and one that is no version passed over."""
        history = house.folder / "history"
        about = (history / "000001.ini").read_text().partition("\n")[0].replace('"number": 1', '"number": 5')
        (history / "000005.ini").write_text(f"{about}\ntimeout = 1s\n{TEXT}")
        (history / "000006.ini").write_text(about.replace('"number": 5', '"number": "6"') + f"\n{TEXT}")
        house.keeper = house.start()
        assert house.numbers == [1, 5, 7]
        # What stands above all sections can be anything.
        assert "-********" in house.keeper.diff(house.keeper.get(5), house.keeper.get(7))
        rejected(house, house.keeper.rollback(5), "version 5:", version=7)


class TestShortage:
    """Case 340: what we have no descriptor for now says nothing of the file."""

    @pytest.fixture
    def full(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
        """Let no file be opened while that is wanted."""
        is_full = False

        def act(what: Callable[[], object]) -> object:
            if is_full:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return what()

        def be(state: bool) -> None:
            nonlocal is_full
            is_full = state

        monkeypatch.setattr(content, "from_reserve", act)
        return be

    def test_a_look_that_is_not_possible_now_rejects_nothing(
        self, house: House, full: Callable[[bool], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        house.write(OTHER)
        full(True)
        with pytest.raises(LimitError, match=r"cannot be read now: Too many open files: raise the limit"):
            house.keeper.reload_if_changed()
        assert not house.keeper.outcomes
        assert not [each for each in caplog.records if each.levelname == "ERROR"]
        full(False)
        outcome = house.keeper.reload_if_changed()
        assert outcome is not None
        assert (outcome.status, house.timeout) == ("applied", 20)

    def test_a_change_that_cannot_be_applied_now_is_applied_at_a_later_look(self, house: House) -> None:
        """Such as a new listener's socket, when there is no descriptor left."""
        house.write(OTHER)
        house.short = LimitError("cannot listen on :1080: Too many open files")
        with pytest.raises(LimitError):
            house.keeper.reload_if_changed()
        assert not house.keeper.outcomes
        house.short = None
        outcome = house.keeper.reload_if_changed()
        assert outcome is not None
        assert (outcome.status, house.timeout) == ("applied", 20)

    def test_who_asks_is_told(self, house: House, full: Callable[[bool], None]) -> None:
        full(True)
        rejected(house, house.keeper.reload(), "cannot be read now: Too many open files")


class TestUsersInAFile:
    TEXT = TEXT.replace("[proxy]", "[proxy]\nusers_file = users")
    OTHER = OTHER.replace("[proxy]", "[proxy]\nusers_file = users")

    @pytest.fixture
    def house(self, tmp_path: Path) -> House:
        replaced(tmp_path, "bob:builder\n")
        return House(tmp_path, self.TEXT)

    @pytest.mark.parametrize("wish", ["start", "reload", "look", "change", "volatile", "rollback"])
    def test_one_that_is_replaced_while_it_is_read_is_seen_at_the_next_look(
        self, house: House, monkeypatch: pytest.MonkeyPatch, wish: str
    ) -> None:
        """Else a user who was taken out could log in until something else changes."""
        if wish == "rollback":
            house.keeper.change([("proxy.timeout", "20s")])
        if wish == "look":
            house.write(self.OTHER)
        if wish == "reload":
            replaced(house.path.parent, "bob:sesame\n")

        def read_and_be_late(path: str, others: Collection[str] = ()) -> UsersFile:
            monkeypatch.undo()
            read = read_users(path, others)
            replaced(house.path.parent, "carol:sesame\n")
            return read

        monkeypatch.setattr(build, "read_users", read_and_be_late)
        if wish == "start":
            house.keeper = house.start()
        elif wish == "reload":
            house.keeper.reload()
        elif wish == "look":
            house.keeper.reload_if_changed()
        elif wish == "rollback":
            house.keeper.rollback()
        else:
            house.keeper.change([("proxy.timeout", "20s")], volatile=wish == "volatile")
        house.keeper.reload_if_changed()
        assert house.keeper.config.auth_users.keys() == {"alice", "carol"}
        assert house.keeper.reload_if_changed() is None

    def test_a_bad_one_is_no_reason_to_go_back_to_before_there_was_one(self, house: House) -> None:
        """By then nobody may have had to log in."""
        house.write(TEXT.replace("alice = wonderland", ""))
        house.keeper.reload()
        house.write(self.TEXT.replace("alice = wonderland", ""))
        house.keeper.reload()
        replaced(house.path.parent, "bob\n")
        with pytest.raises(InvalidConfigError, match="users:1: has no colon"):
            house.start(last_good=True)
        house.write(BAD)
        with pytest.raises(InvalidConfigError, match="tiemout"):
            house.start(last_good=True)

    def test_a_bad_one_is_trouble_until_it_is_mended(self, house: House) -> None:
        """A start with it would fail, so nobody should be told that one is safe."""
        replaced(house.path.parent, "bob\n")
        house.keeper.reload_if_changed()
        assert house.keeper.trouble
        first = house.keeper.trouble
        assert first.problem == f"{house.path.parent / 'users'}:1: has no colon: write name:password"
        replaced(house.path.parent, "bob\ncarol\n")
        house.keeper.reload_if_changed()
        assert house.keeper.trouble == first
        replaced(house.path.parent, "bob:builder\n")
        house.keeper.reload_if_changed()
        assert house.keeper.trouble is None

    def test_a_bad_one_is_trouble_until_another_file_needs_none(self, house: House) -> None:
        replaced(house.path.parent, "bob\n")
        house.keeper.reload_if_changed()
        house.write(TEXT)
        house.keeper.reload_if_changed()
        assert house.keeper.trouble is None

    def test_a_rollback_is_no_cure_for_a_bad_one(self, house: House) -> None:
        """Each version takes the users as they are now."""
        replaced(house.path.parent, "bob\n")
        outcome = house.keeper.reload()
        rejected(house, outcome)
        assert outcome.notes == ()
        house.keeper.rollback()
        assert house.keeper.trouble
        replaced(house.path.parent, "bob:builder\n")
        house.keeper.reload()
        assert house.keeper.trouble is None

    def test_a_rollback_is_the_cure_for_a_file_that_names_a_bad_one(self, house: House) -> None:
        (house.path.parent / "others").write_text("bob\n")
        house.write(self.TEXT.replace("users_file = users", "users_file = others"))
        outcome = house.keeper.reload()
        rejected(house, outcome)
        assert outcome.notes == ("proxy-server ctl rollback puts version 1 back into the file",)
        house.keeper.rollback()
        assert house.keeper.trouble is None

    def test_with_a_good_one_the_last_good_version_is_taken_with_the_users_of_now(self, house: House) -> None:
        house.write(BAD)
        replaced(house.path.parent, "carol:sesame\n")
        assert house.start(last_good=True).config.auth_users.keys() == {"alice", "carol"}

    def test_what_is_wrong_in_it_is_said_by_file_and_line_also_by_ctl(self, house: House) -> None:
        path = house.path.parent / "users"
        outcome = house.keeper.change([("auth_users.bob", "x")])
        rejected(house, outcome)
        assert outcome.problems == (f"{path}:1: this user is in [auth_users] too",)
        replaced(house.path.parent, "bob:builder\nsesame\n")
        outcome = house.keeper.change([("proxy.timeout", "20s")])
        rejected(house, outcome)
        assert outcome.problems == (f"{path}:2: has no colon: write name:password",)


def replaced(folder: Path, users: str) -> None:
    """Put another file of users in the place of the one that is there."""
    new = folder / "new"
    new.write_text(users)
    new.chmod(0o600)
    os.replace(new, folder / "users")
