"""What was set for a while lies over the file's text, and never becomes a part of it."""

import pytest

from proxy.errors import ConfigError
from proxy.keeping.candidate import Layers

TEXT = "[proxy]\ntimeout = 30s\n[auth_users]\nalice = wonderland\n"
FILE = Layers.of(TEXT)


def test_what_covers_the_file_is_in_the_text_and_not_in_the_base() -> None:
    layers = FILE.with_volatile({"proxy.timeout": "9s"})
    assert layers == Layers(TEXT, TEXT.replace("30s", "9s"), {"proxy.timeout": "9s"})


def test_a_change_below_it_is_in_both() -> None:
    layers = FILE.with_volatile({"proxy.timeout": "9s"}).with_edits({"auth_users.alice": "x"})
    assert layers.base == TEXT.replace("wonderland", "x")
    assert layers.text == TEXT.replace("wonderland", "x").replace("30s", "9s")


@pytest.mark.parametrize("edits", [{"proxy.timeout": "20s"}, {"proxy.timeout": None}])
def test_a_change_of_the_same_setting_takes_its_place(edits: dict[str, str | None]) -> None:
    layers = FILE.with_volatile({"proxy.timeout": "9s"}).with_edits(edits)
    assert (layers.text, layers.volatile) == (layers.base, {})


def test_a_section_that_goes_takes_along_what_lies_over_its_settings() -> None:
    doors = "[listeners]\n[[a]]\nprotocol = socks5\n[[ab]]\nprotocol = socks5\n"
    covered = Layers.of(doors).with_volatile({"listeners.a.auth": "none", "listeners.ab.auth": "none"})
    assert covered.with_edits({"listeners.a": None}).volatile == {"listeners.ab.auth": "none"}


def test_what_is_not_there_cannot_be_taken_away_but_may_have_gone_below() -> None:
    with pytest.raises(ConfigError, match="is not set"):
        FILE.with_volatile({"auth_users.bob": None})
    layers = FILE.with_volatile({"auth_users.alice": None}).with_edits({"proxy.timeout": "20s"})
    assert layers.text == "[proxy]\ntimeout = 20s\n[auth_users]\n"
