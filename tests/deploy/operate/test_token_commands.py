"""Tokens are made, listed and revoked in the run's folder; what stands there opens nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import endpoints
from deploy.endpoints import Endpoints
from deploy.operate import token_commands
from deploy.operate.token_commands import add_token, revoke_given, revoke_named, show_tokens
from services.api.tokens import Role, TokenFile, digest_of
from services.errors import ConfigError
from services.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run").create()


def test_a_token_is_random_and_stands_there_with_its_role_as_a_digest(run: RunFolder) -> None:
    first, second = add_token(run, "alice", Role.WATCH), add_token(run, "gpu-box", Role.GENERATOR)
    assert first != second
    assert min(len(first), len(second)) >= 32
    held = TokenFile.read(run.tokens).tokens
    assert [(token.name, token.role) for token in held] == [("alice", Role.WATCH), ("gpu-box", Role.GENERATOR)]
    assert [token.digest for token in held] == [digest_of(first), digest_of(second)]


def test_a_name_that_is_taken_changes_nothing_however_often_it_is_asked_for(run: RunFolder) -> None:
    add_token(run, "alice", Role.WATCH)
    before = run.tokens.read_bytes()
    for _ in range(2):
        with pytest.raises(ConfigError, match="token named 'alice' already"):
            add_token(run, "alice", Role.STEER)
        assert run.tokens.read_bytes() == before


def test_the_last_token_that_fits_is_made_and_the_next_refused(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_commands, "MOST", 2)
    add_token(run, "a", Role.WATCH)
    add_token(run, "b", Role.WATCH)
    with pytest.raises(ConfigError, match="has 2 tokens, the limit is 2"):
        add_token(run, "c", Role.WATCH)
    revoke_named(run, "a")
    add_token(run, "c", Role.WATCH)
    assert [token.name for token in TokenFile.read(run.tokens).tokens] == ["b", "c"]


@pytest.mark.parametrize("token", ["the run's own", None])
def test_an_active_run_that_asks_for_no_token_gets_none(run: RunFolder, token: str | None) -> None:
    endpoints.write(run, Endpoints(redis_url="redis://h:1", services_url="http://h:2", token=token))
    if token is not None:
        add_token(run, "alice", Role.WATCH)
        assert len(TokenFile.read(run.tokens).tokens) == 1
    else:
        with pytest.raises(ConfigError, match="asks nobody for a token"):
            add_token(run, "alice", Role.WATCH)
        assert TokenFile.read(run.tokens).tokens == ()


def test_revoking_a_name_takes_that_token_and_no_other(run: RunFolder) -> None:
    for name in ("a", "b", "c"):
        add_token(run, name, Role.WATCH)
    revoke_given(run, "one of the settings")
    revoke_named(run, "b")
    held = TokenFile.read(run.tokens)
    assert [token.name for token in held.tokens] == ["a", "c"]
    assert held.revoked == (digest_of("one of the settings"),)
    with pytest.raises(ConfigError, match="no token named 'b'") as refused:
        revoke_named(run, "b")
    assert refused.value.hint == "there are: a, c"


def test_the_hint_of_a_run_without_tokens_says_so(run: RunFolder) -> None:
    with pytest.raises(ConfigError) as refused:
        revoke_named(run, "b")
    assert refused.value.hint == "there are: none"


def test_revoking_a_token_itself_takes_its_name_too_and_counts_once(run: RunFolder) -> None:
    lost, kept = add_token(run, "lost", Role.STEER), add_token(run, "kept", Role.STEER)
    revoke_given(run, "of the settings")
    revoke_given(run, lost)
    revoke_given(run, "of the settings")
    held = TokenFile.read(run.tokens)
    assert [token.digest for token in held.tokens] == [digest_of(kept)]
    assert sorted(held.revoked) == sorted([digest_of(lost), digest_of("of the settings")])
    add_token(run, "lost", Role.STEER)
    assert TokenFile.read(run.tokens).revoked == held.revoked, "a new token revives no old one"


def test_the_list_shows_names_and_roles_and_how_many_of_the_settings_are_revoked(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    token = add_token(run, "gpu-box", Role.GENERATOR)
    show_tokens(run)
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("name", "role", "gpu-box", "generator"))
    assert "revoked" not in shown
    assert token not in shown
    assert digest_of(token)[:8] not in shown
    revoke_given(run, "of the settings")
    show_tokens(run)
    assert "1 tokens of the settings are revoked" in capsys.readouterr().out
