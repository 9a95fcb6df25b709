"""Inference engines behind one protocol: vLLM, and a scripted one for tests."""
