"""Draw the pictures in docs/pictures; it takes a minute, and needs tmux and chromium."""

import time

from tests.integration.browser import browsing, forwarded
from tests.integration.programs import COMMAND, REPOSITORY
from tests.integration.terminal import Terminal
from tests.pictures.drawing import draw
from tests.pictures.stage import proxy_at_work

FOLDER = REPOSITORY / "docs" / "pictures"
COLUMNS, LINES = 130, 29
CURVE = 45.0  # seconds, so that there is something to be seen of them
DESKTOP, PHONE = (1200, 860), (390, 844)


def main() -> None:
    """Draw all of them."""
    FOLDER.mkdir(exist_ok=True)
    with proxy_at_work() as node, Terminal(COLUMNS, LINES) as terminal, browsing() as page:
        command = [*COMMAND, "ctl", "-c", str(node.config_path), "top"]
        terminal.run(*command, environment=f"PYTHONPATH={REPOSITORY}")
        terminal.wait_for("q quit", "video.example.net")
        with forwarded(node.control_socket) as address:
            page.call("Emulation.setScrollbarsHidden", hidden=True)
            page.resize(*DESKTOP)
            page.visit(address)
            page.wait_for("document.querySelectorAll('#connections tbody tr').length > 5")
            time.sleep(CURVE)
            terminal.press("Down", "Down")
            (FOLDER / "page.png").write_bytes(page.picture())
            page.resize(*PHONE, is_dark=True)
            time.sleep(2)
            (FOLDER / "page-phone.png").write_bytes(page.picture())
        (FOLDER / "top.svg").write_text(draw(terminal.screen(colours=True), COLUMNS), "utf-8")
    for path in sorted(FOLDER.iterdir()):
        print(f"{path.relative_to(REPOSITORY)}: {path.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
