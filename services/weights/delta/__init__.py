"""Exact differences between weight versions in few bytes.

The coding uses what the receiver already has. AdamW moves every weight by about the learning rate, so whether the
rounded value changes depends on the spacing of floats around the old value: on its exponent. Within one exponent class
changes are nearly independent, so their positions cost N H(k/N) bits (next to nothing where all or none change), and
the new value is coded as its distance from the old one, counted in representable floats away from zero: a weight that
has drifted keeps its direction.

    delta = encode(parent, child)            # learner: two versions with equal names, dtypes and shapes
    for patch in decode(parent, delta):      # generator: one patch per changed tensor
        apply(patch, tensors[patch.name])    # in place on raw bytes
"""

from services.weights.delta.decoder import Patch, apply, decode
from services.weights.delta.encoder import encode

__all__ = ["Patch", "apply", "decode", "encode"]
