"""
The configuration in effect, how it came about, and the one way to change it.

Whatever wants a change comes here: the watcher, a signal, the control interface. One at a time is
read, judged, applied and remembered. What fails leaves everything as it was, the file included.

Reading and judging a large file takes a while, so native threads do it; applying is for whoever runs
the servers.
"""

import gc
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from gevent.lock import BoundedSemaphore

from proxy.config import ProxyConfig
from proxy.configfile import changes, load
from proxy.configfile.document import Edit, redact
from proxy.configfile.load import InvalidConfigError, Loaded
from proxy.configfile.trust import Trust
from proxy.control.history import History, Version
from proxy.control.ondisk import OnDisk, UnwritableError
from proxy.control.outcome import Conflict, Outcome, RefusedError, Trouble, problems_of, refused_by_name
from proxy.control.overlay import Edits, Layers, bare
from proxy.control.stamps import Stamps, stamps, tls_files
from proxy.errors import ConfigError, Failure, ProxyError, reason_of
from proxy.net.threads import Workers

log = logging.getLogger(__name__)

_USUAL_TURN = sys.getswitchinterval()
_TURN = 0.0005  # seconds for which a thread may keep the interpreter while others wait for it

T = TypeVar("T")
Apply = Callable[[ProxyConfig], tuple[str, ...]]


class Versions:
    """
    The versions of one file's configuration.

    ``start`` first: it says what to serve. ``record`` when that is being served.
    """

    current: Version
    config: ProxyConfig

    def __init__(
        self,
        path: str,
        state_dir: Path | None,
        history_size: int,
        apply: Apply,
        trust: Trust | None = None,
    ) -> None:
        """
        Take what makes a configuration the running one; without a folder, versions are only in memory.

        ``apply`` returns what it has to say, or raises ``ProxyError``; then it has changed nothing.
        """
        self.outcomes: Counter[str] = Counter()
        self._file = OnDisk(path)
        self._history = History(state_dir and state_dir / "history", history_size, trust)
        self._apply = apply
        self._lock = BoundedSemaphore()
        self._workers = Workers(1)
        self._layers = bare("")  # the text in effect, and what the file held when it was read or written
        self._tls: Stamps = {}  # the TLS files as they were when they were last applied,
        self._tried_tls: Stamps = {}  # and as they were when that was last tried
        self._is_new = False
        self.trouble: Trouble | None = None  # with the file, while it is not what is in effect

    # -- the first one

    def start(self, *, last_good: bool = False) -> tuple[str, ...]:
        """
        Read the file, and return what its author should know.

        Raises ``InvalidConfigError`` for an invalid file, unless it may be, and can be, the
        ``last_good`` version instead.
        """
        try:
            text, loaded = self._file.judge()
        except InvalidConfigError as exc:
            warnings = tuple(map(str, exc.problems))
            if not last_good or not self._take_last_good():
                raise
            self._note_trouble(exc)
            warnings += (f"starting with version {self.current.number} instead, the last good one",)
        else:
            self._file.accept()
            self.config, self._layers = loaded.config, bare(text)
            warnings = tuple(map(str, loaded.warnings))
            self._take_first(text)
        self._tls = stamps(tls_files(self.config))
        self._history.size = self.config.history_size
        self._started = self.config
        return warnings

    def _take_first(self, text: str) -> None:
        last = next(iter(self._history.versions[-1:]), None)
        if last and last.text == text:
            self.current = last
            return
        summary = changes.summary(last.text, text) if last else "the first version"
        self.current = self._version("start", text, summary)
        self._is_new = True

    def _take_last_good(self) -> bool:
        for version in reversed(self._history.versions):
            with suppress(InvalidConfigError):
                if not version.volatile:
                    self.config = self._parse(version.text)
                    self.current, self._layers = version, bare(version.text)
                    return True
        return False

    def record(self) -> None:
        """Remember the first version, now that it is known to work."""
        with self._lock:
            if self._is_new:
                self._remember()

    def catch_up(self) -> None:
        """Write the versions that could not be written: now that it ends there may be room again."""
        with self._lock:
            self._run(self._history.catch_up)

    def _remember(self) -> None:
        self._is_new = False
        # Whoever works in a thread says nothing: the log is the event loop's.
        note = self._run(partial(self._history.add, self.current))
        if note:
            log.warning("%s", note)

    def leave_folder(self) -> None:
        """Have nothing more to do with the folder: it is another server's. Before ``record``."""
        self._history = History(None, self.config.history_size)
        self._take_first(self.current.text)  # without those that may be the other one's

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
        text = self.get(number).text
        return "\n".join(seen for seen, _ in self._run(partial(redact, text)))

    def diff(self, a: int, b: int) -> str:
        """Compare two versions, without their secrets; raises ``KeyError``."""
        old, new = self.get(a).text, self.get(b).text
        return self._run(partial(changes.diff, old, new, f"version {a}", f"version {b}"))

    def shown(self) -> str:
        """Give what is in effect, with all defaults and without secrets, as the text of a file."""
        return self._run(partial(load.dump, self.config))

    # -- the file

    def reload(self, source: str = "file") -> Outcome:
        """Read the file now, whatever was said of it before, and anew the files that it names."""
        with self._lock:
            return self._settle(partial(self._reload, source, is_asked_for=True), cure=True)

    def look(self) -> Outcome | None:
        """
        Reload what is not as it was when it was last judged: the file, its TLS files; None if all is.

        Raises ``ProxyError`` where that is not to be told now, for want of descriptors or the like.
        """
        with self._lock:
            try:
                return self._look()
            except ProxyError:
                self._file.forget()
                self._tried_tls = {}
                raise

    def _look(self) -> Outcome | None:
        outcome = None
        if self._run(self._file.may_be_judged_otherwise):
            outcome = self._settle(
                partial(self._reload, "file", is_asked_for=False), cure=True, is_asked_for=False
            )
        if self._run(self._file.is_left_behind) and not self.trouble:
            what = f"{self._file.path} was replaced where it is mounted from, which is not seen here"
            self.trouble = Trouble(f"{what}: mount its folder, and start anew", time.time())
            log.error("%s", self.trouble.problem)
        # Whatever became of the file: certificates are renewed beside a broken one too.
        tls = stamps(tls_files(self.config))
        if tls not in (self._tls, self._tried_tls):
            self._tried_tls = tls
            outcome = self._settle(self._renew, is_asked_for=False)
        return outcome

    def files(self) -> Sequence[str]:
        """List what to look at: the file, the TLS files in effect, and those that it waits for."""
        return [self._file.path, *sorted({*tls_files(self.config), *self._file.waits_for})]

    def _reload(self, source: str, *, is_asked_for: bool) -> Outcome:
        # Also a text that is as it was: the files that it names may have changed.
        try:
            text, loaded = self._run(self._file.judge)
            outcome = self._follow(text, loaded, source, is_asked_for=is_asked_for)
        except ProxyError as exc:
            if exc.failure is not Failure.LIMIT:  # that is no fault of the file
                self._note_trouble(exc)
            raise
        self._file.accept()
        self.trouble = None
        return outcome

    def _note_trouble(self, exc: ProxyError) -> None:
        since = self.trouble.since if self.trouble else time.time()
        self.trouble = Trouble(problems_of(exc)[0], since)

    def _follow(self, text: str, loaded: Loaded, source: str, *, is_asked_for: bool) -> Outcome:
        if text != self._layers.base or (self._layers.volatile and is_asked_for):
            return self._become(bare(text), loaded.config, source, notes=tuple(map(str, loaded.warnings)))
        if is_asked_for:
            return self._apply_again()
        return Outcome("unchanged", self.current.number)

    def _renew(self) -> Outcome:
        """Read the TLS files of what is in effect again; what the file says now is another matter."""
        text = self.current.text
        is_in_file = self._run(partial(self._file.holds, text))
        self._configured(text, self._file.path if is_in_file else f"version {self.current.number}")
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
        Apply an old version as a new one, and write it to the file.

        If none is named, it is the one before; a file that is rejected gets back what is in effect.
        Where the file cannot be written a version is applied nevertheless, with a note. Raises
        ``KeyError`` for one that is not known.
        """
        with self._lock:
            if number is None:
                return self._settle(self._step_back)
            return self._settle(partial(self._roll_back, self.get(number)))

    def _step_back(self) -> Outcome:
        if self._run(self._is_file_rejected):
            return self._restore_file()
        version = self._before()
        if version is None:
            raise ProxyError("there is no version before this one")
        return self._roll_back(version)

    def _is_file_rejected(self) -> bool:
        """Tell whether the file is, or would be; it may have changed since it was judged."""
        if self._file.may_be_judged_otherwise():
            return bool(self._file.problems())
        return self._file.is_rejected

    def _restore_file(self) -> Outcome:
        """Have the file hold what is in effect, apart from what is volatile."""
        number = self.current.number
        try:
            self._run(partial(self._file.write, self._layers.base))
        except UnwritableError as exc:
            raise ProxyError(f"{exc}; version {number} is in effect all the same") from exc
        self._file.expect(self._layers.base)
        self.trouble = None
        return Outcome("unchanged", number, notes=(f"{self._file.path} is as version {number} again",))

    def _before(self) -> Version | None:
        """Find the one before; after a rollback, that is before the one which it went back to."""
        newest_first = self.list()[::-1]
        here: Version | None = self.current
        while here and here.source == "rollback":
            number = here.number
            here = next((one for one in newest_first if one.number < number and one.text == here.text), None)
        older = (one for one in newest_first if here and one.number < here.number)
        return next((one for one in older if one.text != self.current.text), None)

    def _roll_back(self, version: Version) -> Outcome:
        text, name = version.text, f"version {version.number}"
        config = self._configured(text, name)
        if text == self.current.text and self._run(partial(self._file.holds, text)):
            return Outcome("unchanged", self.current.number)
        summary = f"back to {name}: {self._summary(self.current.text, text)}"
        become = partial(self._become, bare(text), config, "rollback", summary=summary)
        try:
            return self._write_and(text, become)
        except UnwritableError as exc:
            outcome = become(notes=(f"{exc}; it is as it was",))
            self._file.accept()  # not what it says, but that this is over until it says something else
            self._note_trouble(exc)
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
            return self._settle(partial(self._change, dict(edits), volatile=volatile), cure=True)

    def _change(self, edits: Edits, *, volatile: bool) -> Outcome:
        old = self._layers
        new = self._run(partial(old.cover if volatile else old.change, edits))
        try:
            config = self._configured(new.text)
        except InvalidConfigError as exc:
            raise refused_by_name(exc) from exc
        if (new.base, new.text) == (old.base, old.text):
            return Outcome("unchanged", self.current.number)
        become = partial(self._become, new, config, "ctl")
        if volatile:
            summary = f"{self._summary(old.text, new.text)} (volatile)"
            note = "not written to the file: the next time it is read, this is gone"
            return become(summary=summary, notes=(note,))
        if not self._run(partial(self._file.holds, old.base)):
            what = "has changes that are not in effect: put them right, and reload it, first"
            raise RefusedError((f"{self._file.path} {what}", *self._run(self._file.problems)))
        try:
            return self._write_and(new.base, partial(become, summary=self._summary(old.base, new.base)))
        except UnwritableError as exc:
            raise ProxyError(f"{exc}; a volatile change does not need it") from exc

    def _write_and(self, text: str, become: Callable[[], Outcome]) -> Outcome:
        """Have the file written; it gets back what it had if what follows fails."""
        undo = self._run(partial(self._file.write, text))
        try:
            outcome = become()
        except Exception as exc:
            # Not for one who merely does not wait for the end: by then it may be in effect.
            self._put_back(undo, exc)
            raise
        # The watcher will find it changed, and nothing that it does not know.
        self._file.expect(text)
        self.trouble = None
        return outcome

    def _put_back(self, undo: Callable[[], None], cause: Exception) -> None:
        try:
            self._run(undo)
        except OSError as exc:
            left = f"{self._file.path} could not be put back, and holds what was refused: {reason_of(exc)}"
            self.trouble = Trouble(left, time.time())
            raise RefusedError((*problems_of(cause), left)) from cause

    # -- what they all come to

    def _settle(
        self, attempt: Callable[[], Outcome], *, cure: bool = False, is_asked_for: bool = True
    ) -> Outcome:
        """
        Attempt a change, and say what became of it; and the cure for a file that is rejected.

        A shortage of our own is raised if nobody waits for an answer.
        """
        try:
            with _politely():
                outcome = attempt()
        except ProxyError as exc:
            if exc.failure is Failure.LIMIT and not is_asked_for:
                raise
            outcome = Outcome("rejected", self.current.number, problems=problems_of(exc))
            for problem in outcome.problems:
                log.error("%s", problem)
            log.error("the configuration is not changed: version %d stays in effect", outcome.version)
            if cure and self._file.is_rejected:
                note = f"proxy-server ctl rollback puts version {outcome.version} back into the file"
                outcome = replace(outcome, notes=(note,))
        if outcome.status == "unchanged":
            log.info("the configuration is unchanged: version %d", outcome.version)
        for note in outcome.notes:
            log.warning("%s", note)
        self.outcomes[outcome.status] += 1
        return outcome

    def _become(
        self,
        layers: Layers,
        config: ProxyConfig,
        source: str,
        *,
        summary: str = "",
        notes: tuple[str, ...] = (),
    ) -> Outcome:
        """Apply a configuration, and remember it; raises ``ProxyError``, and then nothing has changed."""
        if config.state_dir != self._started.state_dir:
            raise ConfigError(
                "proxy.state_dir",
                "cannot change while the server runs, as ctl would look for it in vain: "
                "edit the file, and restart the server",
            )
        tls = stamps(tls_files(config))  # before they are read
        summary = summary or self._summary(self.current.text, layers.text)
        notes = (*notes, *self._apply(config), *self._too_late(config))
        if self._layers.volatile and not layers.volatile:
            notes = (*notes, f"volatile changes are gone: {', '.join(self._layers.volatile)}")
        self.current = self._version(source, layers.text, summary)
        self.current = replace(self.current, volatile=bool(layers.volatile))
        self.config, self._layers, self._tls = config, layers, tls
        self._history.size = config.history_size
        log.info("version %d of the configuration (%s): %s", self.current.number, source, summary)
        self._remember()
        return Outcome("applied", self.current.number, notes=notes)

    def _too_late(self, config: ProxyConfig) -> Iterator[str]:
        if config.control_listen_addr != self._started.control_listen_addr:
            yield "control.listen_addr takes effect at the next start"

    def _configured(self, text: str, name: str = "") -> ProxyConfig:
        """Read the text of a version; raises ``InvalidConfigError``."""
        return self._run(partial(self._parse, text, name))

    def _parse(self, text: str, name: str = "") -> ProxyConfig:
        folder = load.folder_of(self._file.path)
        return load.parse(text.encode(), name, folder=folder, with_files=True).config

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
