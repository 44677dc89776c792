"""What holds for all tests."""

import os

# Before torch is loaded: the workers share the cores, and sums over another number of threads round differently.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

# The same examples each time, so that a change that breaks something is the one that is tested; no deadline, because
# emulators share the cores with the other workers.
settings.register_profile("rldistill", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("rldistill")
