"""How names that are not ASCII are spelt, and at what cost; what they become is in test_address.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import idn as module
from proxy.errors import ProtocolError
from proxy.idn import punycode, to_ascii

NO_SURROGATES = st.characters(exclude_categories=["Cs"])


@pytest.mark.parametrize(
    ("label", "encoded"),
    [
        # RFC 3492, section 7.1: (A) Arabic, (B) Chinese, (D) Czech, (L) and (R) Japanese.
        ("ليهمابتكلموشعربي؟", "egbpdaj6bu4bxfgehfvwxn"),
        ("他们为什么不说中文", "ihqwcrb4cv8a8dqg056pqjye"),
        ("Pročprostěnemluvíčesky", "Proprostnemluvesky-uyb24dma41a"),
        ("3年B組金八先生", "3B-ww4c5e180e575a65lsy2b"),
        ("そのスピードで", "d9juau41awczczp"),
    ],
)
def test_punycode_is_that_of_the_rfc(label: str, encoded: str) -> None:
    assert punycode(label, 100) == encoded


@given(st.text(NO_SURROGATES, max_size=40))
def test_punycode_is_that_of_the_standard_library(label: str) -> None:
    if not label.isascii():
        assert punycode(label, 1000) == label.encode("punycode").decode()


@pytest.mark.parametrize("name", ["\u4e00" * 64, "\ufdfa" * 40, "a." + "ü" * 64])
def test_a_label_that_is_too_long_is_not_begun(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Case 370. U+FDFA is mapped to eighteen characters."""
    monkeypatch.setattr(module, "punycode", lambda *_: pytest.fail("it was begun"))
    with pytest.raises(ProtocolError, match="longer than 63"):
        to_ascii(name)


def test_a_label_that_becomes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 370: of sixty Chinese characters, the first third takes all the room there is."""
    spelt = []
    integer = module._integer

    def note(*arguments: int) -> str:
        spelt.append(integer(*arguments))
        return spelt[-1]

    monkeypatch.setattr(module, "_integer", note)
    with pytest.raises(ProtocolError, match="longer than 63"):
        to_ascii("".join(chr(0x4E00 + 301 * number) for number in range(60)))
    assert 59 < len("".join(spelt)) < 70


def test_the_longest_label_is_spelt() -> None:
    """63 bytes: a name of one letter, again and again, takes one byte for each."""
    assert len(to_ascii("ü" * 56)) <= 63
