"""What changed is said of any two texts, those that are no configuration included, without a secret."""

import pytest

from proxy.configtext import changes

GOOD = "[proxy]\ntimeout = 30s\n\n[auth_users]\nalice = wonderland\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "timeout = 30s\n" + GOOD,
        "token = looking-glass\nproxy_password = looking-glass\n" + GOOD,
        "[[deep]]\n[[[deeper]]]\na = b\n",
        "[proxy\n= x\nno setting\n" + GOOD,
        "[auth_users]\nalice = '''looking-glass\nx = '''\n",
        "[proxy]\ntimeout = 'never closed\n",
        "\x00\ud7ff\u2028\r\n[proxy]\r\ntimeout\x0b= x",
    ],
    ids=[
        "empty",
        "setting-at-the-top",
        "secret-at-the-top",
        "deep",
        "half",
        "triple-quotes",
        "quotes",
        "odd-characters",
    ],
)
def test_an_odd_text_can_be_compared_and_shows_no_secret(text: str) -> None:
    """CASES H202, H210: a version whose file is damaged."""
    for pair in ((text, GOOD), (GOOD, text)):
        said = changes.summary(*pair) + changes.diff(*pair, "a", "b")
        assert said
        assert "looking-glass" not in said
        assert "wonderland" not in said


def test_equal_texts_have_no_difference() -> None:
    assert (changes.summary(GOOD, GOOD), changes.diff(GOOD, GOOD, "a", "b")) == ("nothing", "")
