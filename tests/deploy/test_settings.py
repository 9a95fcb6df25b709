"""Settings: precedence, refusals that name key and remedy, the resolved file, joining a run, the frozen list."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy import endpoints
from deploy.docs_tools.reference import PAGE, configuration_page
from deploy.endpoints import Endpoints
from deploy.settings import flatten, load, redis_url, services_url, setting_fields, to_toml, write_resolved
from services.errors import ConfigError
from services.run_folder import RunFolder

ROOT = Path(__file__).parents[2]

ALL_SETTINGS = """
run.dir run.seed run.trackers
model.path model.wire_dtype
data.path data.split data.limit data.system_prompt data.question_suffix data.chat_template data.max_prompt_tokens
sampling.tau_start sampling.tau_end sampling.schedule sampling.anneal_epochs sampling.top_p
sampling.max_response_tokens sampling.rollouts_per_prompt
training.algorithm training.data training.tau_t training.epochs training.rounds training.prompts_per_round
training.steps_per_round training.max_staleness training.optimizer training.learning_rate training.warmup_steps
training.weight_decay training.max_grad_norm training.micro_batch_tokens training.device training.ranks
training.gradient_checkpointing lora.rank lora.alpha lora.targets
checkpoint.every_rounds checkpoint.keep
health.action evaluation.every_rounds evaluation.benchmarks evaluation.samples evaluation.temperatures evaluation.limit
weight_sync.canary_prompts
deadlines.startup_s deadlines.rollouts_s deadlines.weights_s deadlines.drain_s
heartbeat.every_s heartbeat.lost_after_s
generator.count generator.engine generator.dtype generator.max_in_flight
generator.memory_fraction generator.cpu_cache_gib generator.tensor_parallel generator.chat
redis.url redis.lease_s
services.host services.port services.url services.token
"""


def refused(sets: list[str], environ: dict[str, str] | None = None, config: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(config, sets, environ=environ or {})
    return str(caught.value)


def test_the_list_of_settings_is_frozen() -> None:
    """A new setting is a decision: add it here, and take one away if you can."""
    assert list(setting_fields()) == ALL_SETTINGS.split()
    assert len(setting_fields()) < 69


def test_the_reference_page_is_up_to_date() -> None:
    assert (ROOT / PAGE).read_text() == configuration_page(), "run `make docs`"


def test_every_setting_is_documented() -> None:
    page = (ROOT / PAGE).read_text()
    for key, field in setting_fields().items():
        assert field.description, key
        assert f"| `{key}` |" in page


RUNS = [path for path in sorted((ROOT / "deploy" / "config").glob("*.toml")) if not path.stem.startswith("study-")]


@pytest.mark.parametrize("config", RUNS, ids=lambda path: path.stem)
def test_shipped_configs_load(config: Path) -> None:
    assert load(config, environ={}).run.dir != load(None, environ={}).run.dir


def test_later_sources_win(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[training]\nrounds = 1\nprompts_per_round = 8\ntau_t = 0.5\n")
    environ = {"SEPT_TRAINING__ROUNDS": "2", "SEPT_TRAINING__PROMPTS_PER_ROUND": "4", "SEPT_LOG": "json"}
    training = load(config, ["training.rounds=3"], environ=environ).training
    assert (training.rounds, training.prompts_per_round, training.tau_t) == (3, 4, 0.5)


def test_none_unsets_an_optional_setting() -> None:
    assert load(None, ["training.rounds=none"], environ={"SEPT_TRAINING__ROUNDS": "3"}).training.rounds is None


def test_text_may_contain_equals_signs() -> None:
    assert load(None, ["data.question_suffix=a=b"], environ={}).data.question_suffix == "a=b"


def test_unknown_setting_suggests_the_nearest() -> None:
    assert refused(["training.tau=1"]) == (
        "training.tau (from --set) is not a setting\n\nhint: did you mean training.tau_t?"
    )


def test_unknown_section_in_the_environment_is_refused() -> None:
    message = refused([], {"SEPT_TRAININ__TAU_T": "1"})
    assert "trainin (from the environment) is not a section" in message
    assert "did you mean training?" in message


def test_bad_value_names_source_value_and_meaning(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[redis]\nlease_s = -1\n")
    message = refused([], config=config)
    assert f"redis.lease_s = -1 (from {config}) is not valid" in message
    assert "greater than 0" in message


def test_a_secret_is_never_shown() -> None:
    assert "hush" not in refused([], {"SEPT_SERVICES__TOKEN": "hush", "SEPT_SERVICES__PORT": "x"})
    assert "hush" not in repr(load(None, ["services.token=hush"], environ={}))


@pytest.mark.parametrize(
    ("sets", "keys"),
    [
        (["training.steps_per_round=3"], ("training.steps_per_round (3)", "training.prompts_per_round (128)")),
        (["training.algorithm=grpo"], ("training.algorithm (grpo)", "sampling.rollouts_per_prompt")),
        (["heartbeat.every_s=9"], ("heartbeat.every_s (9.0)", "heartbeat.lost_after_s (5.0)")),
        (["services.host=0.0.0.0"], ("services.host (0.0.0.0)", "services.token")),
        (["generator.chat=0.0.0.0:80"], ("generator.chat (0.0.0.0:80)", "services.token")),
        (
            ["generator.chat=localhost:0", "generator.engine=scripted"],
            ("generator.chat", "generator.engine vllm"),
        ),
    ],
)
def test_conflicts_name_both_settings(sets: list[str], keys: tuple[str, str]) -> None:
    message = refused(sets)
    assert all(key in message for key in keys)


@pytest.mark.parametrize("text", ["training", "=3", "training.=3", ".rounds=3", "training.rounds"])
def test_malformed_set_is_refused(text: str) -> None:
    assert "section.key=value" in refused([text])


@pytest.mark.parametrize("content", [b"[run", b"seed = 3\n", b"\xff\xfe", b"run = 3\n"])
def test_files_that_are_no_config_are_refused(tmp_path: Path, content: bytes) -> None:
    config = tmp_path / "c.toml"
    config.write_bytes(content)
    assert str(config) in refused([], config=config)


def test_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    assert "does not exist" in refused([], config=tmp_path / "none.toml")


@settings(deadline=None)  # a busy machine is no defect
@given(st.dictionaries(st.text(max_size=8), st.dictionaries(st.text(max_size=8), st.text(max_size=8)), max_size=3))
def test_no_environment_crashes(values: dict[str, dict[str, str]]) -> None:
    environ = {f"SEPT_{section}__{key}": value for section, content in values.items() for key, value in content.items()}
    if environ:
        assert refused([], environ)


def test_resolved_settings_read_back_and_belong_to_their_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r").create()
    settings = load(None, [f"run.dir={folder.path}", "data.system_prompt=a\nb", "services.token=hush"], environ={})
    assert write_resolved(settings, folder.config) == []
    assert "hush" not in folder.config.read_text()
    moved = folder.path.rename(tmp_path / "moved")
    again = load(moved / "config.toml", environ={})
    assert again.run.dir == moved
    assert again.data == settings.data


@settings(deadline=None)
@given(st.text())
def test_any_text_survives_toml(text: str) -> None:
    assert tomllib.loads(f"key = {to_toml(text)}") == {"key": text}


def test_changed_settings_are_named_and_fixed_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    write_resolved(load(None, environ={}), path)
    assert write_resolved(load(None, ["training.rounds=9"], environ={}), path) == ["training.rounds"]
    with pytest.raises(ConfigError, match=r"run\.seed was 0 .* is 1 now"):
        write_resolved(load(None, ["run.seed=1"], environ={}), path)


def test_joining_takes_addresses_from_the_run_that_is_going(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    sets = [f"run.dir={tmp_path}"]
    with pytest.raises(ConfigError, match="no run is going"):
        redis_url(load(None, sets, join=True, environ={}))
    endpoints.write(folder, Endpoints(redis_url="redis://:p@h:1/0", services_url="http://h:2", token="hush"))
    assert folder.endpoints.stat().st_mode & 0o777 == 0o600
    joined = load(None, sets, join=True, environ={})
    assert (redis_url(joined), services_url(joined)) == ("redis://:p@h:1/0", "http://h:2")
    assert joined.services.token is not None
    assert load(None, sets, environ={}).redis.url is None


def test_joining_a_run_that_is_open_to_other_machines_needs_no_token_of_ones_own(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    write_resolved(load(None, ["services.host=0.0.0.0", "services.token=hush"], environ={}), folder.config)
    endpoints.write(folder, Endpoints(redis_url="redis://h:1", services_url="http://h:2", token="hush"))
    assert load(folder.config, join=True, environ={}).services.url == "http://h:2"


def test_explicit_addresses_win_over_the_run_that_is_going(tmp_path: Path) -> None:
    endpoints.write(RunFolder(tmp_path).create(), Endpoints(redis_url="redis://h:1", services_url="http://h:2"))
    joined = load(None, [f"run.dir={tmp_path}", "redis.url=redis://other:1"], join=True, environ={})
    assert redis_url(joined) == "redis://other:1"


def test_services_are_reached_where_they_are_bound() -> None:
    settings = load(None, ["services.host=0.0.0.0", "services.token=hush"], environ={})
    assert services_url(settings) == "http://127.0.0.1:8400"


def test_flatten_names_every_setting() -> None:
    assert list(flatten(load(None, environ={}))) == list(setting_fields())
