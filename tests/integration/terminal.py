"""A real terminal: tmux, in which a shell runs, whose screen can be read and whose keys can be pressed."""

import shlex
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from tests.integration import peers
from tests.integration.programs import clean_environment
from tests.wire.waits import wait_until

PROMPT = "ready> "


class Terminal:
    """A terminal of some size, with a shell in it."""

    def __init__(self, columns: int = 100, lines: int = 30) -> None:
        self._tmux = peers.find("tmux")
        self._size = columns, lines
        self._folder = tempfile.TemporaryDirectory(prefix="pxt-")

    def __enter__(self) -> "Terminal":
        config = Path(self._folder.name, "tmux.conf")
        config.write_text(
            f"set -g status off\nset -g escape-time 0\nset -g default-shell {shlex.quote('/bin/sh')}\n"
        )
        columns, lines = map(str, self._size)
        environment = ["-e", f"PS1={PROMPT}", "-e", "LANG=C.UTF-8"]
        shell = [*environment, "exec sh -i"]
        self.tmux("-f", str(config), "new-session", "-d", "-x", columns, "-y", lines, *shell)
        self.wait_for(PROMPT.strip())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.tmux("kill-server")
        finally:
            self._folder.cleanup()

    def tmux(self, *words: str) -> str:
        """Give a command to tmux, and return what it prints."""
        command = [self._tmux, "-S", f"{self._folder.name}/tmux", "-u", *words]
        environment = clean_environment(self._folder.name, TERM="xterm-256color")
        return subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, check=True, text=True, timeout=30
        ).stdout

    def run(self, *words: str, environment: str = "") -> None:
        """Have the shell run a command."""
        self.type(f"{environment} {shlex.join(words)}".strip())
        self.press("Enter")

    def type(self, text: str) -> None:
        """Type a text."""
        self.tmux("send-keys", "-l", text)

    def press(self, *keys: str) -> None:
        """Press keys, by the names that tmux has for them."""
        self.tmux("send-keys", *keys)

    def resize(self, columns: int, lines: int) -> None:
        """Change the size."""
        self.tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def screen(self, *, colours: bool = False) -> str:
        """Read what is to be seen."""
        return self.tmux("capture-pane", "-p", *(["-e"] if colours else []))

    def has(self, name: str) -> bool:
        """Tell of a property of the terminal, such as ``alternate_on``."""
        return self.tmux("display", "-p", f"#{{{name}}}").strip() == "1"

    def wait_for(self, *texts: str) -> str:
        """Wait until all of them are to be seen, and give the whole screen."""

        def seen() -> str | None:
            screen = self.screen()
            return screen if all(text in screen for text in texts) else None

        return wait_until(seen, lambda: f"{texts} on the screen:\n{self.screen()}", 30)

    def wait_until_gone(self, text: str) -> None:
        """Wait until a text is not to be seen."""
        wait_until(lambda: text not in self.screen(), lambda: f"no {text!r} on:\n{self.screen()}", 30)
