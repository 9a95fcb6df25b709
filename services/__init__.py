"""The light package that learner and generator talk through: contracts, streams, weights and the HTTP app.

Imports neither torch, vllm nor ray.
"""
