"""
Parsers without I/O: generators that ask for exact numbers of bytes, so they take nothing of what follows.
"""

from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Parser = Generator[int, bytes, T]


def run(parser: Parser[T], read_exact: Callable[[int], bytes]) -> T:
    """Run a parser to its result, reading exactly the bytes it asks for."""
    try:
        wanted = next(parser)
        while True:
            wanted = parser.send(read_exact(wanted))
    except StopIteration as finished:
        return finished.value  # type: ignore[no-any-return]
