"""
Make a candidate configuration: from the file, an old version, or changes to what is in effect.

This runs in a native thread, because reading and checking a large file takes a while, and disks may stall. So
nothing here changes what is in effect, and nothing writes to the log, which belongs to the event loop.
"""

from dataclasses import dataclass, replace

from proxy.config import ProxyConfig
from proxy.configfile.content import InvalidConfigError
from proxy.configtext import changes
from proxy.errors import ConfigError
from proxy.keeping.candidate import Candidate, Edits, Layers, RefusedError, State
from proxy.keeping.history import History, Version, version_before
from proxy.keeping.inifile import IniFile


@dataclass(frozen=True)
class Maker:
    """Makes candidates, and has all that there is to make them of beside what is asked for."""

    file: IniFile
    history: History
    started: ProxyConfig  # what the program was started with
    running: State

    def from_file(self, source: str, *, is_asked_for: bool = True) -> Candidate:
        """Read the file; where nobody asked for that, the same text is the same configuration."""
        text, loaded = self.file.judge()
        new = State(self.running.version, Layers.of(text), loaded, self.file.judged.waits_for)
        if text != self.running.layers.base or (self.running.layers.volatile and is_asked_for):
            return self._candidate(source, new, tuple(map(str, loaded.warnings)))
        # The text is as it was, but the files that it names may have changed.
        return Candidate(new, self._news(new)) if is_asked_for else self._unchanged()

    def again(self) -> Candidate:
        """Read the files again that what is in effect names; what the file says now is another matter."""
        text, number = self.running.version.text, self.running.version.number
        name = self.file.path if self.file.holds(text) else f"version {number}"
        new = self._parse(self.running.layers, name)
        return Candidate(new, self._news(new))

    def from_before(self) -> Candidate:
        """Go back to the version before; or have a rejected file hold what is in effect again."""
        # Where it does so already, a file that it names is at fault.
        if not self.file.is_rejected() or self.file.holds(self.running.layers.base):
            return self.from_version(version_before(self.running.version, self.history.versions))
        number = self.running.version.number
        return replace(
            self._unchanged(),
            is_for_file=True,
            notes=(f"{self.file.path} is as version {number} again",),
            without_file=f"version {number} is in effect all the same",
        )

    def from_version(self, old: Version) -> Candidate:
        """Make an old version a new one."""
        name = f"version {old.number}"
        new = self._parse(Layers.of(old.text), name)
        if old.text == self.running.version.text and self.file.holds(old.text):
            return self._unchanged()
        summary = f"back to {name}: {changes.summary(self.running.version.text, old.text)}"
        return replace(self._candidate("rollback", new, self._news(new), summary), is_for_file=True)

    def from_edits(self, edits: Edits, *, volatile: bool) -> Candidate:
        """Change settings; what is wrong with them is said without lines of a text that nobody has seen."""
        old = self.running.layers
        layers = old.with_volatile(edits) if volatile else old.with_edits(edits)
        try:
            new = self._parse(layers)
        except InvalidConfigError as exc:
            raise RefusedError(tuple(each.by_name for each in exc.problems)) from exc
        if (layers.base, layers.text) == (old.base, old.text):
            return self._unchanged()
        if volatile:
            summary = f"{changes.summary(old.text, layers.text)} (volatile)"
            note = "not written to the file: the next time it is read, this is gone"
            return self._candidate("ctl", new, (*self._news(new), note), summary)
        if not self.file.holds(old.base):
            what = "has changes that are not in effect: put them right, and reload it, first"
            raise RefusedError((f"{self.file.path} {what}", *self.file.problems()))
        candidate = self._candidate("ctl", new, self._news(new), changes.summary(old.base, layers.base))
        return replace(candidate, is_for_file=True, without_file="a volatile change does not need it")

    def _candidate(self, source: str, new: State, notes: tuple[str, ...], summary: str = "") -> Candidate:
        """Make a candidate for a new version."""
        config, layers = new.loaded.config, new.layers
        if config.state_dir != self.started.state_dir:
            raise ConfigError(
                "proxy.state_dir",
                "cannot change while the server runs, as ctl would look for it in vain: "
                "edit the file, and restart the server",
            )
        said = self.running.loaded.config.control_listen_addr
        if config.control_listen_addr not in (self.started.control_listen_addr, said):
            notes += ("control.listen_addr takes effect at the next start",)
        gone = self.running.layers.volatile
        if gone and not layers.volatile:
            notes += (f"volatile changes are gone: {', '.join(gone)}",)
        summary = summary or changes.summary(self.running.version.text, layers.text)
        version = self.history.make(source, summary, layers.text, volatile=bool(layers.volatile))
        return Candidate(replace(new, version=version), notes)

    def _news(self, new: State) -> tuple[str, ...]:
        """Say what there was no warning of until now; who changes one thing need not hear of all others."""
        known = self.running.warnings
        return tuple(each for each in new.warnings if each not in known)

    def _unchanged(self) -> Candidate:
        return Candidate(self.running, is_to_apply=False)

    def _parse(self, layers: Layers, name: str = "") -> State:
        return State(self.running.version, layers, *self.file.parse(layers.text, name))
