"""What the tests of the core share: asserts that explain themselves, and hypothesis without a clock."""

import hypothesis
import pytest

pytest.register_assert_rewrite(
    "tests.serving.strategies", "tests.serving.transport_contract", "tests.serving.quarantine_contract"
)

# a busy machine is no failure
hypothesis.settings.register_profile(
    "patient", deadline=None, max_examples=60, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")
