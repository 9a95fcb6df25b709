"""Names that the launcher of the ranks and the ranks agree on. Imports nothing, so that the launcher stays light."""

RANK, SIZE, STORE = "SEPT_RANK", "SEPT_RANKS", "SEPT_RANKS_STORE"
"""Environment variables that tell each process its number, the number of processes, and the file where they meet."""
