"""Controls: rewards that know nothing of an answer's worth. What gains by them would gain without a signal."""
