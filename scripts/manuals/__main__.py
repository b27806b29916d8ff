"""
Write the manual pages and the completion of three shells into a folder: ``make manuals``.

They lie there as they do below /usr/share, under the names by which man and the shells find them.
"""

import sys
from pathlib import Path

from scripts.manuals.completion import bash, fish, zsh
from scripts.manuals.pages import program_page, settings_page

FILES = {
    "man/man1/proxy-server.1": program_page,
    "man/man5/proxy-server.ini.5": settings_page,
    "completions/bash/proxy-server": bash,
    "completions/zsh/_proxy-server": zsh,
    "completions/fish/proxy-server.fish": fish,
}


def write(folder: Path) -> None:
    """Write all of it."""
    for name, make in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
