"""Exact differences between weight versions in few bytes.

The coding uses what the receiver already has. AdamW moves every weight by about the learning rate, so whether the
rounded value changes depends on the spacing of floats around the old value: on its exponent. Within one exponent class
changes are nearly independent, so their positions cost N H(k/N) bits (next to nothing where all or none change), and
the new value is coded as its distance from the old one, counted in representable floats away from zero: a weight that
has drifted keeps its direction.

    delta = encode(parent, child)            # learner: two versions with equal names, dtypes and shapes
    for patch in decode(parent, delta):      # generator: one patch per changed tensor
        apply(patch, tensors[patch.name])    # in place on raw bytes

Where the line is fast, the work of this coding costs more than its bytes save: `plain` holds the other coding, which
`decode` reads too.
"""

from collections.abc import Iterator

from services.tensors import Tensors
from services.weights.delta import decoder, plain
from services.weights.delta.decoder import Patch, apply
from services.weights.delta.encoder import encode

__all__ = ["Patch", "apply", "decode", "encode"]


def decode(parent: Tensors, delta: bytes) -> Iterator[Patch]:
    """One patch per changed tensor, from either coding; WeightError when the bytes are no delta of a parent like this.

    The values are right only for the very parent that was encoded: compare digests before and after.
    """
    if delta[: len(plain.MAGIC)] == plain.MAGIC:
        return plain.decode(parent, delta)
    return decoder.decode(parent, delta)
