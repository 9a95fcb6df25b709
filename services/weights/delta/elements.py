"""Element types as bits: exponent classes, distances along the number line.

All arithmetic is on unsigned integers modulo 2**width, so that NaN payloads, infinities and -0.0 are values like any
other and every step is exactly reversible.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.integer[Any]]
"""Always of an unsigned type; numpy's annotations lose that in shifts."""


@dataclass(frozen=True, slots=True)
class ElementKind:
    """How the bits of one element type are read."""

    width: int
    """Bits per element."""
    class_shift: int = 0
    class_mask: int = 0
    """Class of an element = (bits >> class_shift) & class_mask; 0 for integers, which have one class."""
    precision: int = 4
    """Leading bits of a distance that are entropy coded; as many as let all symbols of this width fit a byte."""

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        return np.dtype(f"<u{self.width // 8}")

    @property
    def is_float(self) -> bool:
        return self.class_mask != 0

    def classes(self, bits: Bits) -> NDArray[np.uint8]:
        """[N] the exponent field of each element (its upper eight bits for F64)."""
        return ((bits >> self.class_shift) & self.class_mask).astype(np.uint8)

    def distance(self, old: Bits, new: Bits) -> Bits:
        """[N] steps from old to new in representable values, positive away from zero, as 2 (|d| - 1) + (d < 0).

        Only for elements that differ.
        """
        steps = self._along_line(new) - self._along_line(old)
        steps = np.where(self._is_mirrored(old), -steps, steps)
        backward = steps >> (self.width - 1)
        return ((np.where(backward == 1, -steps, steps) - 1) << 1) | backward

    def move(self, old: Bits, distance: Bits) -> Bits:
        """[N] the inverse of `distance`: new bits from old ones."""
        steps = (distance >> 1) + 1
        backward = (distance & 1).astype(bool)
        along = self._along_line(old) + np.where(backward ^ self._is_mirrored(old), -steps, steps)
        return self._from_line(along)

    @property
    def _sign(self) -> np.unsignedinteger:
        return self.dtype.type(1 << (self.width - 1))

    def _is_mirrored(self, bits: Bits) -> NDArray[np.bool_]:
        return (bits >= self._sign) if self.is_float else np.zeros(bits.shape, bool)

    def _along_line(self, bits: Bits) -> Bits:
        """Unsigned integers in the order of the floats they stand for: -inf ... -0.0, 0.0 ... inf."""
        return np.where(bits >= self._sign, ~bits, bits | self._sign) if self.is_float else bits

    def _from_line(self, along: Bits) -> Bits:
        return np.where(along >= self._sign, along ^ self._sign, ~along) if self.is_float else along


KINDS: Mapping[str, ElementKind] = {
    "F64": ElementKind(64, class_shift=55, class_mask=0xFF, precision=2),
    "F32": ElementKind(32, class_shift=23, class_mask=0xFF, precision=3),
    "BF16": ElementKind(16, class_shift=7, class_mask=0xFF),
    "F16": ElementKind(16, class_shift=10, class_mask=0x1F),
    "F8_E4M3": ElementKind(8, class_shift=3, class_mask=0x0F),
    "F8_E5M2": ElementKind(8, class_shift=2, class_mask=0x1F),
    **dict.fromkeys(("I64", "U64"), ElementKind(64, precision=2)),
    **dict.fromkeys(("I32", "U32"), ElementKind(32, precision=3)),
    **dict.fromkeys(("I16", "U16"), ElementKind(16)),
    **dict.fromkeys(("I8", "U8", "BOOL"), ElementKind(8)),
}
"""By safetensors' name of the element type."""
