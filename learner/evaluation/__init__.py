"""How good the answers are: grading by math-verify, pass@k with its intervals. Knows neither models nor torch."""
