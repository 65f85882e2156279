"""Right numbers in each rank of a command that is started with FAKE_CUDA_EMULATE=1."""

import os

if os.environ.get("FAKE_CUDA_EMULATE") and "RANK" in os.environ:
    import emulation

    emulation.enter()
