"""No test of this floor blocks for long."""

from tests.net.conftest import _patience as _patience
from tests.net.conftest import pair as pair
