"""The resolved settings of a run: they read back, and what is fixed in a run may not change."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.load_settings import load
from deploy.resolved_settings import takes_effect, to_toml, write_resolved
from deploy.settings import FIXED_IN_A_RUN, flatten
from services.errors import ConfigError
from services.run_folder import RunFolder


def refused(sets: list[str], environ: dict[str, str] | None = None, config: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(config, sets, environ=environ or {})
    return str(caught.value)


def test_resolved_settings_read_back_and_belong_to_their_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "r").create()
    settings = load(None, [f"run.dir={folder.path}", "data.system_prompt=a\nb", "services.token=hush"], environ={})
    assert write_resolved(settings, folder.config) == []
    assert "hush" not in folder.config.read_text()
    moved = folder.path.rename(tmp_path / "moved")
    again = load(moved / "config.toml", environ={})
    assert again.run.dir == moved
    assert again.data == settings.data


def test_paths_of_data_mean_the_same_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("")
    sets = ["data.path=*.csv?question=Frage", "evaluation.benchmarks=held=a.csv?answer=A,gsm8k"]
    write_resolved(load(None, sets, environ={}), tmp_path / "config.toml")
    again = load(tmp_path / "config.toml", environ={})
    assert again.data.path == f"{tmp_path}/*.csv?question=Frage"
    assert again.evaluation.benchmarks == (f"held={tmp_path}/a.csv?answer=A", "gsm8k")


@settings(deadline=None)
@given(st.text())
def test_any_text_survives_toml(text: str) -> None:
    assert tomllib.loads(f"key = {to_toml(text)}") == {"key": text}


def test_changed_settings_are_named_and_fixed_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    write_resolved(load(None, environ={}), path)
    assert write_resolved(load(None, ["training.rounds=9"], environ={}), path) == ["training.rounds"]
    before = path.read_bytes()
    for _ in range(2):  # what was refused is not what the run goes on with
        with pytest.raises(ConfigError, match=r"run\.seed was 0 .* is 1 now"):
            write_resolved(load(None, ["run.seed=1"], environ={}), path)
        assert path.read_bytes() == before


@pytest.mark.parametrize("damaged", [b"\xff", b"[run", b"", b"[run]\nseed = 7\n", b"seed = 3"])
def test_damaged_settings_of_the_last_start_are_replaced(damaged: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(damaged)
    assert write_resolved(load(None, environ={}), path) == []
    assert load(path, environ={}).run.seed == 0


def test_before_the_first_round_any_setting_may_be_corrected(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).create()
    write_resolved(load(None, environ={}), folder.config)
    before = folder.run_id
    (folder.weights / "v000000").mkdir()
    assert not folder.has_begun
    assert write_resolved(load(None, ["run.seed=1"], environ={}), folder.config, begun=False) == ["run.seed"]
    folder.start_over()
    assert folder.run_id != before
    assert list(folder.weights.iterdir()) == []
    (folder.checkpoints / "v000001").mkdir()
    assert folder.has_begun


def test_a_changed_setting_says_when_it_takes_effect() -> None:
    assert takes_effect("sampling.tau_start") == ("with the next round; what was sampled of it before is sampled again")
    assert takes_effect("weight_sync.canary_prompts") == "with the next version"
    assert takes_effect("training.learning_rate") == "with the next round"
    assert takes_effect("generator.count") == "now"
    assert takes_effect("training.max_staleness") == takes_effect("sampling.top_p")
    assert takes_effect("lora.alpha") == takes_effect("health.action") == takes_effect("training.rounds")


@pytest.mark.parametrize(
    ("value", "toml"),
    [
        (True, "true"),
        (False, "false"),
        (3, "3"),
        (1e-7, "1e-07"),
        ("é", '"é"'),
        ("\n", '"\\U0000000a"'),
        ((1, "a"), '[1, "a"]'),
    ],
)
def test_every_kind_of_value_has_its_toml(value: Any, toml: str) -> None:
    assert to_toml(value) == toml


def test_the_model_s_folder_means_the_same_from_anywhere_and_an_id_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    for path, kept in (("model", str(tmp_path / "model")), ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"), ("", "")):
        write_resolved(load(None, [f"model.path={path}"], environ={}), tmp_path / "config.toml", begun=False)
        assert load(tmp_path / "config.toml", environ={}).model.path == kept


OTHER_VALUES = {
    "run.seed": "1",
    "model.path": "org/other",
    "data.path": "org/questions",
    "data.split": "test",
    "data.limit": "7",
    "data.max_prompt_tokens": "77",
    "data.repeats": "leave_out",
    "data.vote_share": "0.3,0.9",
    "sampling.rollouts_per_prompt": "3",
    "training.algorithm": "entropy",
    "training.data": "fixed",
    "training.prompts_per_round": "64",
    "training.steps_per_round": "4",
    "training.optimizer": "adamw_8bit",
    "lora.rank": "4",
    "lora.alpha": "5.5",
    "lora.targets": "q_proj",
}


def test_nothing_that_makes_the_rounds_of_a_run_comparable_may_change(tmp_path: Path) -> None:
    """Each of them alone, and each of them is allowed before the first round."""
    assert OTHER_VALUES.keys() == set(FIXED_IN_A_RUN)
    base = ["sampling.rollouts_per_prompt=2", "lora.rank=8"]
    path = tmp_path / "config.toml"
    for key, value in OTHER_VALUES.items():
        path.unlink(missing_ok=True)
        write_resolved(load(None, base, environ={}), path)
        before, other = path.read_bytes(), load(None, [*base, f"{key}={value}"], environ={})
        with pytest.raises(ConfigError, match=rf"{key} was .* when this run started and is .* now"):
            write_resolved(other, path)
        assert path.read_bytes() == before
        assert write_resolved(other, path, begun=False) == [key]


def test_the_file_holds_what_is_set_and_neither_secrets_nor_its_own_place(tmp_path: Path) -> None:
    settings = load(None, ["run.dir=elsewhere", "services.token=hush", "training.rounds=none"], environ={})
    write_resolved(settings, tmp_path / "config.toml")
    text = (tmp_path / "config.toml").read_text()
    assert text.startswith("# The settings of this run as resolved; secrets are left out.\n\n[run]\n")
    assert text.endswith("\n")
    written = {f"{section}.{key}" for section, values in tomllib.loads(text).items() for key in values}
    flat = flatten(settings)
    assert written == {key for key, value in flat.items() if value is not None} - {"run.dir", "services.token"}


@pytest.mark.parametrize("key", ["services.tls_cert", "services.tls_key"])
def test_paths_of_certificates_mean_the_same_from_anywhere(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("")
    settings = load(None, ["services.tls_cert=cert.pem", "services.tls_key=key.pem"], environ={})
    write_resolved(settings, tmp_path / "config.toml")
    section, name = key.split(".")
    resolved = tomllib.loads((tmp_path / "config.toml").read_text())[section][name]
    assert resolved == str(tmp_path / f"{name.removeprefix('tls_')}.pem")


def test_a_lost_file_of_the_last_start_is_named_with_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.toml"
    write_resolved(load(None, environ={}), path)
    assert capsys.readouterr().out == "", "a first start has lost nothing"
    cut = path.read_text().partition("[training]")[0]
    path.write_text(cut)
    assert write_resolved(load(None, ["run.seed=1"], environ={}), path) == [], "what it was is not known"
    assert f"{path} lacks [checkpoint]" in capsys.readouterr().out
    path.write_text("[run")
    write_resolved(load(None, ["run.seed=2"], environ={}), path)
    assert f"config file {path} is not TOML" in capsys.readouterr().out
