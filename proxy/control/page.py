"""
The page that ``GET /`` gives to a browser.

It stands in one file, and gets nothing from elsewhere. Its style and its script are allowed by their
hashes, and nothing else is: were a name of a stranger ever taken for HTML, it still could do nothing.
"""

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path

from proxy.control.http import Answer

_FILE = Path(__file__).with_name("page.html")


@cache
def page(*, needs_token: bool) -> Answer:
    """Give the page; where a token is needed it asks whoever sits before it, and not us without one."""
    text = _FILE.read_text("utf-8")
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash_of('script', text)}",
            f"style-src {_hash_of('style', text)}",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ]
    )
    if needs_token:
        text = text.replace('data-token="none"', 'data-token="needed"', 1)
    headers = (
        ("Content-Security-Policy", policy),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
    )
    return Answer(text, headers=headers, kind="text/html; charset=utf-8")


def _hash_of(element: str, text: str) -> str:
    match = re.search(f"<{element}>(.*?)</{element}>", text, re.DOTALL)
    assert match
    return f"'sha256-{b64encode(sha256(match[1].encode()).digest()).decode()}'"
