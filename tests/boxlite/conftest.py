"""What is asserted in the tools of these tests is explained like what is asserted in a test."""

import pytest

pytest.register_assert_rewrite(
    "tests.boxlite.client", "tests.boxlite.recorded", "tests.boxlite.replay", "tests.boxlite.rig"
)
