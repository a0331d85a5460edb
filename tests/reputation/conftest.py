"""How hard the properties are tested: 30 examples each, in CI 200, with HYPOTHESIS_EXAMPLES as many as wanted."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "reputation",
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "200" if "CI" in os.environ else "30")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("reputation")
