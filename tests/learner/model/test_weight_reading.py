"""What each rank reads of a checkpoint is what transformers' own `from_pretrained` loads, to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)

from learner.config import LoraConfig
from learner.model import lora
from learner.model.trained_model import TrainedModel
from learner.parallel.sharding import gather
from learner.training.checkpoint import Checkpoints
from learner.training.trainer import Trainer
from services.errors import ModelError
from services.tensors import read_safetensors, write_safetensors
from tests.support import tiny_models
from tests.support.ranks_together import made, together

SHAPE = tiny_models.SHAPE | {"head_dim": 8}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": tiny_models.config("llama"),
    "qwen2 tied": tiny_models.config("qwen2"),
    "qwen3": Qwen3Config(**SHAPE),
    "gemma3": Gemma3TextConfig(**SHAPE, sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=3, num_experts_per_tok=2),
    "qwen3 moe": Qwen3MoeConfig(**SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24),
}


def save(folder: Path, family: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A model of that family in several files, as large models are stored."""
    torch.manual_seed(0)
    module: PreTrainedModel = AutoModelForCausalLM.from_config(FAMILIES[family])  # type: ignore[no-untyped-call]
    module.to(dtype).save_pretrained(folder, max_shard_size="20KB")  # type: ignore[arg-type]
    return folder


def from_pretrained(folder: Path) -> dict[str, torch.Tensor]:
    return tensors_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def tensors_of(module: PreTrainedModel) -> dict[str, torch.Tensor]:
    """All parameters, under each of their names, and all buffers, gathered: every rank must call it."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {lora.base_name(name): gather(t.detach()) for name, t in named if not lora.is_adapter(name)}


def assert_same(loaded: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype, name
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize("family", FAMILIES)
def test_one_rank_loads_what_from_pretrained_loads(tmp_path: Path, family: str) -> None:
    save(tmp_path / "model", family)
    model, _, _ = made(tmp_path, tiny_models.training())
    assert_same(tensors_of(model.module), from_pretrained(tmp_path / "model"))


def compare(folder: Path, model: TrainedModel, trainer: Trainer, checkpoints: Checkpoints) -> None:
    """On every rank: gather the weights, and compare them."""
    local = sum(t.to_local().numel() for t in model.module.parameters() if hasattr(t, "to_local"))
    assert local * model.ranks.size < 1.1 * sum(t.numel() for t in model.module.parameters()) + 64 * model.ranks.size
    assert_same(tensors_of(model.module), from_pretrained(folder / "model"))
    tied = model.module.all_tied_weights_keys
    assert all(model.module.get_parameter(a) is model.module.get_parameter(b) for a, b in tied.items())


@pytest.mark.parametrize(
    ("family", "ranks"),
    [
        ("llama", 2), ("llama", 4), ("qwen2 tied", 2), ("qwen2 tied", 4), ("qwen3", 2), ("gemma3", 4), ("qwen3 moe", 2),
    ],
)  # fmt: skip
def test_several_ranks_load_what_from_pretrained_loads(tmp_path: Path, family: str, ranks: int) -> None:
    save(tmp_path / "model", family)
    assert together(compare, tmp_path, tiny_models.training(ranks=ranks), on_every_rank=True) == [0] * ranks


def test_adapters_begin_as_peft_makes_them_on_any_number_of_ranks(tmp_path: Path) -> None:
    import peft

    save(tmp_path / "model", "qwen2 tied", torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
        peft.inject_adapter_in_model(settings, theirs, lora.ADAPTER)
    expected = {name: p.detach() for name, p in theirs.named_parameters() if lora.is_adapter(name)}
    torch.save(expected, tmp_path / "adapters.pt")
    job, config, adapters = compare_adapters, tiny_models.training(), LoraConfig(rank=4)
    job(tmp_path, *made(tmp_path, config, adapters))
    assert together(job, tmp_path, tiny_models.training(ranks=2), adapters, on_every_rank=True) == [0, 0]


def compare_adapters(folder: Path, model: TrainedModel, trainer: Trainer, checkpoints: Checkpoints) -> None:
    loaded = {name: gather(p.detach()) for name, p in model.module.named_parameters() if lora.is_adapter(name)}
    assert_same(loaded, torch.load(folder / "adapters.pt"))
    assert_same(tensors_of(model.module), from_pretrained(folder / "model"))


def test_only_the_files_of_the_index_are_read(tmp_path: Path) -> None:
    """Mistral's releases hold all weights a second time, in another layout; a stray file may hold anything."""
    folder = save(tmp_path / "model", "llama")
    expected = from_pretrained(folder)
    some = dict(list(read_safetensors(next(folder.glob("*.safetensors"))).items())[:1])
    write_safetensors(folder / "consolidated.safetensors", some)
    (folder / "stray.safetensors").write_bytes(b"not safetensors")
    model, _, _ = made(tmp_path, tiny_models.training())
    assert_same(tensors_of(model.module), expected)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    cut = sorted(folder.glob("*.safetensors"))[1]
    cut.write_bytes(cut.read_bytes()[:-8])
    with pytest.raises(ModelError, match=cut.name) as caught:
        made(tmp_path, tiny_models.training())
    assert caught.value.hint


def test_a_file_that_the_index_names_and_is_gone_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ModelError, match=gone.name):
        made(tmp_path, tiny_models.training())


def test_an_index_that_points_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(ModelError, match="does not map"):
        made(tmp_path, tiny_models.training())


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(ModelError, match=r"has shape \(32, 48\) in the checkpoint"):
        made(tmp_path, tiny_models.training())


def test_tied_tensors_that_differ_are_untied_as_transformers_does(tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path / "model", tiny_models.config("llama"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    model, _, _ = made(tmp_path, tiny_models.training())
    expected = from_pretrained(folder)
    assert not torch.equal(expected["lm_head.weight"], expected["model.embed_tokens.weight"])
    assert_same(tensors_of(model.module), expected)
    stored = read_safetensors(folder / "model.safetensors")
    write_safetensors(folder / "model.safetensors", stored | {"lm_head.weight": stored["model.embed_tokens.weight"]})
    model, _, _ = made(tmp_path, tiny_models.training())
    assert model.module.lm_head.weight is model.module.model.embed_tokens.weight


def test_a_tied_model_may_hold_the_head_instead_of_the_embedding(tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path / "model", tiny_models.config("qwen2"))
    stored = read_safetensors(folder / "model.safetensors")
    stored["lm_head.weight"] = stored.pop("model.embed_tokens.weight")
    write_safetensors(folder / "model.safetensors", stored)
    model, _, _ = made(tmp_path, tiny_models.training())
    assert_same(tensors_of(model.module), from_pretrained(folder))


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="quantised"):
        made(tmp_path, tiny_models.training())
