"""What a record says of each token of an answer, a byte for each: how many characters it adds, how likely it was."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

PiecesOf = Callable[[NDArray[np.int32]], list[str]]
"""Token ids to the text that each adds; their concatenation is the text, but for what only a later token completes."""

STEPS_PER_NAT = 16
"""Log-probabilities are rounded to 1/16, so a probability is right within 3 %; those below -255/16 are recorded as
that. services/dashboard/static/tokens.js reads them."""

MAX_BYTE = 255


def token_fields(text: str, pieces: list[str], log_probs: NDArray[np.float32]) -> dict[str, str]:
    """The fields `token_lengths` and `token_log_probs` of a record, base64 of a byte a token.

    Nothing where the pieces are not the text's, as of a tokenizer that rewrites what it has decoded, or where a number
    is not finite.
    """
    lengths = [len(piece) for piece in pieces]
    joined = "".join(pieces)
    if len(pieces) != log_probs.size or not text.startswith(joined) or not np.isfinite(log_probs).all():
        return {}
    lengths[-1] += len(text) - len(joined)  # a character that the limit cut in two
    if max(lengths) > MAX_BYTE:
        return {}
    steps = np.clip(np.rint(-STEPS_PER_NAT * log_probs), 0, MAX_BYTE)
    return {"token_lengths": _base64(lengths), "token_log_probs": _base64(steps.astype(np.uint8))}


def _base64(numbers: Iterable[int]) -> str:
    return base64.b64encode(bytes(numbers)).decode()
