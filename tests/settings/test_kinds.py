"""A setting's kind says all that is known of its values, and stands with its field."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any

import pytest

from proxy.configtext.sections import is_secret
from proxy.settings.checked import kinds_of
from proxy.settings.kinds import Location, Seconds, Secret, SomeSeconds, at_least, one_of
from proxy.settings.upstream import UpstreamConfig


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class House:
    rooms: Annotated[int, at_least(1)]
    colour: Colour
    warm: bool
    waits: Seconds
    lasts: SomeSeconds
    mood: Annotated[str, one_of("calm", "loud")]
    owner: str
    key: Secret
    address: Location
    children: tuple[str, ...] = ()  # no setting: a section has no such value


KINDS = kinds_of(House)


def test_a_field_is_a_setting_if_text_can_be_read_as_its_value() -> None:
    assert list(KINDS) == [
        *("rooms", "colour", "warm", "waits", "lasts", "mood", "owner", "key", "address"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("rooms", "2k", 2048),
        ("colour", "blue", Colour.BLUE),
        ("warm", "On", True),
        ("warm", "no", False),
        ("waits", "0", 0.0),
        ("lasts", "500ms", 0.5),
        ("mood", "calm", "calm"),
        ("owner", "", ""),
    ],
)
def test_text_becomes_a_value(name: str, text: str, value: Any) -> None:
    assert KINDS[name].parse(text) == value


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("rooms", "0", "must be at least 1"),
        ("rooms", "many", "not a number"),
        ("colour", "Blue", "must be one of red, blue; did you mean blue?"),
        ("warm", "very", "is neither yes nor no"),
        ("waits", "-1", "not a duration"),
        ("lasts", "0", "must be more than 0"),
        ("mood", "lout", "must be one of calm, loud; did you mean loud?"),
    ],
)
def test_text_that_is_none_is_refused_and_told_why(name: str, text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why.replace("?", r"\?")):
        KINDS[name].parse(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [("rooms", 0), ("waits", -0.1), ("waits", float("nan")), ("lasts", float("inf")), ("mood", "sad")],
)
def test_a_value_that_comes_from_no_text_is_checked_alike(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match="must"):
        KINDS[name].check(value)


def test_whatever_stays_out_of_a_repr_is_a_secret_of_the_file_too() -> None:
    """A field that forgets the one or the other would show in a log, or in ``-dump``."""
    fields = UpstreamConfig.__dataclass_fields__.values()
    assert {each.name for each in fields if not each.repr} == {
        name for name in UpstreamConfig.kinds if is_secret(("upstreams", "home"), name)
    }


# -- a number, or a word in its place


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("0", 0), ("64", 64)])
def test_a_number_may_have_a_word_in_its_place(text: str, value: str | int) -> None:
    assert UpstreamConfig.kinds["spare"].parse(text) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("65", "must be auto, or a number from 0 to 64"),
        ("-1", "is neither auto nor a number"),
        ("", "is neither auto nor a number"),
        ("autos", "is neither auto nor a number; did you mean auto[?]"),
    ],
)
def test_neither_the_word_nor_such_a_number_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"^{why}$"):
        UpstreamConfig.kinds["spare"].parse(text)
