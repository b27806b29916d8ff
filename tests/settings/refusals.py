"""What is said of values that cannot be."""

import pytest

from proxy.settings.checked import SettingsError


def fields_of(caught: pytest.ExceptionInfo[SettingsError]) -> set[str]:
    """Name the settings that a value was refused for."""
    return {each.field for each in caught.value.problems}
