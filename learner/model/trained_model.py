"""The model that is trained: float32 weights and a packed forward pass that ends in the loss of every token.

With several ranks the weights are sharded, and every rank takes part in each forward.

Legend of shapes: T tokens fed, N response tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from learner.algorithms.base import Targets, TokenLoss, TokenLosses
from learner.algorithms.nll import nll
from learner.model.attention import packing_arguments
from learner.model.flops import Cost
from learner.model.packing import MicroBatch, filler_batch
from learner.model.published_shards import PublishedShards
from learner.model.vocabulary_loss import Head, summed_loss
from learner.parallel.ranks import Order, Ranks


class LossModule(torch.nn.Module):
    """The whole forward from tokens to losses, head and loss included: the root module of sharding."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    def head(self) -> Head:
        """The last layer, which maps hidden states to logits."""
        layer: Any = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        softcap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return Head(layer.weight, getattr(layer, "bias", None), softcap)

    def forward(self, batch: MicroBatch, token_loss: TokenLoss, targets: Targets, tau: float) -> TokenLosses:
        out = self.model.base_model(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            **packing_arguments(batch),
        )
        hidden_NH = out.last_hidden_state[0].index_select(0, batch.rows)
        return summed_loss(token_loss, hidden_NH, self.head, targets, tau)

    def own_logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[S, T, V] logits of sequences [S, T], padded on the right, by the model's own forward without packing."""
        logits: torch.Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


@dataclass(frozen=True, slots=True, eq=False)
class TrainedModel:
    """A causal language model with float32 master weights, on one device per rank."""

    loss_module: LossModule
    folder: Path
    """The checkpoint it was loaded from."""
    device: torch.device
    cost: Cost
    wire_dtypes: Mapping[str, str] = field(repr=False)
    """Checkpoint name -> safetensors' name of the type it is published in."""
    default_wire_dtype: str
    """The type of floating tensors that `wire_dtypes` does not name."""
    ranks: Ranks = field(default_factory=Ranks)
    autocast_dtype: torch.dtype | None = None
    """Type of the forward's matrix products; None: float32 like the weights."""
    published: PublishedShards = field(default_factory=PublishedShards, repr=False)
    """This rank's weights as they were published last."""

    @property
    def module(self) -> PreTrainedModel:
        """The model in transformers' form; its parameters are this rank's shards."""
        return self.loss_module.model

    def wire_dtype(self, name: str) -> str:
        """safetensors' name of the type in which this floating tensor is published."""
        return self.wire_dtypes.get(name, self.default_wire_dtype)

    def token_losses(self, batch: MicroBatch, token_loss: TokenLoss, targets: Targets, tau: float) -> TokenLosses:
        """Run one micro-batch: the loss summed over N response tokens, and their log-probabilities [N].

        A collective operation: all ranks call it, each with a micro-batch of its own.
        """
        # No cache of cast weights: each is used once per forward, and together the copies would undo the sharding.
        mixed = self.autocast_dtype is not None
        with torch.autocast(self.device.type, self.autocast_dtype, enabled=mixed, cache_enabled=False):
            losses: TokenLosses = self.loss_module(batch, token_loss, targets, tau)
        return losses

    def leader_token_losses(
        self, batch: MicroBatch, token_loss: TokenLoss, targets: Targets, tau: float
    ) -> TokenLosses:
        """`token_losses` of a micro-batch that rank 0 alone has, without gradients: rank 0 calls this."""
        self.ranks.send_order(Order.FORWARD)
        return self.token_losses(batch, token_loss, targets, tau)

    def join_leader_forward(self) -> None:
        """On the other ranks: take part in the forward of rank 0's `leader_token_losses`."""
        batch = filler_batch().to(self.device)
        with torch.no_grad():
            self.token_losses(batch, nll, Targets(batch.targets), 1.0)
