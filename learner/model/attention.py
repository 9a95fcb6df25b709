"""Causal attention within each sequence of a packed micro-batch.

Importing this module registers `packed_attention` with transformers under the name `PACKED_ATTENTION`. A model loaded
with that `attn_implementation` builds no mask; it passes on the boundaries given to its forward (see
`packing_arguments`). No query meets a key of another sequence, since the kernels compute each sequence separately.

Legend of shapes: T tokens of the micro-batch, S sequences, H query heads, K key/value heads (K divides H), D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from learner.model.packing import MicroBatch
from services.errors import ModelError

PACKED_ATTENTION = "sept_packed"

VARLEN_MAX_HEAD_SIZE = 256
VARLEN_MIN_CAPABILITY = (8, 0)
"""Limits of the flash kernels behind `varlen_attn`: Ampere or newer, 16-bit types."""

KERNELS = (
    torch.ops.torch_attn._varlen_attn.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
)
"""The operators behind `packed_attention`, by device and type; with a window on CPU it is matrix products instead."""


def packing_arguments(batch: MicroBatch) -> dict[str, Any]:
    """Keyword arguments of a model's forward that carry the boundaries, named as transformers passes them on."""
    longest = max(batch.lengths)
    return {
        "cu_seq_lens_q": batch.cu_seqlens,
        "cu_seq_lens_k": batch.cu_seqlens,
        "max_length_q": longest,
        "max_length_k": longest,
        "sequence_lengths": batch.lengths,
    }


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    sequence_lengths: tuple[int, ...] | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: [1, H, T, D], [1, K, T, D] twice -> [1, T, H, D].

    softmax(scaling * q k^T) v over the keys of the query's own sequence at or before the query, and less than
    `sliding_window` tokens back if that is set. Dropout is never applied: the model that samples has none.
    Raises ModelError for a model with another kind of attention.
    """
    if cu_seq_lens_q is None or max_length_q is None or sequence_lengths is None:
        raise ModelError(
            f"{type(module).__name__} does not pass the boundaries of packed sequences on to its attention",
            hint="use a model class of transformers that supports attention backends",
        )
    if softcap or s_aux is not None or attention_mask is not None:
        raise ModelError(
            f"{type(module).__name__} asks for capped scores, attention sinks or a mask of its own",
            hint="packed training supports plain causal and sliding-window attention",
        )
    # Some models rotate in float32; the kernels take one type, that of the weights.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if _has_varlen_kernel(query):
        out = _varlen(query, key, value, cu_seq_lens_q, max_length_q, scaling, sliding_window)
    else:
        out = _per_sequence(query, key, value, sequence_lengths, scaling, sliding_window)
    return out, None


def _has_varlen_kernel(query: torch.Tensor) -> bool:
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] <= VARLEN_MAX_HEAD_SIZE
        and query.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= VARLEN_MIN_CAPABILITY
    )


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    longest: int,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """All sequences in one kernel call, which takes boundaries instead of a mask."""
    left = -1 if sliding_window is None else sliding_window - 1
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    out: Any = varlen_attn(
        query,
        key,
        value,
        cu_seqlens,
        cu_seqlens,
        longest,
        longest,
        scale=scaling,
        window_size=(left, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    packed: torch.Tensor = out.unsqueeze(0)
    return packed


def _per_sequence(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: tuple[int, ...],
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """One kernel call per sequence: on CPU faster than one call with padding or a block mask."""
    outs = [
        functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=(mask := _window_mask(q.shape[2], sliding_window, q.device)),
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        ).transpose(1, 2)
        for q, k, v in zip(*(torch.split(tensor, list(lengths), dim=2) for tensor in (query, key, value)), strict=True)
    ]
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)


def _window_mask(length: int, sliding_window: int | None, device: torch.device) -> torch.Tensor | None:
    """[T, T] True where a query attends to a key; None where plain causal attention is the same."""
    if sliding_window is None or length <= sliding_window:
        return None
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions[None, :]
    return (distance >= 0) & (distance < sliding_window)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
