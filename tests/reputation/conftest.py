"""How hard the properties are tested: 200 examples each, more with HYPOTHESIS_EXAMPLES=5000."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "reputation",
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "200")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("reputation")
