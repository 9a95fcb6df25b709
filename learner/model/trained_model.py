"""The model that is trained: float32 weights and a packed forward pass that ends in the loss of every token.

On a GPU the forward computes in bf16, with copies of the weights that each layer's turn makes (`learner.parallel.
sharding`); where numbers must be exact, `exact_weights` gives the layers their float32 weights instead. With several
ranks the weights are sharded, and every rank takes part in each forward.

Legend of shapes: T tokens fed, N response tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from learner.algorithms.base import Targets, TokenLoss, TokenLosses
from learner.algorithms.nll import nll
from learner.model.attention import packing_arguments
from learner.model.flops import Cost
from learner.model.kernels.vocabulary_loss import Head, summed_loss
from learner.model.packing import MicroBatch, filler_batch
from learner.parallel.published_shards import PublishedShards
from learner.parallel.ranks import Order, Ranks
from learner.parallel.sharding import gather, sharding_groups

Change = Callable[[str, torch.Tensor], torch.Tensor]
"""(name in the module, its float32 weight as a whole) -> what the layer is to compute with."""


class LossModule(torch.nn.Module):
    """The whole forward from tokens to losses, head and loss included: the root module of sharding."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        head.__class__ = type(type(head).__name__, (_ScoringHead, type(head)), {})
        self.groups = sharding_groups(self, frozenset(model._no_split_modules or ()))
        """What is gathered together, or given exact weights together."""
        self.packs = True
        """Whether sequences that are computed together get what they get alone; else each is computed by itself."""

    @property
    def vocabulary(self) -> int:
        """V, the rows of the head."""
        head: Any = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        return int(head.weight.shape[0])

    def forward(self, compute: Callable[[], Any]) -> Any:
        """What `compute` returns: whatever uses the weights is called here, where sharding and `exact_weights` act."""
        return compute()

    def losses(self, batch: MicroBatch, token_loss: TokenLoss, targets: Targets, tau: float) -> TokenLosses:
        """The loss summed over N response tokens, and their log-probabilities [N]."""
        losses: TokenLosses = self(partial(self._losses, batch, token_loss, targets, tau))
        return losses

    def own_logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[S, T, V] logits of sequences [S, T] by the model's own forward without packing."""
        logits: torch.Tensor = self(lambda: self.model(input_ids=input_ids, use_cache=False).logits)
        return logits

    def _losses(self, batch: MicroBatch, token_loss: TokenLoss, targets: Targets, tau: float) -> TokenLosses:
        hidden = [self._hidden(part) for part in ([batch] if self.packs else batch.alone())]
        hidden_NH = hidden[0] if len(hidden) == 1 else torch.cat(hidden)
        softcap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        head: Any = self.model.get_output_embeddings()  # type: ignore[no-untyped-call]
        losses: TokenLosses = head(
            hidden_NH,
            lambda hidden, weight, bias: summed_loss(token_loss, hidden, Head(weight, bias, softcap), targets, tau),
        )
        return losses

    def _hidden(self, batch: MicroBatch) -> torch.Tensor:
        """[N, H] what the head maps to logits."""
        out = self.model.base_model(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            **packing_arguments(batch),
        )
        hidden_NH: torch.Tensor = out.last_hidden_state[0].index_select(0, batch.rows)
        return hidden_NH


class _ScoringHead(torch.nn.Module):
    """Added to the class of the last layer: its forward can end in the loss, so that what is done around a layer's
    forward (gathering its weights, replacing them) is done around the loss as well."""

    weight: torch.nn.Parameter
    bias: torch.nn.Parameter | None

    def forward(self, x: torch.Tensor, losses: Callable[..., TokenLosses] | None = None) -> Any:
        """The layer's own forward, or `losses`(x, weight, bias)."""
        if losses is None:
            return super().forward(x)
        for parameter in self.parameters(recurse=False):
            if parameter.requires_grad and parameter.is_leaf:
                parameter.grad_dtype = torch.float32  # the sum over thousands of tokens, also of a copy in 16 bits
        return losses(x, self.weight, self.bias)


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
    checked_lengths: tuple[int, ...] = ()
    """Tokens of sequences that pass every length at which the model changes what it computes, ascending."""
    ranks: Ranks = field(default_factory=Ranks)
    compute_dtype: torch.dtype = torch.float32
    """Type of the forward's weights and activations."""
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
        return self.loss_module.losses(batch, token_loss, targets, tau)

    @contextlib.contextmanager
    def exact_weights(self, change: Change | None = None) -> Iterator[None]:
        """Within the block each layer computes in float32, with its weights or with what `change` makes of them.

        Takes the memory of a decoder layer's weights or of the head's. Every rank must enter the block, as weights that
        are gathered in another type are gathered once more: the hooks of sharding run before these, and after them on
        the way out.
        """
        if change is None and self.compute_dtype == torch.float32:
            yield
            return
        shards = dict(self.module.named_parameters())
        groups = self.loss_module.groups
        members = [set(group.parameters()) for group in groups]
        members[-1] -= set().union(*members[:-1])
        handles = []
        for group, parameters in zip(groups, members, strict=True):
            names = [name for name, parameter in shards.items() if parameter in parameters]
            originals: Originals = {}
            replace = partial(_replace, self.module, {name: shards[name] for name in names}, change, originals)
            handles.append(group.register_forward_pre_hook(replace))
            handles.append(group.register_forward_hook(partial(_restore, originals), prepend=True, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

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


Originals = dict[torch.nn.Parameter, torch.Tensor]
"""The values of parameters before they were replaced."""


def _replace(
    module: PreTrainedModel,
    shards: Mapping[str, torch.nn.Parameter],
    change: Change | None,
    originals: Originals,
    *_: Any,
) -> None:
    replaced = {}
    for name, shard in shards.items():
        parameter = module.get_parameter(name)
        weight = (parameter if parameter.dtype == torch.float32 else gather(shard.detach()).float()).detach()
        originals[parameter] = parameter.data
        replaced[parameter] = weight if change is None else change(name, weight)
    for parameter, weight in replaced.items():  # after all are computed, as an adapter's factors make another weight
        parameter.data = weight


def _restore(originals: Originals, *_: Any) -> None:
    for parameter, exact in originals.items():
        parameter.data = exact
    originals.clear()
