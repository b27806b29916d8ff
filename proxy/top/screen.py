"""
``ctl top``: the terminal, the clock and the server, around the state and its picture.

The terminal is given back whatever happens. So signals that end or stop us do it in their handlers, which
run at once, also while a write waits for a terminal that takes nothing.
"""

import codecs
import json
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from time import monotonic, sleep
from types import FrameType
from typing import Any

import gevent
from gevent.select import select

from proxy.console import OK
from proxy.ctl.ask import NOT_UNDERSTOOD, CtlError
from proxy.net import descriptors
from proxy.top.escapes import ENTER, LEAVE, as_ascii, encode, parse_keys
from proxy.top.keys import End, Look, Quit, press
from proxy.top.picture import draw, draw_all
from proxy.top.samples import Sample
from proxy.top.state import State, path
from proxy.top.updates import miss, resize, take

_INTERVAL = 1.0  # seconds between two samples
_NO_SOONER = 0.2  # seconds, however fast keys ask for more
_ESCAPE_TIME = 0.05  # seconds in which the rest of a key's bytes come
_WIDE, _ROWS = 132, 20  # of a picture for no terminal: columns, and connections

Ask = Callable[[str, str], Any]  # method and path; raises ``CtlError``


def run(ask: Ask, *, as_json: bool = False) -> int:
    """Show it until a key says that it is enough, or once where no terminal is."""
    is_live = os.isatty(0) and os.isatty(1) and os.environ.get("TERM", "dumb") != "dumb" and not as_json
    if not is_live:
        return _show_once(ask, as_json=as_json)
    _Live(ask).run()
    return OK


def _sample(ask: Ask, state: State) -> Sample:
    return Sample(monotonic(), ask("GET", "/status"), ask("GET", path(state)))


def _show_once(ask: Ask, *, as_json: bool) -> int:
    columns = os.environ.get("COLUMNS", "")
    state = State(columns=int(columns) if columns.isdecimal() else _WIDE, lines=_ROWS // 2)
    first = _sample(ask, state)
    sleep(_INTERVAL)
    second = _sample(ask, state)
    if as_json:
        print(json.dumps({"status": second.status, "connections": second.listing}, indent=2))
        return OK
    lines = draw_all(take(take(state, first), second))
    text = "\n".join("".join(span.text for span in line).rstrip() for line in lines)
    print(text if _encoding() == "utf-8" else as_ascii(text))
    return OK


def _encoding() -> str:
    return (sys.stdout.encoding or "ascii").lower().replace("utf8", "utf-8")


class _Live:
    """The picture on a terminal, until it is left."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._state = State()
        self._saved: list[Any] = []
        self._wakes, self._waker = os.pipe()
        self._due = 0.0  # when the next sample is to be taken
        self._asked_at = 0.0
        self._asking: gevent.Greenlet[..., None] | None = None
        self._typed = ""  # the beginning of a key
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._is_done = False
        # NO_COLOR is heeded where it is not empty: https://no-color.org
        self._colours = not os.environ.get("NO_COLOR")
        self._encoding = _encoding()

    def run(self) -> None:
        handlers = {
            **dict.fromkeys((signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGTSTP), self._obey),
            **dict.fromkeys((signal.SIGWINCH, signal.SIGCONT), self._resume),
        }
        for descriptor in (self._wakes, self._waker):
            os.set_blocking(descriptor, False)
        before = {each: signal.getsignal(each) for each in handlers}
        woken = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        try:
            self._enter()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            # Who closes the terminal ends us; the command line has left that waiting.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGHUP,))
            self._loop()
        finally:
            signal.set_wakeup_fd(woken)
            for number, former in before.items():
                signal.signal(number, former)
            self._leave()
            if self._asking:
                self._asking.kill()
            for descriptor in (self._wakes, self._waker):
                os.close(descriptor)

    # -- the terminal

    def _enter(self) -> None:
        if not self._saved:
            self._saved = termios.tcgetattr(0)
        tty.setcbreak(0, termios.TCSADRAIN)  # Ctrl-C and Ctrl-Z still are signals
        descriptors.write_all(1, ENTER.encode())

    def _leave(self) -> None:
        # A terminal that is gone, or was stopped by Ctrl-S, keeps nobody.
        with suppress(OSError, termios.error):
            termios.tcflow(1, termios.TCOON)
            termios.tcflush(1, termios.TCOFLUSH)
            descriptors.write_all(1, LEAVE.encode())
        with suppress(OSError, termios.error):
            termios.tcsetattr(0, termios.TCSADRAIN, self._saved)

    def _obey(self, number: int, frame: FrameType | None) -> None:
        """Give the terminal back, and be ended or stopped by the signal as everybody is."""
        self._leave()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # Here we are again after a s
        signal.signal(number, self._obey)
        self._resume(number, frame)

    def _resume(self, number: int, frame: FrameType | None) -> None:
        """Have the picture drawn anew; the signal wakes the loop, too."""
        if number != signal.SIGWINCH:
            self._enter()

    # -- the loop

    def _loop(self) -> None:
        while not self._is_done:
            wait = self._ask_if_due()
            self._draw()
            ready, _, _ = select([0, self._wakes], [], [], _ESCAPE_TIME if self._typed else wait)
            if self._wakes in ready:
                with suppress(BlockingIOError):
                    os.read(self._wakes, 4096)
            if 0 in ready:
                self._read()
            elif self._typed:
                self._take_keys(["escape"])
                self._typed = ""

    def _draw(self) -> None:
        try:
            columns, lines = os.get_terminal_size(1)
        except OSError:
            columns, lines = 80, 24
        self._state = resize(self._state, columns or 80, lines or 24)
        picture = encode(draw(self._state), colours=self._colours, encoding=self._encoding)
        descriptors.write_all(1, picture)

    def _read(self) -> None:
        data = descriptors.read(0, 1024)
        if not data:
            self._is_done = True  # the terminal is gone
        text = self._typed + self._decoder.decode(data)
        found, self._typed = parse_keys(text)
        self._take_keys(found)

    def _take_keys(self, found: list[str]) -> None:
        for key in found:
            self._state, action = press(self._state, key)
            if isinstance(action, Quit):
                self._is_done = True
            elif isinstance(action, End):
                self._end(action)
            elif isinstance(action, Look):
                self._due = 0.0

    # -- the server

    def _ask_if_due(self) -> float | None:
        """Ask if it is time to, and say when it is, in seconds; None if that is when something happens."""
        if self._asking or (self._state.is_paused and self._due):
            return None
        wait = max(self._due, self._asked_at + _NO_SOONER) - monotonic()
        if wait > 0:
            return wait
        self._asked_at = monotonic()
        self._due = self._asked_at + _INTERVAL
        self._asking = gevent.spawn(self._take_sample, self._state)
        return None

    def _take_sample(self, state: State) -> None:
        try:
            sample = _sample(self._ask, state)
            draw(take(state, sample))  # fails here, if ever
            self._state = take(self._state, sample)
        except CtlError as exc:
            self._state = miss(self._state, str(exc))
        except (LookupError, TypeError, ValueError):
            self._state = miss(self._state, NOT_UNDERSTOOD)
        finally:
            self._asking = None
            self._wake()

    def _end(self, action: End) -> None:
        def end() -> None:
            try:
                self._ask("DELETE", action.path)
                said = f"connection {action.id} is ended"
            except CtlError as exc:
                said = f"connection {action.id}: {exc}"
            self._state = replace(self._state, said=said)
            self._due = 0.0
            self._wake()

        gevent.spawn(end)

    def _wake(self) -> None:
        with suppress(OSError):
            os.write(self._waker, b"\0")
