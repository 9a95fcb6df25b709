"""Loading settings: precedence, refusals that name key, source and remedy, joining an active run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy import endpoints
from deploy.endpoints import Endpoints
from deploy.load_settings import load
from deploy.resolved_settings import write_resolved
from deploy.settings import redis_url, services_url
from services.errors import ConfigError
from services.run_folder import RunFolder


def refused(sets: list[str], environ: dict[str, str] | None = None, config: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(config, sets, environ=environ or {})
    return str(caught.value)


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
@given(
    st.dictionaries(st.tuples(st.text(max_size=8), st.text(max_size=8)), st.text(max_size=8), min_size=1, max_size=6)
)
def test_no_environment_crashes(values: dict[tuple[str, str], str]) -> None:
    assert refused([], {f"SEPT_{section}__{key}": value for (section, key), value in values.items()})


def test_joining_takes_addresses_from_the_active_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    sets = [f"run.dir={tmp_path}"]
    with pytest.raises(ConfigError, match="no run is active"):
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


def test_explicit_addresses_win_over_the_active_run(tmp_path: Path) -> None:
    endpoints.write(RunFolder(tmp_path).create(), Endpoints(redis_url="redis://h:1", services_url="http://h:2"))
    joined = load(None, [f"run.dir={tmp_path}", "redis.url=redis://other:1"], join=True, environ={})
    assert redis_url(joined) == "redis://other:1"


def test_a_file_may_include_another_whose_values_count_where_it_has_none(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("[training]\nrounds = 3\nsteps_per_round = 1\n[run]\nseed = 4\n")
    path = tmp_path / "own.toml"
    path.write_text('include = "base.toml"\n[training]\nrounds = 5\n')
    found = load(path, environ={})
    assert (found.training.rounds, found.training.steps_per_round, found.run.seed) == (5, 1, 4)


@pytest.mark.parametrize(
    ("included", "says"),
    [("none.toml", r"none\.toml does not exist"), ("own.toml", "includes another"), ("chain.toml", "includes another")],
)
def test_an_include_that_leads_nowhere_or_in_a_circle_is_refused(tmp_path: Path, included: str, says: str) -> None:
    (tmp_path / "chain.toml").write_text('include = "own.toml"\n')
    path = tmp_path / "own.toml"
    path.write_text(f'include = "{included}"\n')
    with pytest.raises(ConfigError, match=says):
        load(path, environ={})
