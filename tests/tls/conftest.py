"""As below: nothing here blocks for long."""

from tests.net.conftest import _patience as _patience
from tests.net.conftest import pair as pair
