"""Whether an answer equals the reference answer, within limits of time and memory."""
