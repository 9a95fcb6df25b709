"""What this machine lacks, and whether a run fits into its memory."""
