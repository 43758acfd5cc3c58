"""How Hypothesis draws here: the same examples in every run, unless `HYPOTHESIS_PROFILE=explore` asks for new ones."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", derandomize=True, max_examples=25, **COMMON)
settings.register_profile("few", derandomize=True, max_examples=8, **COMMON)  # benchmarks/mutation.py
settings.register_profile("explore", max_examples=1000, print_blob=True, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
