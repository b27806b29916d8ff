"""Proxies as other programs name them; what counts of the environment is as in curl's manual."""

import pytest

from proxy.address import Endpoint
from proxy.errors import ConfigError
from proxy.proxyurl import parse_proxy_url, variable_for
from proxy.settings.upstream import UpstreamType


@pytest.mark.parametrize(
    ("url", "kind", "address"),
    [
        ("http://proxy.example:3128", UpstreamType.HTTP, "proxy.example:3128"),
        ("HTTP://proxy.example:3128/", UpstreamType.HTTP, "proxy.example:3128"),
        ("proxy.example:3128", UpstreamType.HTTP, "proxy.example:3128"),
        ("http://proxy.example", UpstreamType.HTTP, "proxy.example:80"),
        ("https://proxy.example", UpstreamType.HTTP, "proxy.example:443"),
        ("https://[2001:db8::1]:8443/", UpstreamType.HTTP, "[2001:db8::1]:8443"),
        ("socks5://proxy.example", UpstreamType.SOCKS5, "proxy.example:1080"),
        ("socks5h://proxy.example:9050", UpstreamType.SOCKS5, "proxy.example:9050"),
    ],
)
def test_a_url_names_a_proxy(url: str, kind: UpstreamType, address: str) -> None:
    proxy = parse_proxy_url(url)
    assert proxy.type is kind
    assert str(proxy.client_config.endpoint.address) == address
    assert (proxy.client_config.endpoint.scheme == "https") is url.startswith("https")


def test_a_login_stands_in_it_with_its_special_characters_escaped() -> None:
    """RFC 3986, section 2.1."""
    proxy = parse_proxy_url("http://al%40ice:p%3Aa%2Fss:x@proxy.example:3128")
    assert (proxy.proxy_username, proxy.proxy_password) == ("al@ice", "p:a/ss:x")
    assert "al" not in proxy.name.replace("example", "")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://u:s3cret@proxy.example",
        "socks4://u:s3cret@proxy.example:1",
        "http://u:s3cret@",
        "http://u:s3cret@proxy.example:port",
        "http://:s3cret@proxy.example:1",
        "http://u:s3cret@proxy.example:1/path",
        "http://u:s3cret@a b:1",
        "",
    ],
)
def test_what_names_none_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_proxy_url(url)
    assert caught.value.field == "-proxy"
    assert "s3cret" not in str(caught.value)


def test_what_the_environment_has_is_refused_by_its_name() -> None:
    for url in ("ftp://me:s3cret@proxy.example", "http://"):
        with pytest.raises(ConfigError) as caught:
            parse_proxy_url(url, "https_proxy")
        assert caught.value.field == "https_proxy"


ALL = {"http_proxy": "h", "https_proxy": "s", "all_proxy": "a"}


@pytest.mark.parametrize(
    ("address", "environment", "variable"),
    [
        ("ws://far.example/", ALL, "http_proxy"),
        ("wss://far.example/", ALL, "https_proxy"),
        ("http://far.example", ALL, "http_proxy"),
        ("https://far.example", ALL, "https_proxy"),
        ("socks5://far.example", ALL, "all_proxy"),
        ("far.example:1080", ALL, "all_proxy"),
        ("wss://far.example/", {"http_proxy": "h"}, ""),
        ("wss://far.example/", {"ALL_PROXY": "A"}, "ALL_PROXY"),
        ("wss://far.example/", {"HTTPS_PROXY": "S"}, "HTTPS_PROXY"),
        ("wss://far.example/", {"HTTPS_PROXY": "S", "https_proxy": "s"}, "https_proxy"),
        ("wss://far.example/", {"HTTPS_PROXY": "S", "https_proxy": ""}, "HTTPS_PROXY"),
        ("ws://far.example/", {"HTTP_PROXY": "H"}, ""),  # which a CGI script gets from whoever asks it
        ("ws://far.example/", {}, ""),
    ],
)
def test_the_environment_has_a_proxy_for_each_scheme(
    address: str, environment: dict[str, str], variable: str
) -> None:
    assert variable_for(Endpoint.parse(address), environment) == variable


@pytest.mark.parametrize(
    ("host", "no_proxy", "is_free"),
    [
        ("far.example", "far.example", True),
        ("far.example", "other.example, far.example", True),
        ("far.example", ".far.example", True),
        ("a.far.example", "far.example", True),
        ("a.far.example", ".FAR.example", True),
        ("nofar.example", "far.example", False),
        ("far.example", "a.far.example", False),
        ("far.example", "*", True),
        ("far.example", "", False),
        ("far.example", ",", False),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.0/24", True),
        ("192.0.2.7", "192.0.3.0/24", False),
        ("192.0.2.7", ".7", False),
        ("[2001:db8::1]", "2001:db8::/32", True),
        ("[2001:db8::1]", "[2001:db8::1]", True),
    ],
)
def test_no_proxy_names_hosts_for_which_there_is_none(host: str, no_proxy: str, *, is_free: bool) -> None:
    found = variable_for(Endpoint.parse(f"wss://{host}/"), {"https_proxy": "s", "no_proxy": no_proxy})
    assert found == ("" if is_free else "https_proxy")
