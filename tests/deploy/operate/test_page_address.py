"""Where the page is, and the way to it over SSH."""

from __future__ import annotations

from deploy.endpoints import Endpoints
from deploy.operate.page_address import page_lines

LOCAL = Endpoints(redis_url="redis://h:1", services_url="http://127.0.0.1:8123")
SSH = {"SSH_CONNECTION": "10.0.0.5 51000 10.0.0.9 22", "USER": "ann"}


def test_the_address_is_what_a_browser_opens() -> None:
    assert page_lines(LOCAL, {}) == ["page: http://127.0.0.1:8123/"]


def test_over_ssh_the_tunnel_is_named() -> None:
    assert page_lines(LOCAL, SSH)[1] == (
        "from your own machine: ssh -L 8123:127.0.0.1:8123 ann@10.0.0.9, then open http://127.0.0.1:8123/"
    )


def test_an_address_that_others_reach_needs_no_tunnel_but_a_token() -> None:
    (line,) = page_lines(LOCAL.model_copy(update={"services_url": "http://gpu:80", "token": "hush"}), SSH)
    assert line.startswith("page: http://gpu:80/ (it asks for the token in endpoints.json")
    assert "hush" not in line
