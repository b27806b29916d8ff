"""
The text that stands in the file, and volatile changes that lie over it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from proxy.configfile.document import edit

Edits = Mapping[str, str | None]  # values by their dotted names; None takes a setting away


@dataclass(frozen=True)
class Layers:
    """What the file holds, what lies over it, and the text of both together, which is in effect."""

    base: str
    text: str
    volatile: Edits = field(default_factory=dict)

    def change(self, edits: Edits) -> "Layers":
        """
        Change what the file holds; what lies over the same settings goes away.

        Raises ``ConfigError`` for what cannot be written.
        """
        base, kept = edit(self.base, edits.items()), self._beside(edits)
        return Layers(base, edit(base, kept.items(), is_again=True), kept)

    def cover(self, edits: Edits) -> "Layers":
        """Lay changes over what the file holds. Raises ``ConfigError`` for what cannot be written."""
        return Layers(self.base, edit(self.text, edits.items()), {**self._beside(edits), **edits})

    def _beside(self, edits: Edits) -> Edits:
        """List the volatile changes of other settings, and of other sections."""
        return {
            name: value
            for name, value in self.volatile.items()
            if not any(f"{name}.".startswith(f"{each}.") for each in edits)
        }


def bare(text: str) -> Layers:
    """Make what a file holds, with nothing over it."""
    return Layers(text, text)
