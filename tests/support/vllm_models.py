"""Versions of weights, updates between them, and a tiny model to serve them, for the generator's tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from services.contracts import WeightManifest
from services.tensors import RawTensor, describe, version_digest
from services.weights import delta
from services.weights.mirror import WeightUpdate

VOCABULARY = 320


def manifest_of(version: int, tensors: Mapping[str, RawTensor]) -> WeightManifest:
    entries = describe(tensors)
    return WeightManifest(
        run_id="test",
        weight_version=version,
        digest=version_digest(entries),
        tensors=entries,
        files=(),
        created_at=0.0,
    )


def update_between(
    version: int, old: Mapping[str, RawTensor], new: Mapping[str, RawTensor], *, sparse: bool = True
) -> WeightUpdate:
    """The update from `old` to `new`, which becomes `version`: as patches, or as whole tensors."""
    patches = list(delta.decode(old, delta.encode(old, new)))
    return WeightUpdate(
        manifest=manifest_of(version, new),
        patches=patches if sparse else None,
        changed=frozenset(patch.name for patch in patches) if sparse else frozenset(new),
        fetched_bytes=0,
        tensors=new,
    )


def changed(tensors: Mapping[str, RawTensor], seed: int, share: float = 0.1) -> dict[str, RawTensor]:
    """The tensors with about `share` of their elements replaced by other elements of the same tensor."""
    random = np.random.default_rng(seed)
    result = {}
    for name, tensor in tensors.items():
        bits = tensor.data.view(f"<u{tensor.item_bytes}").copy()
        positions = np.flatnonzero(random.random(bits.size) < share)
        bits[positions] = bits[random.integers(0, bits.size, positions.size)]
        result[name] = RawTensor(tensor.dtype, tensor.shape, bits.view(np.uint8))
    return result


def first_tensors() -> dict[str, RawTensor]:
    """Three BF16 matrices of 6 x 4: q, k and o of an attention layer."""
    random = np.random.default_rng(0)
    halves = random.standard_normal((3, 24)).astype("<f4").view("<u4") >> 16
    return {
        name: RawTensor("BF16", (6, 4), bits.astype("<u2").view(np.uint8))
        for name, bits in zip(("q.weight", "k.weight", "o.weight"), halves, strict=True)
    }


def write_tiny_model(folder: Path, *, tied: bool = True, dtype: str = "bfloat16") -> None:
    """A random Qwen2 of 0.1 M parameters in Hugging Face's layout."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    model.to(getattr(torch, dtype)).save_pretrained(folder)


def greedy_gaps(folder: Path, tensors: Mapping[str, RawTensor], prompt: list[int], response: list[int]) -> list[float]:
    """How far each response token's logit is below the best one, by transformers in float32 with these weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
    state = {
        name: torch.frombuffer(bytearray(tensor.data.tobytes()), dtype=torch.bfloat16).view(tensor.shape).float()
        for name, tensor in tensors.items()
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    model.tie_weights()
    with torch.no_grad():
        logits_TV = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    best_T, _ = logits_TV.max(dim=-1)
    gaps: list[float] = (best_T - logits_TV[torch.arange(len(response)), torch.tensor(response)]).tolist()
    return gaps


def torch_tensors(tensors: Mapping[str, RawTensor]) -> dict[str, Any]:
    """The BF16 tensors as torch's."""
    import torch

    return {
        name: torch.frombuffer(bytearray(tensor.data.tobytes()), dtype=torch.bfloat16).view(tensor.shape)
        for name, tensor in tensors.items()
    }


@contextlib.contextmanager
def vllm_ranks(folder: Path, size: int) -> Iterator[Callable[[int], Any]]:
    """Within the block a call with a rank builds vLLM's model of the folder, without values, as that rank of `size`
    tensor-parallel ones has it. Layers keep their weights as loaded, as on a GPU.
    """
    import torch
    import vllm.distributed.parallel_state as state
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    arguments = EngineArgs(
        model=str(folder), skip_tokenizer_init=True, dtype="bfloat16", max_model_len=64, enforce_eager=True
    )
    config = arguments.create_engine_config()
    place: dict[str, Any] = {"distributed_init_method": f"file://{folder}/ranks-{size}", "backend": "gloo"}
    with set_current_vllm_config(config):
        state.init_distributed_environment(world_size=1, rank=0, local_rank=0, **place)
        state.initialize_model_parallel(1)
    group: Any = state._TP

    def build(rank: int) -> Any:
        group.world_size, group.rank_in_group = size, rank
        config.compilation_config.static_forward_context.clear()
        with set_current_vllm_config(config), set_default_torch_dtype(torch.bfloat16):
            return initialize_model(vllm_config=config)

    try:
        yield build
    finally:
        group.world_size, group.rank_in_group = 1, 0
        state.destroy_model_parallel()
        state.destroy_distributed_environment()
