"""
What a configuration file may have, and what may be shown of it.

Above all: whatever is not known is treated as a secret. A password under a misspelt key is one all the same.
"""

import pytest

from proxy.configtext.sections import is_secret, knows, settings_of, shown, why_no_key, why_no_section

HIDDEN = "********"


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (("auth_users",), "alice"),
        (("auth_users",), "proxy_address"),  # a user may have any name
        (("control",), "token"),
        (("upstreams", "home"), "proxy_password"),
        (("upstreams", "home"), "headers"),
        # In a damaged file a setting may stand anywhere, such as above the first section.
        ((), "proxy_password"),
        ((), "token"),
        ((), "headers"),
        (("upstreams",), "proxy_password"),
    ],
)
def test_passwords_and_tokens_are_secrets(path: tuple[str, ...], key: str) -> None:
    assert is_secret(path, key)
    assert set(shown(path, key, "wonderland")) <= set(f"{HIDDEN}: ")


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (("proxy",), "pasword"),
        (("upstreams", "home"), "proxy_pasword"),
        (("no such section",), "key"),
        (("listeners", "socks", "inner"), "key"),
        (("proxy",), "token"),  # which belongs into another section
    ],
)
def test_a_value_that_nobody_knows_is_not_shown(path: tuple[str, ...], key: str) -> None:
    assert not knows(path, key)
    assert shown(path, key, "wonderland") == HIDDEN


def test_a_secret_that_is_empty_is_shown_as_that() -> None:
    """Whether there is one is no secret."""
    assert shown(("control",), "token", "") == ""


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("wss://gateway.example/tunnel", "wss://gateway.example/tunnel"),
        ("wss://gateway.example/tunnel?key=sesame", f"wss://gateway.example/tunnel?{HIDDEN}"),
        ("wss://alice:sesame@gateway.example/", HIDDEN),
        ("alice:sesame@gateway.example:1080", HIDDEN),
    ],
)
def test_of_an_address_all_is_shown_but_what_may_be_a_token(address: str, said: str) -> None:
    """Credentials do not belong there; who writes them all the same must not find them in a log."""
    assert shown(("upstreams", "home"), "proxy_address", address) == said


def test_any_other_value_is_shown_as_it_is() -> None:
    assert shown(("proxy",), "timeout", "30s") == "30s"
    assert shown(("listeners", "web"), "path", "/tunnel") == "/tunnel"


@pytest.mark.parametrize("name", ["web", "a.b-c_d", "7", "b\u00fcro"])
@pytest.mark.parametrize("section", ["listeners", "upstreams"])
def test_letters_digits_and_a_few_more_make_a_name(section: str, name: str) -> None:
    assert why_no_section((section, name), 2, set()) == ""
    assert knows((section, name))
    assert settings_of((section, name))


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a[b", "a,b", "__many__", "___many___"])
def test_other_names_are_refused(name: str) -> None:
    """The last two mean any name where configobj reads them."""
    assert "letters, digits" in why_no_section(("listeners", name), 2, set())
    assert not knows(("listeners", name))


@pytest.mark.parametrize(
    ("path", "keys", "hint"),
    [
        (("listners",), set(), "did you mean [listeners]?"),
        (("socks",), {"protocol", "listen_addr"}, "[[name]], below [listeners]"),
        (("home",), {"proxy_address"}, "[[name]], below [upstreams]"),
    ],
)
def test_a_section_in_the_wrong_place_is_told_where_it_belongs(
    path: tuple[str, ...], keys: set[str], hint: str
) -> None:
    assert hint in why_no_section(path, 1, keys)


@pytest.mark.parametrize(
    ("path", "key", "hint"),
    [
        (("proxy",), "tiemout", "did you mean timeout?"),
        (("proxy",), "listen_addr", "a section [[name]] below [listeners]"),
        (("listeners", "web"), "idle_timeout", "[proxy]"),
        (("proxy",), "listeners", "write [listeners] on a line of its own"),
        ((), "nonsense", "before the first section"),
    ],
)
def test_a_setting_in_the_wrong_place_is_told_where_it_belongs(
    path: tuple[str, ...], key: str, hint: str
) -> None:
    assert hint in why_no_key(path, key)


def test_any_name_but_configobj_s_own_is_a_user() -> None:
    assert why_no_key(("auth_users",), "timeout") == ""
    assert why_no_key(("auth_users",), "j\u00fcrgen") == ""
    assert why_no_key(("auth_users",), "__many__") == "this name cannot be used"
