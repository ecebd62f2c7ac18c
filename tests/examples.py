"""How many random cases the tests try: their own number, times WDMOE_EXAMPLES_FACTOR."""

import os

from hypothesis import HealthCheck, settings

FACTOR = int(os.environ.get("WDMOE_EXAMPLES_FACTOR", "1"))


def seeds(count: int) -> range:
    """-> the seeds of a test that draws its cases itself."""
    return range(count * FACTOR)


def load_hypothesis_profile() -> None:
    """No deadline per example, and no complaint of slow ones: both measure how busy the machine is."""
    usual = settings.default
    slow = {HealthCheck.too_slow, *usual.suppress_health_check}
    settings.register_profile("wdmoe", usual, deadline=None, suppress_health_check=sorted(slow, key=str))
    settings.load_profile("wdmoe")


def multiply_examples(test) -> None:
    """Multiply the examples of a hypothesis test, whether the number is its own or the profile's."""
    own = test._hypothesis_internal_use_settings  # the settings a test was decorated with are not public
    test._hypothesis_internal_use_settings = settings(own, max_examples=own.max_examples * FACTOR)
