"""What is said of the text of a file."""

import pytest

from proxy.configfile.content import Content, InvalidConfigError
from proxy.configfile.load import Loaded, understand

LISTENER = """
[listeners]
[[socks]]
protocol = socks5
listen_addr = 127.0.0.1:1080
"""


def read(text: bytes | str) -> Loaded:
    data = text if isinstance(text, bytes) else text.encode()
    return understand(Content(data), "proxy.ini", with_files=False)


def problems(text: bytes | str) -> list[str]:
    """Read a file that cannot be right, and return what is said about it."""
    with pytest.raises(InvalidConfigError) as caught:
        read(text)
    return [str(problem) for problem in caught.value.problems]
