"""The learner: prompts to tasks, rollouts to optimizer steps, steps to published versions. Never imports generator."""
