"""Masking, by either method, is what RFC 6455, section 5.3, says it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.websocket import masking

KEYS = st.binary(min_size=4, max_size=4)


@pytest.fixture(params=["in C", "in Python"])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in Python":
        monkeypatch.setattr(masking, "apply_mask", None)
    elif masking.apply_mask is None:
        pytest.skip("the websockets package is not installed")


def by_definition(data: bytes, key: bytes) -> bytes:
    """RFC 6455, section 5.3: transformed-octet-i is original-octet-i XOR masking-key-octet-(i MOD 4)."""
    return bytes(octet ^ key[i % 4] for i, octet in enumerate(data))


@pytest.mark.usefixtures("method")
def test_masks_the_example_of_the_rfc() -> None:
    hello = bytearray(b"Hello")
    masking.mask(hello, bytes.fromhex("37fa213d"))
    assert hello.hex() == "7f9f4d5158"  # RFC 6455, section 5.7


@pytest.mark.usefixtures("method")
@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 125, 511, 512, 513, 1023, 4099])
@pytest.mark.parametrize("phase", [0, 1, 2, 3, 4, 65537])
def test_works_in_place_at_any_size_and_phase(size: int, phase: int) -> None:
    data = bytes(i * 7 & 0xFF for i in range(size))
    key = bytes.fromhex("01ff0080")
    expected = by_definition(bytes(phase % 4) + data, key)[phase % 4 :]
    for buffer in (bytearray(data), memoryview(bytearray(data))):
        masking.mask(buffer, key, phase)
        assert bytes(buffer) == expected


@pytest.mark.usefixtures("method")
def test_leaves_the_neighbours_of_a_view_alone() -> None:
    buffer = bytearray(2000)
    masking.mask(memoryview(buffer)[500:1500], b"\xff\xff\xff\xff")
    assert buffer == bytes(500) + b"\xff" * 1000 + bytes(500)


def test_a_key_of_zeros_changes_nothing() -> None:
    data = bytearray(b"Hello")
    masking.mask(data, bytes(4))
    assert data == b"Hello"


@given(data=st.binary(max_size=2000), key=KEYS, cut=st.integers(0, 2000))
def test_both_methods_agree_in_one_piece_and_in_two(data: bytes, key: bytes, cut: int) -> None:
    assert masking.xor(bytearray(data), key) == by_definition(data, key)
    pieces = memoryview(bytearray(data))
    masking.mask(pieces[:cut], key)
    masking.mask(pieces[cut:], key, cut)
    assert pieces == by_definition(data, key)
