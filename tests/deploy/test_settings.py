"""The settings of a run: the frozen list, contradictions between sections, addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.load_settings import load
from deploy.settings import digests_for_ranks, flatten, services_url, setting_fields, token_of
from services.errors import ConfigError

ROOT = Path(__file__).parents[2]

ALL_SETTINGS = """
run.dir run.seed run.trackers
model.path model.wire_dtype
data.path data.split data.limit data.repeats data.vote_share data.system_prompt data.question_suffix data.chat_template
data.max_prompt_tokens
sampling.tau_start sampling.tau_end sampling.schedule sampling.anneal_epochs sampling.top_p
sampling.top_k sampling.min_p
sampling.stop_tokens sampling.max_response_tokens sampling.rollouts_per_prompt
training.recipe training.algorithm training.data training.tau_t training.epochs training.rounds
training.prompts_per_round
training.steps_per_round training.max_staleness training.optimizer training.optimizer_offload training.learning_rate
training.warmup_steps
training.weight_decay training.max_grad_norm training.micro_batch_tokens training.device training.ranks
training.nodes training.sharding
training.gradient_checkpointing lora.rank lora.alpha lora.targets
checkpoint.every_rounds checkpoint.every_minutes checkpoint.keep
health.action evaluation.every_rounds evaluation.benchmarks evaluation.samples evaluation.temperatures evaluation.limit
weight_sync.canary_prompts
deadlines.startup_s deadlines.rollouts_s deadlines.weights_s deadlines.drain_s
generator.count generator.engine generator.dtype generator.max_in_flight
generator.memory_fraction generator.cpu_cache_gib generator.tensor_parallel generator.chat
redis.url redis.generator_url redis.lease_s
services.host services.port services.url services.token services.generator_token services.watch_token
services.tls_cert services.tls_key
"""


def refused(sets: list[str], environ: dict[str, str] | None = None, config: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(config, sets, environ=environ or {})
    return str(caught.value)


def test_the_list_of_settings_is_frozen() -> None:
    """A new setting is a decision: add it here, and take one away if you can."""
    assert list(setting_fields()) == ALL_SETTINGS.split()
    assert len(setting_fields()) <= 81


RUNS = [path for path in sorted((ROOT / "deploy" / "config").glob("*.toml")) if not path.stem.startswith("study-")]


@pytest.mark.parametrize("config", RUNS, ids=lambda path: path.stem)
def test_shipped_configs_load(config: Path) -> None:
    assert load(config, environ={}).run.dir != load(None, environ={}).run.dir


@pytest.mark.parametrize(
    ("sets", "keys"),
    [
        (["training.steps_per_round=3"], ("training.steps_per_round (3)", "training.prompts_per_round (128)")),
        (["training.algorithm=grpo"], ("training.algorithm (grpo)", "sampling.rollouts_per_prompt")),
        (["services.host=0.0.0.0"], ("services.host (0.0.0.0)", "services.token")),
        (["generator.chat=0.0.0.0:80"], ("generator.chat (0.0.0.0:80)", "services.token")),
        (["services.watch_token=w"], ("services.watch_token", "services.token")),
        (
            ["services.token=t", "services.generator_token=t"],
            ("services.token", "services.generator_token", "the same secret"),
        ),
        (["data.vote_share=0.3,0.9"], ("data.vote_share (0.3, 0.9)", "sampling.rollouts_per_prompt")),
        (
            ["data.vote_share=0.3,0.9", "sampling.rollouts_per_prompt=4", "training.data=fixed"],
            ("data.vote_share (0.3, 0.9)", "training.data"),
        ),
        (["data.vote_share=0.9,0.3"], ("data.vote_share (0.9, 0.3)", "the lower one first")),
        (["services.tls_key=key.pem"], ("services.tls_key (key.pem)", "services.tls_cert")),
        (
            ["generator.chat=localhost:0", "generator.engine=scripted"],
            ("generator.chat", "generator.engine vllm"),
        ),
    ],
)
def test_conflicts_name_both_settings(sets: list[str], keys: tuple[str, str]) -> None:
    message = refused(sets)
    assert all(key in message for key in keys)


@pytest.mark.parametrize("address", ['[services]\nhost = "0.0.0.0"', '[generator]\nchat = "0.0.0.0:0"\n[services]'])
def test_an_empty_token_opens_nothing_to_other_machines(address: str, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(f'{address}\ntoken = ""\n')
    assert "is not loopback and services.token is not set" in refused([], config=config)
    config.write_text(f'{address}\ntoken = "hush"\n')
    assert token_of(load(config, environ={})) == "hush"


def test_services_are_reached_where_they_are_bound() -> None:
    settings = load(None, ["services.host=0.0.0.0", "services.token=hush"], environ={})
    assert services_url(settings) == "http://127.0.0.1:8400"


def test_flatten_names_every_setting() -> None:
    assert list(flatten(load(None, environ={}))) == list(setting_fields())


def test_ranks_agree_though_their_model_is_elsewhere_on_another_host(tmp_path: Path) -> None:
    for host in ("a", "b", "c"):
        (tmp_path / host).mkdir()
        (tmp_path / host / "config.json").write_text('{"hidden_size": 64}')
        (tmp_path / host / "model.safetensors").write_bytes(b"x" * (9 if host == "c" else 8))

    def digests(*sets: str) -> dict[str, str]:
        return digests_for_ranks(load(None, sets, environ={}))

    here = digests(f"model.path={tmp_path / 'a'}", "run.dir=one")
    assert digests(f"model.path={tmp_path / 'b'}", "run.dir=other", "generator.count=3") == here
    assert digests(f"model.path={tmp_path / 'c'}")["model"] != here["model"]
    assert digests("model.path=org/one")["model"] != digests("model.path=org/two")["model"]
    for key in ("training.learning_rate=1e-3", "training.nodes=1", "training.ranks=2", "lora.rank=4"):
        section = key.partition(".")[0]
        differs = digests(key)[section] != digests()[section]
        assert differs == (key != "training.nodes=1")
