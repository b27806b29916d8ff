"""Users who could never log in are refused, and so are hashes that are none."""

import base64
import hashlib

import pytest

from proxy.errors import ConfigError
from proxy.users import check_user, is_of_others


@pytest.mark.parametrize(
    ("name", "password"),
    [("a", "b"), ("a" * 255, "b" * 255), ("ä" * 127, "ö" * 127), ("a b", "#,=;[]'\"")],
)
def test_users_have_names_and_passwords_of_1_to_255_bytes(name: str, password: str) -> None:
    """CASES B44."""
    check_user(name, password)


@pytest.mark.parametrize(("name", "password"), [("", "b"), ("a", ""), ("a" * 256, "b"), ("a", "ö" * 128)])
def test_refuses_a_user_who_could_never_log_in(name: str, password: str) -> None:
    """CASES B43, B45."""
    with pytest.raises(ConfigError, match="255 bytes"):
        check_user(name, password)


def scrypt_hash(log2_n: int = 14, strip: str = "") -> str:
    salt = b"0123456789abcdef"
    digest = hashlib.scrypt(b"wonderland", salt=salt, n=1 << 10, r=8, p=1, dklen=32)
    parts = [base64.urlsafe_b64encode(each).decode().rstrip(strip) for each in (salt, digest)]
    return f"scrypt${log2_n}$8$1$" + "$".join(parts)


@pytest.mark.parametrize(
    "password", [scrypt_hash(), scrypt_hash(strip="="), scrypt_hash(10), scrypt_hash(20)]
)
def test_accepts_a_password_hash(password: str) -> None:
    check_user("alice", password)


@pytest.mark.parametrize(
    "password",
    [
        "scrypt$",
        "scrypt$14$8$1$c2FsdA==",
        "scrypt$14$8$1$$",
        scrypt_hash(9),
        scrypt_hash(21),
        scrypt_hash().replace("$8$1$", "$0$1$"),
        scrypt_hash() + " ",
        scrypt_hash().replace("MDEy", "MD+y"),
        # What a hand that copies may lose or double.
        scrypt_hash(strip="=")[:-1],
        scrypt_hash()[:-20],
        scrypt_hash(strip="=") + "A",
        scrypt_hash() + scrypt_hash().rpartition("$")[2],
    ],
)
def test_refuses_a_damaged_password_hash(password: str) -> None:
    """CASES B52: it would be taken for a plain password."""
    with pytest.raises(ConfigError, match="hash") as caught:
        check_user("alice", password)
    assert password not in str(caught.value)


@pytest.mark.parametrize(
    "password",
    [
        # Of Apache's page on password formats.
        "$apr1$r31.....$HqJZimcKQFAMYayBlzkI/0",
        "{SHA}VBPuJHI7uixaa6LQGx4s+5GKNE4=",
        "$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC",
        # Of openssl passwd -1, -5 and -6, with this salt.
        "$1$saltsalt$yEqE3piuhSYZ..6NGFtsm/",
        "$5$saltsalt$5nbCsW5F.JCojhDF8BYWwLHkLYdXXFdnFoYUOiM2iu5",
        "$6$saltsalt$LDXPTlgBwvos30nDQYE87p0HOcSSLvqM4sFnKbmhnABtBtA32fiC3O10o2AoRuO4wxB/8/wHS5Kpe4CLBip/10",
        # Of the PHC string format.
        "$argon2id$v=19$m=65536,t=2,p=1$gZiV/M1gPc22ElAH/Jh1Hw$CWOrkoo7oJBQ/iyh7uJ0LO2aLEfrHwTWllSAxT0zRno",
    ],
)
def test_knows_the_hashes_of_other_programs(password: str) -> None:
    assert is_of_others(password)
    check_user("alice", password)  # it may be a password all the same


@pytest.mark.parametrize(
    "password", [scrypt_hash(), "wonderland", "$100 a month", "$1$", "{SHA}", "$6$ for lunch"]
)
def test_other_passwords_are_not_taken_for_hashes(password: str) -> None:
    assert not is_of_others(password)
