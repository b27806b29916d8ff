"""
The configuration in effect, how it came about, and the one way to change it.

Whatever wants a change comes here: the watcher, a signal, the control interface. One at a time is
read, judged, applied and remembered. What fails leaves everything as it was, the file included.

Reading and judging a large file takes a while, so native threads do it; applying is for whoever runs
the servers.
"""

import gc
import hashlib
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from gevent.lock import BoundedSemaphore

from proxy.config import ProxyConfig
from proxy.control import changes, configfile, files
from proxy.control.configfile import Content, InvalidConfigError, Loaded
from proxy.control.edit import Edit, edit, redact
from proxy.control.history import History
from proxy.control.history import Version as Version
from proxy.control.outline import Problem
from proxy.control.stamps import Stamps, stamps, tls_files, tls_files_in
from proxy.errors import ConfigError, ProxyError, reason_of
from proxy.net.threads import Workers

log = logging.getLogger(__name__)

_USUAL_TURN = sys.getswitchinterval()
_TURN = 0.0005  # seconds for which a thread may keep the interpreter while others wait for it

T = TypeVar("T")
Apply = Callable[[ProxyConfig], tuple[str, ...]]


@dataclass(frozen=True)
class Outcome:
    """What became of a wish for a change."""

    status: str  # applied | unchanged | rejected
    version: int  # the one in effect afterwards
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # such as what takes effect at the next start only


class Conflict(ProxyError):
    """The version that a change was meant for is not the current one any more."""

    def __init__(self, current: Version) -> None:
        super().__init__(f"the configuration has changed meanwhile: it is version {current.number} now")
        self.current = current


class _Judged(NamedTuple):
    """The file when all was said of it."""

    digest: str = ""  # empty if it cannot be read
    waits_for: Stamps = {}  # the TLS files that it names, if it was rejected: perhaps for one of them


class _Edited(NamedTuple):
    """A change that was worked out."""

    base: str
    overlay: dict[str, str | None]
    text: str
    config: ProxyConfig


class _RefusedError(ProxyError):
    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(problems[0])
        self.problems = problems


class _UnwritableError(ProxyError):
    pass


class Versions:
    """
    The versions of one file's configuration.

    ``start`` first: it says what to serve. ``record`` when that is being served.
    """

    current: Version
    config: ProxyConfig

    def __init__(self, path: str, state_dir: str, history_size: int, apply: Apply) -> None:
        """
        Take what makes a configuration the running one.

        ``apply`` returns what it has to say, or raises ``ProxyError``; then it has changed nothing.
        """
        self.outcomes: Counter[str] = Counter()
        self._path = path
        self._history = History(Path(state_dir) / "history", history_size)
        self._apply = apply
        self._lock = BoundedSemaphore()
        self._workers = Workers(1)
        self._base = ""  # what the file held when it was applied, or what was written to it;
        self._overlay: dict[str, str | None] = {}  # and the volatile changes on top of that
        self._judged = _Judged()
        self._tls: Stamps = {}  # the TLS files as they were when they were last applied,
        self._tried_tls: Stamps = {}  # and as they were when that was last tried
        self._is_new = False

    # -- the first one

    def start(self, *, last_good: bool = False) -> tuple[str, ...]:
        """
        Read the file, and return what its author should know.

        Raises ``InvalidConfigError`` for an invalid file, unless it may be, and can be, the
        ``last_good`` version instead.
        """
        try:
            text, loaded = self._judge()
        except InvalidConfigError as exc:
            warnings = tuple(map(str, exc.problems))
            if not last_good or not self._take_last_good():
                raise
            warnings += (f"starting with version {self.current.number} instead, the last good one",)
        else:
            self.config, self._base = loaded.config, text
            self._judged = self._judged._replace(waits_for={})
            warnings = tuple(map(str, loaded.warnings))
            self._take_first()
        self._tls = stamps(tls_files(self.config))
        self._history.size = self.config.history_size
        self._started = self.config
        return warnings

    def _take_first(self) -> None:
        last = next(iter(self._history.versions[-1:]), None)
        if last and last.text == self._base:
            self.current = last
            return
        summary = changes.summary(last.text, self._base) if last else "the first version"
        self.current = self._version("start", self._base, summary)
        self._is_new = True

    def _take_last_good(self) -> bool:
        for version in reversed(self._history.versions):
            with suppress(InvalidConfigError):
                if not version.volatile:
                    self.config = configfile.parse(version.text.encode(), "", with_files=True).config
                    self.current, self._base = version, version.text
                    return True
        return False

    def record(self) -> None:
        """Remember the first version, now that it is known to work."""
        with self._lock:
            if self._is_new:
                self._is_new = False
                self._run(partial(self._history.add, self.current))

    # -- looking back

    def list(self) -> "list[Version]":
        """List the versions that can be gone back to, the oldest first; the current one is the last."""
        known = self._history.versions
        return known if self.current in known else [*known, self.current]

    def get(self, number: int) -> Version:
        """Give one version; raises ``KeyError``."""
        for version in self.list():
            if version.number == number:
                return version
        raise KeyError(number)

    def redacted(self, number: int) -> str:
        """Give the text of a version without its secrets; raises ``KeyError``."""
        return self._run(partial(redact, self.get(number).text))

    def diff(self, a: int, b: int) -> str:
        """Compare two versions, without their secrets; raises ``KeyError``."""
        old, new = self.get(a).text, self.get(b).text
        return self._run(partial(changes.diff, old, new, f"version {a}", f"version {b}"))

    # -- the file

    def reload(self, source: str = "file") -> Outcome:
        """Read the file now, whatever was said of it before, and anew the files that it names."""
        with self._lock:
            return self._settle(partial(self._reload, source, is_asked_for=True))

    def look(self) -> Outcome | None:
        """Reload what is not as it was when it was last judged: the file, its TLS files; None if all is."""
        with self._lock:
            outcome = None
            if self._may_be_judged_otherwise():
                outcome = self._settle(partial(self._reload, "file", is_asked_for=False))
            # Whatever became of the file: certificates are renewed beside a broken one too.
            tls = stamps(tls_files(self.config))
            if tls not in (self._tls, self._tried_tls):
                self._tried_tls = tls
                outcome = self._settle(self._renew)
            return outcome

    def files(self) -> Sequence[str]:
        """List what to look at: the file, the TLS files in effect, and those that it waits for."""
        return [self._path, *sorted({*tls_files(self.config), *self._judged.waits_for})]

    def _may_be_judged_otherwise(self) -> bool:
        digest = _digest(self._run(partial(_read, self._path)))
        return self._judged != (digest, stamps(self._judged.waits_for))

    def _judge(self) -> tuple[str, Loaded]:
        """Read the file; raises ``InvalidConfigError``, and then it waits for the TLS files that it names."""
        self._judged = _Judged()
        data, mode = self._run(partial(configfile.read, self._path))
        # Before they are read: one that appears right after that is another one than this.
        self._judged = _Judged(_digest(data), self._run(lambda: stamps(tls_files_in(_text(data)))))
        loaded = self._run(partial(configfile.understand, Content(data, mode), self._path))
        return _text(data), loaded

    def _reload(self, source: str, *, is_asked_for: bool) -> Outcome:
        # Also a text that is as it was: the files that it names may have changed.
        text, loaded = self._judge()
        outcome = self._take(text, loaded, source, is_asked_for=is_asked_for)
        self._judged = self._judged._replace(waits_for={})
        return outcome

    def _take(self, text: str, loaded: Loaded, source: str, *, is_asked_for: bool) -> Outcome:
        if text != self._base or (self._overlay and is_asked_for):
            return self._become(text, loaded.config, source, notes=tuple(map(str, loaded.warnings)))
        if is_asked_for:
            return self._apply_again()
        return Outcome("unchanged", self.current.number)

    def _renew(self) -> Outcome:
        """Read the TLS files of what is in effect again; what the file says now is another matter."""
        text = self.current.text
        name = self._path if text == self._file_text() else f"version {self.current.number}"
        self._run(partial(configfile.parse, text.encode(), name, with_files=True))
        return self._apply_again()

    def _apply_again(self) -> Outcome:
        tls = stamps(tls_files(self.config))  # before they are read
        notes = self._apply(self.config)
        before, self._tls = self._tls, tls
        if tls == before:
            return Outcome("unchanged", self.current.number, notes=notes)
        return Outcome("applied", self.current.number, notes=(*notes, "the TLS files were read again"))

    # -- changes that do not come from the file

    def rollback(self, number: int | None = None) -> Outcome:
        """
        Apply an old version as a new one, the one before if none is named, and write it to the file.

        Where the file cannot be written it is applied nevertheless, with a note. Raises ``KeyError``
        for a version that is not known.
        """
        with self._lock:
            version = self.get(number) if number is not None else self._before()
            return self._settle(partial(self._roll_back, version))

    def _before(self) -> Version | None:
        older = (each for each in reversed(self.list()) if each.number < self.current.number)
        return next((each for each in older if each.text != self.current.text), None)

    def _roll_back(self, version: Version | None) -> Outcome:
        if version is None:
            raise ProxyError("there is no version before this one")
        text, name = version.text, f"version {version.number}"
        config = self._run(partial(configfile.parse, text.encode(), name, with_files=True)).config
        if text == self.current.text and text == self._file_text():
            return Outcome("unchanged", self.current.number)
        summary = f"back to {name}: {self._summary(self.current.text, text)}"
        become = partial(self._become, text, config, "rollback", summary=summary)
        try:
            with self._written(text):
                return become()
        except _UnwritableError as exc:
            outcome = become(notes=(f"{exc}; it is as it was",))
            # What the file says counts again when it changes.
            self._judged = self._judged._replace(waits_for={})
            return outcome

    def change(
        self, edits: Sequence[Edit], *, volatile: bool = False, if_match: int | None = None
    ) -> Outcome:
        """
        Change settings by their dotted names, all or none of them, and write them to the file.

        None as a value takes a setting away. A volatile change is not written, and lasts until the
        file is read again. Raises ``Conflict`` if the current version is not the one to match.
        """
        with self._lock:
            if if_match is not None and if_match != self.current.number:
                raise Conflict(self.current)
            return self._settle(partial(self._change, dict(edits), volatile=volatile))

    def _change(self, edits: Mapping[str, str | None], *, volatile: bool) -> Outcome:
        new = self._run(partial(self._edited, edits, volatile=volatile))
        become = partial(self._become, new.text, new.config, "ctl", base=new.base, overlay=new.overlay)
        if new.base == self._base and new.text == self.current.text:
            return Outcome("unchanged", self.current.number)
        if volatile:
            summary = self._summary(self.current.text, new.text)
            note = "not written to the file: the next time it is read, this is gone"
            return become(summary=f"{summary} (volatile)", notes=(note,))
        if self._file_text() != self._base:
            what = f"{self._path} has changes that are not in effect: put them right, and reload it, first"
            raise _RefusedError((what, *self._run(partial(_problems_of, self._path))))
        try:
            with self._written(new.base):
                return become(summary=self._summary(self._base, new.base))
        except _UnwritableError as exc:
            raise ProxyError(f"{exc}; a volatile change does not need it") from exc

    def _edited(self, edits: Mapping[str, str | None], *, volatile: bool) -> _Edited:
        """Work out a change, in a thread."""
        kept = {
            name: value
            for name, value in self._overlay.items()
            if not any(f"{name}.".startswith(f"{each}.") for each in edits)
        }
        base = self._base if volatile else edit(self._base, edits.items())
        overlay = {**kept, **edits} if volatile else kept
        if volatile:
            text = edit(self.current.text, edits.items())
        else:
            text = edit(base, overlay.items(), is_again=True)
        try:
            config = configfile.parse(text.encode(), "", with_files=True).config
        except InvalidConfigError as exc:
            raise _RefusedError(tuple(map(_without_line, exc.problems))) from exc
        return _Edited(base, overlay, text, config)

    def _file_text(self) -> str | None:
        data = self._run(partial(_read, self._path))
        return None if data is None else _text(data)

    @contextmanager
    def _written(self, text: str) -> Iterator[None]:
        """Have the file written; it gets back what it had if what follows fails."""
        data = text.encode()
        try:
            had = self._run(partial(_content, self._path))
            self._run(partial(files.replace, self._path, data))
        except OSError as exc:
            raise _UnwritableError(f"{self._path} could not be written: {reason_of(exc)}") from exc
        try:
            yield
        except Exception:
            # Not for one who merely does not wait for the end: by then it may be in effect.
            self._run(partial(_put_back, self._path, had))
            raise
        # The watcher will find it changed, and nothing that it does not know.
        self._judged = _Judged(_digest(data))

    # -- what they all come to

    def _settle(self, attempt: Callable[[], Outcome]) -> Outcome:
        """Attempt a change, and say what became of it."""
        try:
            with _politely():
                outcome = attempt()
        except ProxyError as exc:
            outcome = Outcome("rejected", self.current.number, problems=_problems(exc))
            for problem in outcome.problems:
                log.error("%s", problem)
            log.error("the configuration is not changed: version %d stays in effect", outcome.version)
        if outcome.status == "unchanged":
            log.info("the configuration is unchanged: version %d", outcome.version)
        for note in outcome.notes:
            log.warning("%s", note)
        self.outcomes[outcome.status] += 1
        return outcome

    def _become(
        self,
        text: str,
        config: ProxyConfig,
        source: str,
        *,
        base: str | None = None,
        overlay: Mapping[str, str | None] | None = None,
        summary: str = "",
        notes: tuple[str, ...] = (),
    ) -> Outcome:
        """Apply a configuration, and remember it; raises ``ProxyError``, and then nothing has changed."""
        tls = stamps(tls_files(config))  # before they are read
        summary = summary or self._summary(self.current.text, text)
        notes = (*notes, *self._apply(config), *self._too_late(config))
        if self._overlay and not overlay:
            notes = (*notes, f"volatile changes are gone: {', '.join(self._overlay)}")
        self.current = self._version(source, text, summary)
        self.current = replace(self.current, volatile=bool(overlay))
        self.config = config
        self._base, self._overlay = text if base is None else base, dict(overlay or {})
        self._tls = tls
        self._history.size = config.history_size
        log.info("version %d of the configuration (%s): %s", self.current.number, source, summary)
        self._is_new = False
        self._run(partial(self._history.add, self.current))
        return Outcome("applied", self.current.number, notes=notes)

    def _too_late(self, config: ProxyConfig) -> Iterator[str]:
        for name, key in (("proxy.state_dir", "state_dir"), ("control.listen_addr", "control_listen_addr")):
            if getattr(config, key) != getattr(self._started, key):
                yield f"{name} takes effect at the next start"

    def _summary(self, old: str, new: str) -> str:
        return self._run(partial(changes.summary, old, new))

    def _version(self, source: str, text: str, summary: str) -> Version:
        return Version(self._history.next_number(), time.time(), source, summary, text)

    def _run(self, function: Callable[[], T]) -> T:
        return self._workers.run(function)


@contextmanager
def _politely() -> Iterator[None]:
    """Keep the threads that work on a large file from holding up the connections."""
    # Every system call of the event loop gives the interpreter away, and has to get it back; and to
    # collect the garbage of a file takes longer than anybody should wait.
    sys.setswitchinterval(_TURN)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        sys.setswitchinterval(_USUAL_TURN)


def _digest(data: bytes | None) -> str:
    return "" if data is None else hashlib.sha256(data).hexdigest()


def _text(data: bytes) -> str:
    # What is not UTF-8 is in no text that was applied, so it is not equal to any.
    return data.decode("utf-8-sig", "surrogateescape")


def _read(path: str) -> bytes | None:
    try:
        return configfile.read(path).data
    except InvalidConfigError:
        return None


def _problems_of(path: str) -> tuple[str, ...]:
    try:
        configfile.load(path)
    except InvalidConfigError as exc:
        return _problems(exc)
    return ()


def _without_line(problem: Problem) -> str:
    """Say what is wrong with a text that nobody has seen: its lines would mean nothing."""
    return ".".join(filter(None, (problem.section, problem.key))) + f": {problem.message}"


def _content(path: str) -> bytes | None:
    """Give all that a file holds, to put it back; None if there is no file. Raises ``OSError``."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None


def _put_back(path: str, data: bytes | None) -> None:
    if data is None:
        os.unlink(os.path.realpath(path))  # a link that led to nothing is to do so again
    else:
        files.replace(path, data)


def _problems(exc: ProxyError) -> tuple[str, ...]:
    if isinstance(exc, _RefusedError):
        return exc.problems
    if isinstance(exc, InvalidConfigError):
        return tuple(map(str, exc.problems))
    if isinstance(exc, ConfigError) and exc.field:
        return (f"{exc.field}: {exc}",)
    return (str(exc),)
