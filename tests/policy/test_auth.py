"""
Users and passwords: who is let in, at what cost, and what is remembered of it.

Hashes are those of RFC 7914 and of Python's own scrypt.
"""

import hashlib
import hmac
import subprocess
import sys
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.configfile import load as configfile
from proxy.errors import AuthError, ConfigError
from proxy.policy import auth
from proxy.policy.auth import Authenticator, Logins, hash_password, verify
from proxy.users import check_user, is_hash
from tests.integration.programs import REPOSITORY, run_proxy

SALT = bytes(range(16))
PASSWORD = "correct horse"


def base64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode()


def scrypt_text(password: bytes, cost: int = 10, block: int = 8, lanes: int = 1, salt: bytes = SALT) -> str:
    """Write the hash of a password as a configuration file has it, by Python's own scrypt."""
    key = hashlib.scrypt(password, salt=salt, n=1 << cost, r=block, p=lanes, maxmem=1 << 28, dklen=32)
    return f"scrypt${cost}${block}${lanes}${base64(salt)}${base64(key)}"


HASH = scrypt_text(PASSWORD.encode())


class Counter:
    """Runs a check where a native thread would, and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, check: auth.Check) -> bool:
        self.calls += 1
        return check()


# Plain passwords


@pytest.mark.parametrize("stored", [PASSWORD, HASH], ids=["plain", "hash"])
def test_only_the_right_pair_is_let_in(stored: str) -> None:
    """CASES B41, B42."""
    users = Authenticator({"alice": stored, "bob": "b" * 255})
    assert users.authenticate("alice", PASSWORD)
    assert users.authenticate("bob", "b" * 255)
    for user, password in [
        ("alice", "b" * 255),
        ("alice", ""),
        ("alice", PASSWORD + " "),
        ("alice", PASSWORD.upper()),
        ("Alice", PASSWORD),
        ("", ""),
        ("", PASSWORD),
        ("eve", PASSWORD),
        ("eve", "\0" * 16),
        ("bob", PASSWORD),
    ]:
        assert not users.authenticate(user, password)


def test_nobody_is_let_in_where_there_are_no_users() -> None:
    users = Authenticator({})
    assert not users.authenticate("", "")
    assert not users.authenticate("alice", "\0" * 16)


def test_the_hash_itself_is_no_password() -> None:
    assert not Authenticator({"alice": HASH}).authenticate("alice", HASH)


texts = st.binary(min_size=1, max_size=255).filter(lambda text: not text.startswith(b"scrypt$"))


@given(texts, texts, st.binary(max_size=255))
def test_users_and_passwords_may_be_any_bytes(user: bytes, password: bytes, other: bytes) -> None:
    """CASES B44: as they come from a wire, and as a command line holds them."""
    users = Authenticator(
        {user.decode("utf-8", "surrogateescape"): password.decode("utf-8", "surrogateescape")}
    )
    assert users.check(user, password)
    assert users.check(user, other) == (other == password)
    assert users.check(other, password) == (other == user)


def test_credentials_that_are_missing_or_wrong_are_an_error() -> None:
    users = Authenticator({"alice": PASSWORD})
    users.validate_credentials({"username": "alice", "password": PASSWORD})
    for credentials in (
        {},
        {"username": "alice"},
        {"password": PASSWORD},
        {"username": "alice", "password": "x"},
    ):
        with pytest.raises(AuthError) as refused:
            users.validate_credentials(credentials)
        assert PASSWORD not in str(refused.value)


def test_no_secret_is_in_what_it_says_of_itself() -> None:
    assert PASSWORD not in repr(Authenticator({"alice": PASSWORD}))


# The time tells nobody who exists


Compared = tuple[type, type, int, int]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[Compared]:
    """Note what is compared: types and lengths."""
    noted: list[Compared] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        noted.append((type(one), type(other), len(one), len(other)))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    return noted


@pytest.mark.parametrize("password", [b"", b"wrong", b"w" * 255])
def test_an_unknown_user_takes_the_way_of_a_wrong_password(compared: list[Compared], password: bytes) -> None:
    """CASES B59: one comparison, of bytes of one length whatever the passwords are."""
    users = Authenticator({"alice": PASSWORD})
    assert not users.check(b"alice", password)
    assert not users.check(b"eve", password)
    assert len(compared) == 2
    assert compared[0] == compared[1]
    assert compared[0][:2] == (bytes, bytes)
    assert compared[0][2] == compared[0][3]


def test_an_unknown_user_costs_a_hash_where_users_have_hashes(
    compared: list[Compared], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CASES B59: the same cost, block size and parallelism, in the same thread."""
    derived = []
    real = hashlib.scrypt

    def scrypt(password: bytes, **settings: Any) -> bytes:
        derived.append({name: settings[name] for name in ("n", "r", "p", "dklen")})
        return real(password, **settings)

    monkeypatch.setattr(auth, "scrypt", scrypt)
    offload = Counter()
    users = Authenticator({"alice": HASH}, offload)
    assert not users.check(b"alice", b"wrong")
    assert not users.check(b"eve", b"wrong")
    assert offload.calls == 2
    assert derived == [{"n": 1024, "r": 8, "p": 1, "dklen": 32}] * 2
    assert compared[0] == compared[1]


@pytest.fixture
def derived(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note the cost of each hash that is computed."""
    noted: list[int] = []
    real = hashlib.scrypt

    def scrypt(password: bytes, **settings: Any) -> bytes:
        noted.append(settings["n"])
        return real(password, **settings)

    monkeypatch.setattr(auth, "scrypt", scrypt)
    return noted


def test_a_wrong_login_costs_the_same_whoever_it_is_for(derived: list[int]) -> None:
    """Users with plain passwords, with hashes of two costs, and those who do not exist."""
    stored = {
        "plain": PASSWORD,
        "cheap": scrypt_text(b"a", cost=10),
        "dear": scrypt_text(b"b", cost=11),
        "cheap2": scrypt_text(b"c", cost=10),
    }
    derived.clear()
    users = Authenticator(stored)
    for user in (*stored, "nobody"):
        for wrong in (b"wrong", b"wr\xf6ng"):
            assert not users.check(user.encode(), wrong)
            assert sorted(derived) == sorted([1024, 2048] * (1 if wrong.isascii() else 2))
            derived.clear()


def test_a_right_plain_password_waits_for_no_hash(derived: list[int]) -> None:
    users = Authenticator({"alice": PASSWORD, "bob": HASH})
    derived.clear()
    assert users.check(b"alice", PASSWORD.encode())
    assert derived == []


def test_an_unknown_user_is_not_let_in_with_the_password_he_is_compared_to() -> None:
    assert not Authenticator({"alice": HASH}).authenticate("eve", PASSWORD)
    assert not Authenticator({"alice": PASSWORD}).authenticate("eve", PASSWORD)


UMLAUT = "p\u00e4ssword"


@pytest.mark.parametrize("stored", [UMLAUT, scrypt_text(UMLAUT.encode())], ids=["plain", "hash"])
def test_a_password_may_come_in_latin_1(stored: str) -> None:
    """Case 347: RFC 1929 names no encoding, and some clients send this one."""
    users = Authenticator({"j\u00e4rgen": stored, "alice": stored})
    for name in (b"alice", b"j\xe4rgen", b"j\xc3\xa4rgen"):
        assert users.check(name, b"p\xe4ssword")
        assert users.check(name, b"p\xc3\xa4ssword")
        for other in (
            b"password",
            b"p?ssword",
            b"p\xa4ssword",
            b"p\xc3ssword",
            b"p\xe4ssword\xff",
            b"p\x84ssword",
        ):
            assert not users.check(name, other)
    assert not users.check(b"jargen", b"p\xe4ssword")


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), st.binary(max_size=40))
def test_no_other_pair_becomes_valid(password: str, other: bytes) -> None:
    """Case 347: than those of a text's own two encodings."""
    right = {password.encode(), password.encode("latin-1", "ignore")}
    assert Authenticator({"alice": password}).check(b"alice", password.encode())
    assert other in right or not Authenticator({"alice": password}).check(b"alice", other)


# Hashes


@pytest.mark.parametrize(
    ("password", "salt", "cost", "lanes", "key"),
    [
        # RFC 7914, section 12: the first 32 of 64 bytes, which is what a key of 32 bytes is.
        (b"password", b"NaCl", 10, 16, "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b373162"),
        (
            b"pleaseletmein",
            b"SodiumChloride",
            14,
            1,
            "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2",
        ),
    ],
)
def test_knows_the_hashes_of_the_rfc(password: bytes, salt: bytes, cost: int, lanes: int, key: str) -> None:
    stored = f"scrypt${cost}$8${lanes}${base64(salt)}${base64(bytes.fromhex(key))}"
    check_user("alice", stored)
    assert verify(password, stored.encode())
    assert not verify(password + b"!", stored.encode())


@pytest.mark.parametrize(("cost", "block", "lanes"), [(10, 1, 1), (10, 8, 2), (11, 16, 1), (14, 8, 1)])
def test_a_hash_brings_its_own_cost(cost: int, block: int, lanes: int) -> None:
    users = Authenticator({"alice": scrypt_text(b"secret", cost, block, lanes)})
    assert users.authenticate("alice", "secret")
    assert not users.authenticate("alice", "Secret")


def test_a_password_with_a_nul_behind_it_is_another() -> None:
    """CASES B42: HMAC, on which scrypt rests, pads a key with NULs (RFC 2104), so it takes them for one."""
    users = Authenticator({"alice": HASH})
    assert not users.check(b"alice", PASSWORD.encode() + b"\0")
    assert not users.check(b"alice", PASSWORD.encode() + bytes(10))


LONG = b"four words, and then more of them than fit into the block of SHA-256"


@pytest.mark.parametrize("password", [LONG, b"x" * 65, b"\xff" * 200, "\u00fc".encode() * 40])
def test_no_other_text_logs_in_with_the_hash_of_a_long_password(password: bytes) -> None:
    """Case 379: HMAC hashes a key above 64 bytes first (RFC 2104): its SHA-256 is as good."""
    stored = hash_password(password.decode("utf-8", "surrogateescape"))
    check_user("alice", stored)
    pre_image = hashlib.sha256(password).digest()
    assert hashlib.scrypt(password, salt=b"s", n=2, r=1, p=1) == hashlib.scrypt(
        pre_image, salt=b"s", n=2, r=1, p=1
    )
    users = Authenticator({"alice": stored})
    assert users.check(b"alice", password)
    assert not users.check(b"alice", pre_image)
    assert not users.check(b"alice", password + b"x")
    assert not users.check(b"alice", password[:64])


def test_a_hash_without_the_mark_is_of_no_long_password() -> None:
    """Case 379: else the SHA-256 of that would log in, which nothing tells from a password of 32 bytes."""
    unmarked = scrypt_text(LONG)
    users = Authenticator({"alice": unmarked, "bob": scrypt_text(bytes(range(1, 33)))})
    assert not users.check(b"alice", LONG)
    assert users.check(b"bob", bytes(range(1, 33)))


@pytest.mark.parametrize("size", [1, 31, 32, 33, 63, 64])
def test_a_hash_of_up_to_64_bytes_is_as_it_was(size: int) -> None:
    assert verify(b"\xfe" * size, scrypt_text(b"\xfe" * size).encode())


def test_a_hash_of_bytes_that_are_no_text() -> None:
    users = Authenticator({"alice": scrypt_text(b"\xff\x00\x80")})
    assert users.check(b"alice", b"\xff\x00\x80")


@pytest.mark.parametrize(
    "password",
    ["secret", "\u043f\u0430\u0440\u043e\u043b\u044c", " ", "x" * 64, "x" * 65, "x" * 255, "#;,%$'="],
)
def test_a_password_is_hashed_as_python_hashes_it(password: str) -> None:
    kind, cost, block, lanes, *mark, salt, key = hash_password(password).split("$")
    assert (kind, cost, block, lanes) == ("scrypt", "14", "8", "1")
    assert mark == (["long"] if len(password) > 64 else [])
    assert len(urlsafe_b64decode(salt)) >= 16
    expected = hashlib.scrypt(
        password.encode(), salt=urlsafe_b64decode(salt), n=1 << 14, r=8, p=1, maxmem=1 << 26, dklen=32
    )
    assert urlsafe_b64decode(key) == expected


def test_the_same_password_has_another_hash_each_time() -> None:
    assert hash_password("secret") != hash_password("secret")


MALFORMED = [
    "scrypt$",
    "scrypt$10$8$1",
    "scrypt$10$8$1$$",
    f"{HASH}$",
    f" {HASH}",
    HASH.replace("scrypt$10", "scrypt$x"),
    HASH.replace("scrypt$10", "scrypt$0"),
    HASH.replace("scrypt$10", "scrypt$00"),
    HASH.replace("scrypt$10", "scrypt$99"),
    HASH.replace("scrypt$10", "scrypt$-1"),
    HASH.replace("$8$1$", "$0$1$"),
    HASH.replace("$8$1$", "$8$0$"),
    HASH.replace("$8$1$", "$8$99$"),
    HASH.replace("scrypt", "SCRYPT$"),
    HASH[:-3],
    HASH + "\u00fc",
    "scrypt$10$8$1$AAAA$A",
    HASH.replace("$1$", "$1$longer$"),
    HASH.replace("$1$", "$1$long$long$"),
]


@pytest.mark.parametrize("stored", MALFORMED)
def test_a_malformed_hash_is_nobodys(stored: str) -> None:
    """It is an error of the file as well; should one come in another way, it lets nobody in."""
    assert not verify(PASSWORD.encode(), stored.encode())


SHORT = """
import os, resource
from proxy.policy.auth import verify
from tests.wire.processes import memory_of
stored = b"scrypt$17$8$1$c2FsdA==$%s"
most = memory_of(os.getpid(), "VmSize") + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    print(verify(b"right", stored))
except MemoryError:
    print("no memory")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_a_password_that_there_is_no_memory_to_check_is_not_called_wrong() -> None:
    """Else its client would be locked out for what is our own shortage: by a penalty, and by fail2ban."""
    code = SHORT % (base64(bytes(32)),)  # which takes 128 MiB
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "no memory\n", done.stderr


@pytest.mark.parametrize(
    "stored", ["scrypt$", "scrypt$10$8$1", "scrypt$99$8$1$AAAA$AAAA", HASH + "$", HASH[:-3] + "!"]
)
def test_a_malformed_hash_is_an_error_of_the_configuration(stored: str) -> None:
    """CASES B52: not taken for a plain password."""
    with pytest.raises(ConfigError, match="hash") as refused:
        check_user("alice", stored)
    assert stored not in str(refused.value)


@pytest.mark.parametrize(("cost", "block"), [(20, 8), (20, 16), (17, 64), (18, 99)])
def test_a_hash_that_the_configuration_takes_can_be_checked(
    monkeypatch: pytest.MonkeyPatch, cost: int, block: int
) -> None:
    """OpenSSL takes no memory limit above 2^31 - 1 bytes; such a user could never log in."""
    limits = []

    def scrypt(password: bytes, **settings: Any) -> bytes:
        limits.append(settings["maxmem"])
        return b""

    monkeypatch.setattr(auth, "scrypt", scrypt)
    stored = f"scrypt${cost}${block}$1${base64(SALT)}${base64(bytes(32))}"
    try:
        check_user("alice", stored)
    except ConfigError:
        return
    verify(b"x", stored.encode())
    assert len(limits) == 1
    assert limits[0] < 1 << 31


def test_base64_without_its_padding_is_the_same_hash() -> None:
    """What the configuration takes for a hash must be one."""
    stored = HASH.replace("=", "")
    check_user("alice", stored)
    assert verify(PASSWORD.encode(), stored.encode())


@pytest.mark.parametrize(("stored", "yes"), [(HASH, True), ("scrypt$", True), ("scrypt", False), ("", False)])
def test_a_hash_is_known_by_its_first_word(stored: str, yes: bool) -> None:
    assert is_hash(stored.encode()) is yes


# What is remembered


def test_a_success_is_remembered() -> None:
    offload = Counter()
    users = Authenticator({"alice": HASH}, offload)
    assert all(users.authenticate("alice", PASSWORD) for _ in range(5))
    assert offload.calls == 1


def test_a_failure_is_not() -> None:
    offload = Counter()
    users = Authenticator({"alice": HASH}, offload)
    assert users.authenticate("alice", PASSWORD)
    assert not any(users.authenticate("alice", "wrong") for _ in range(3))
    assert not any(users.authenticate("eve", PASSWORD) for _ in range(3))
    assert offload.calls == 7


def test_a_plain_password_needs_no_thread() -> None:
    offload = Counter()
    users = Authenticator({"alice": PASSWORD}, offload)
    assert users.authenticate("alice", PASSWORD)
    assert not users.authenticate("eve", PASSWORD)
    assert offload.calls == 0


def test_no_other_pair_is_taken_for_the_remembered_one() -> None:
    users = Authenticator({"ab": scrypt_text(b"cd"), "abc": scrypt_text(b"d", salt=b"other")})
    assert users.authenticate("ab", "cd")
    assert not users.authenticate("abc", "cd")
    assert not users.authenticate("a", "bcd")
    assert not users.authenticate("abc", "")


def test_what_is_not_used_for_two_minutes_is_forgotten() -> None:
    """As docs/configuration.md says; what is used stays remembered."""
    now = 1000.0
    offload = Counter()
    users = Authenticator({"alice": HASH}, offload, Logins(lambda: now))
    assert users.authenticate("alice", PASSWORD)
    now += 60
    assert users.authenticate("alice", PASSWORD)
    now += 119
    assert users.authenticate("alice", PASSWORD)
    assert offload.calls == 1
    now += 121
    assert users.authenticate("alice", PASSWORD)
    assert offload.calls == 2


def test_not_more_is_remembered_than_there_is_room_for_and_what_is_used_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auth, "_REMEMBER_AT_MOST", 2)
    offload = Counter()
    users = Authenticator(dict.fromkeys("abc", HASH), offload)
    for name in "abac":
        assert users.authenticate(name, PASSWORD)
    assert offload.calls == 3
    assert users.authenticate("a", PASSWORD)
    assert users.authenticate("c", PASSWORD)
    assert offload.calls == 3
    assert users.authenticate("b", PASSWORD)
    assert offload.calls == 4


def test_a_changed_password_is_not_remembered() -> None:
    """CASES H203: a reload brings other users."""
    before = Authenticator({"alice": HASH})
    assert before.authenticate("alice", PASSWORD)
    after = Authenticator({"alice": scrypt_text(b"new password")})
    assert not after.authenticate("alice", PASSWORD)
    assert after.authenticate("alice", "new password")


def test_what_was_remembered_holds_under_other_users_if_the_password_is_the_same() -> None:
    """As after a reload."""
    offload, logins = Counter(), Logins()
    assert Authenticator({"alice": HASH, "bob": HASH}, offload, logins).authenticate("alice", PASSWORD)
    after = Authenticator({"alice": HASH, "bob": scrypt_text(b"other")}, offload, logins)
    assert after.authenticate("alice", PASSWORD)
    assert offload.calls == 1
    assert not after.authenticate("bob", PASSWORD)
    assert not Authenticator({"bob": HASH}, offload, logins).authenticate("alice", PASSWORD)
    assert not Authenticator({"alice": "plain", "bob": HASH}, offload, logins).authenticate("alice", PASSWORD)


def test_no_password_is_kept_of_a_login() -> None:
    """Neither plain nor as a plain digest: what is remembered is of no use to a reader of our memory."""
    users = Authenticator({"alice": HASH})
    users.authenticate("alice", PASSWORD)
    for part in (PASSWORD.encode(), hashlib.sha256(PASSWORD.encode()).digest()):
        assert repr(part) not in repr(vars(users))


# The command


def test_the_command_prints_what_the_file_takes(tmp_path: Path) -> None:
    done = run_proxy("-hash-password", stdin="s\u00e9same, ouvre-toi #1\n".encode())
    assert done.returncode == 0
    (stored,) = done.stdout.decode().splitlines()
    assert verify("s\u00e9same, ouvre-toi #1".encode(), stored.encode())
    path = tmp_path / "proxy.ini"
    path.write_text(
        f"[auth_users]\nalice = {stored}\n[listeners]\n[[socks]]\n"
        "protocol = socks5\nlisten_addr = 127.0.0.1:1080\n"
    )
    path.chmod(0o600)
    (listener,) = configfile.load(str(path)).config.listeners
    assert listener.auth_users == {"alice": stored}
    assert Authenticator(listener.auth_users).authenticate("alice", "s\u00e9same, ouvre-toi #1")


@pytest.mark.parametrize(
    "typed", [b"\n", b"", "\u00fc".encode() * 128 + b"\n"], ids=["empty", "nothing", "256-bytes"]
)
def test_the_command_takes_no_password_that_could_not_log_in(typed: bytes) -> None:
    done = run_proxy("-hash-password", stdin=typed)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"1 to 255 bytes" in done.stderr
