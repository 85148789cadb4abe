"""How long the tests of this folder look: with BULKHEAD_TEST_FUZZ_SECONDS for longer, and in CI always the same way."""

from __future__ import annotations

import hypothesis

from tests.properties import runs

LONG_EXAMPLES = 5000

if runs.SECONDS:  # in CI hypothesis takes its profile `ci` by itself, which has no randomness
    hypothesis.settings.register_profile("long", max_examples=LONG_EXAMPLES)
    hypothesis.settings.load_profile("long")
