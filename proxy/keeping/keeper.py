"""
The configuration in effect, its history, and the one way to change it.

Every change comes here: from the watcher, a signal, the control interface. Each says how a
``Candidate`` is made, and ``_commit`` does the rest. What must never be violated:

- One at a time, under the lock, and to its end: nobody sees half a change.
- A ``Candidate`` is made in a native thread (``making.py``), which changes nothing but what is known of the
  file. To apply it is for whoever runs the servers.
- The file is written before a candidate is applied, and put back if that fails; so the two change together
  or not at all. Where they differ all the same, ``trouble`` says why until they do not (``inifile.py``).
- What is in effect is said to be another (``_running``) when nothing can fail any more.
- Certificates and users in effect are renewed whatever the file says: these are asked apart.
- Files that a configuration names are fingerprinted before they are read: one that is replaced meanwhile is
  another one at the next look. After it, a user who was taken out would stay in until the next change.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from gevent.lock import BoundedSemaphore

from proxy.config import ProxyConfig
from proxy.configfile.content import InvalidConfigError
from proxy.configfile.dump import dump
from proxy.configtext import changes
from proxy.configtext.document import Edit, redact
from proxy.errors import Failure, ProxyError, reason_of
from proxy.keeping import files, fingerprint
from proxy.keeping.candidate import (
    Candidate,
    Conflict,
    Layers,
    Outcome,
    RefusedError,
    State,
    problems_of,
)
from proxy.keeping.fingerprint import Fingerprint
from proxy.keeping.history import History, Version
from proxy.keeping.inifile import IniFile, Trouble, still
from proxy.keeping.making import Maker
from proxy.net.threads import NativeThreads, politely
from proxy.trust import Trust

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Apply = Callable[[ProxyConfig], tuple[str, ...]]


class Keeper:
    """
    Keeps the configuration of one file.

    ``start`` first: it says what to serve. ``record`` when that is being served.
    """

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
        self._file = IniFile(path)
        self._history = History(state_dir and state_dir / "history", history_size, trust)
        self._apply = apply
        self._lock = BoundedSemaphore()
        self._workers = NativeThreads(1)
        self._running: State
        self._is_new = False
        self._trouble_beside: Trouble | None = None  # with files that the one in effect names
        self._digest: tuple[ProxyConfig | None, str] = (None, "")

    @property
    def trouble(self) -> Trouble | None:
        """Why the file, with those that it names, is not what is in effect, as long as it is not."""
        return self._file.judged.trouble or self._trouble_beside

    @property
    def current(self) -> Version:
        """The version in effect."""
        return self._running.version

    @property
    def config(self) -> ProxyConfig:
        """The configuration in effect."""
        return self._running.loaded.config

    # -- the first one

    def start(self, *, last_good: bool = False) -> tuple[str, ...]:
        """
        Read the file, and return what its author should know.

        Raises ``InvalidConfigError`` for an invalid file, unless ``last_good`` is set and a valid
        version exists.
        """
        try:
            text, loaded = self._file.judge()
        except InvalidConfigError as exc:
            if not last_good or not self._take_last_good():
                raise
            self._file.note(problems_of(exc)[0])
            instead = f"starting with version {self.current.number} instead, the last good one"
            warnings = (*problems_of(exc), instead)
        else:
            self._running = State(self._first(text), Layers.of(text), loaded, self._file.judged.waits_for)
            self._file.accept()
            warnings = tuple(map(str, loaded.warnings))
        self._history.size = self.config.history_size
        self._started = self.config
        return warnings

    def _first(self, text: str) -> Version:
        last = next(reversed(self._history.versions), None)
        self._is_new = not last or last.volatile or last.text != text
        if last and not self._is_new:
            return last
        summary = changes.summary(last.text, text) if last else "the first version"
        return self._history.make("start", summary, text)

    def _take_last_good(self) -> bool:
        for version in reversed(self._history.versions):
            if version.volatile:
                continue
            try:
                self._running = State(version, Layers.of(version.text), *self._file.parse(version.text))
            except InvalidConfigError as exc:
                # Of the users in their file; and the versions before may be of a time without logins.
                if any(each.path for each in exc.problems):
                    return False
            else:
                return True
        return False

    def record(self) -> None:
        """Remember the first version, now that it is known to work."""
        with self._lock:
            if self._is_new:
                self._is_new = False
                self._remember()

    def _remember(self) -> None:
        # Whoever works in a thread says nothing: the log is the event loop's.
        note = self._run(self._history.add, self.current)
        if note:
            log.warning("%s", note)

    def catch_up(self) -> None:
        """Write the versions that could not be written: now that it ends there may be room again."""
        with self._lock:
            self._run(self._history.catch_up)

    def leave_folder(self) -> None:
        """Have nothing more to do with the folder: it is another server's. Before ``record``."""
        self._history = History(None, self.config.history_size)
        # Without those that may be the other one's.
        self._running = replace(self._running, version=self._first(self.current.text))

    # -- looking back

    def versions(self) -> list[Version]:
        """List the versions that can be gone back to, the oldest first; the current one is the last."""
        known = self._history.versions
        return known if self.current in known else [*known, self.current]

    def get(self, number: int) -> Version:
        """Give one version; raises ``KeyError``."""
        for version in self.versions():
            if version.number == number:
                return version
        raise KeyError(number)

    def redacted(self, version: Version) -> str:
        """Give the text of a version without its secrets."""
        return "\n".join(seen for seen, _ in self._run(redact, version.text))

    def diff(self, old: Version, new: Version) -> str:
        """Compare two versions, without their secrets."""
        return self._run(changes.diff, old.text, new.text, f"version {old.number}", f"version {new.number}")

    def shown(self) -> str:
        """Give what is in effect, with all defaults and without secrets, as the text of a file."""
        return self._run(dump, self.config)

    def digest(self) -> str:
        """Give a short hash of what is in effect, without its secrets: equal files have equal ones."""
        if self._digest[0] is not self.config:
            self._digest = self.config, hashlib.sha256(self.shown().encode()).hexdigest()[:12]
        return self._digest[1]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have nothing changed meanwhile; raises ``ProxyError`` if a new start would read something else."""
        with self._lock:
            layers = self._running.layers
            if layers.volatile:
                raise ProxyError(
                    "volatile changes are in effect, and would be lost: write them, or unset them"
                )
            if self.trouble:
                raise ProxyError(f"the file is not what is in effect: {self.trouble.problem}")
            if not self._run(self._file.holds, layers.base):
                raise ProxyError(f"{self._file.path} has changes that are not in effect: reload it first")
            yield

    # -- the ways to a change

    def reload(self, source: str = "file") -> Outcome:
        """Read the file now, whatever was said of it before, and anew the files that it names."""
        with self._lock:
            return self._commit(partial(self._maker.from_file, source), is_of_file=True, cure=True)

    def rollback(self, number: int | None = None) -> Outcome:
        """
        Apply an old version as a new one, and write it to the file.

        If none is named, it is the one before; a file that is rejected gets back what is in effect.
        Where the file cannot be written a version is applied nevertheless, with a note. Raises
        ``KeyError`` for one that is not known.
        """
        with self._lock:
            maker, old = self._maker, None if number is None else self.get(number)
            return self._commit(partial(maker.from_version, old) if old else maker.from_before)

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
            return self._commit(partial(self._maker.from_edits, dict(edits), volatile=volatile), cure=True)

    def reload_if_changed(self) -> Outcome | None:
        """
        Reload the file if it has changed, and the files that are in effect if they have; None if nothing has.

        Raises ``ProxyError`` where that cannot be done now, for want of descriptors or the like.
        """
        outcome = None
        with self._lock:
            if self._run(self._file.is_new):
                from_file = partial(self._maker.from_file, "file", is_asked_for=False)
                outcome = self._commit(from_file, is_of_file=True, cure=True, is_asked_for=False)
            if not self.trouble and self._run(self._file.is_left_behind):
                what = f"{self._file.path} was replaced where it is mounted from, which is not seen here"
                self._file.note(f"{what}: mount its folder, and restart")
                log.error("%s: mount its folder, and restart", what)
            # Whatever became of the file: certificates and users are renewed beside a broken one too.
            taken = self._run(fingerprint.take, self._running.files)
            if taken != self._running.files:
                outcome = self._commit(self._maker.again, is_asked_for=False)
                if outcome.status == "rejected":  # which is said once, until they change again
                    self._running = replace(self._running, files=taken)
                    self._trouble_beside = still(self._trouble_beside, outcome.problems[0])
        return outcome

    def fingerprint(self) -> Fingerprint:
        """Fingerprint what to look at: the file, those that it names, and those that it waits for."""
        watched = [self._file.path, *self._running.files, *self._file.judged.waits_for]
        return self._run(fingerprint.take, watched)

    # -- what they all come to

    def _commit(
        self,
        make: Callable[[], Candidate],
        *,
        is_of_file: bool = False,
        cure: bool = False,
        is_asked_for: bool = True,
    ) -> Outcome:
        """
        Have a candidate in the file and in effect, or leave both as they are, and say what became of it.

        One that ``is_of_file`` is what the file says. Says also what is the ``cure`` for a file that is
        rejected. A shortage of our own is raised if nobody waits for an answer.
        """
        file, before, running = self._file, self._file.judged, self._running
        undo = unwritten = None
        try:
            with politely():
                new = self._run(make)
                if new.is_for_file:
                    try:
                        undo = self._run(files.exchange, file.path, new.state.layers.base.encode())
                    except OSError as exc:
                        unwritten = ProxyError(f"{file.path} could not be written: {reason_of(exc)}")
                        if new.without_file:
                            raise ProxyError(f"{unwritten}; {new.without_file}") from exc
                try:
                    told = self._apply(new.state.loaded.config) if new.is_to_apply else ()
                except Exception as exc:
                    # Not for one who merely does not wait for the end: by then it may be in effect.
                    if is_of_file:
                        file.note(f"internal error: {type(exc).__name__}")  # or what is said below
                    if undo:
                        self._put_back(undo, exc)
                    raise
        except ProxyError as exc:
            if exc.failure is Failure.LIMIT:
                file.judged = before
                if not is_asked_for:
                    raise
            elif is_of_file:
                file.note(problems_of(exc)[0])
            outcome = Outcome("rejected", self.current.number, problems_of(exc))
            # Then what it names is at fault, or what is in effect was to be changed.
            is_same = exc.failure is not Failure.LIMIT and self._run(file.holds, running.layers.base)
            is_beside = (
                is_same  # else another file names another one
                and isinstance(exc, InvalidConfigError)
                and all(each.path != file.path for each in exc.problems)
            )
            if is_of_file and is_beside:  # which is so whatever the file itself says
                self._trouble_beside = still(self._trouble_beside, outcome.problems[0])
            elif cure and file.judged.is_rejected and not is_same:
                note = f"proxy-server ctl rollback puts version {outcome.version} back into the file"
                outcome = replace(outcome, notes=(note,))
            return self._tell(outcome)
        # From here on it is in effect.
        self._running = new.state
        if new.is_to_apply or is_of_file:  # so all files that it names have been read
            self._trouble_beside = None
        notes = told + new.notes
        if undo:
            file.accept(new.state.layers.base)
        elif is_of_file:
            file.accept()
        elif unwritten:
            # Not what the file says counts, but that this is over until it says something else.
            file.accept()
            file.note(str(unwritten))
            notes = (f"{unwritten}; it is as it was", *notes)
        version = new.state.version
        is_other = version is not running.version or new.state.files != running.files
        if version is not running.version:
            self._history.size = self.config.history_size
            log.info(
                "version %d of the configuration (%s): %s", version.number, version.source, version.summary
            )
            self._remember()
        elif is_other:
            notes += ("the files that it names were read again",)
        return self._tell(Outcome("applied" if is_other else "unchanged", self.current.number, notes=notes))

    def _put_back(self, undo: Callable[[], None], cause: Exception) -> None:
        try:
            self._run(undo)
        except OSError as exc:
            left = f"{self._file.path} could not be put back, and holds what was refused: {reason_of(exc)}"
            self._file.note(left)
            raise RefusedError((*problems_of(cause), left)) from cause

    def _tell(self, outcome: Outcome) -> Outcome:
        for problem in outcome.problems:
            log.error("%s", problem)
        if outcome.status == "rejected":
            log.error("the configuration is not changed: version %d stays in effect", outcome.version)
        if outcome.status == "unchanged":
            log.info("the configuration is unchanged: version %d", outcome.version)
        for note in outcome.notes:
            log.warning("%s", note)
        self.outcomes[outcome.status] += 1
        return outcome

    @property
    def _maker(self) -> Maker:
        return Maker(self._file, self._history, self._started, self._running)

    def _run(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        return self._workers.run(partial(function, *arguments, **options))
