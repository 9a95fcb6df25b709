"""What whoever starts a learner and the learner agree on. Imports nothing, so that the launchers stay light."""

RANK, SIZE, STORE = "SEPT_RANK", "SEPT_RANKS", "SEPT_RANKS_STORE"
"""Environment variables that tell each process its number, the number of processes, and the file where they meet."""

ON_CPU = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"}
"""Environment of a learner on CPU: its malloc has no bins for small blocks. Every tensor is aligned, which cuts a small
block off each side of it; a bin would keep those, and the tensor's place would not join what is free beside it.
Measured on a model of 135 M parameters: 0.25 GB of 3.4 less at the peak, as fast."""
