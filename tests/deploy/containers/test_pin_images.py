"""Base images are named by digests that their registries gave."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import httpx
import pytest

from deploy.containers.pin_images import FILES, ROOT, Image, base_images, pin, with_digests
from services.errors import UnavailableError

INDEX = "application/vnd.oci.image.index.v1+json"
OLD = f"sha256:{'0' * 64}"


def answer(content: bytes, kind: str = INDEX) -> httpx.Response:
    return httpx.Response(200, content=content, headers={"Content-Type": kind})


def registry(request: httpx.Request) -> httpx.Response:
    """Docker Hub, as far as it matters: a token for everybody, and then the index of each tag."""
    if request.url.host == "auth.docker.io":
        assert request.url.params["scope"] == "repository:library/redis:pull"
        return httpx.Response(200, json={"token": "of anybody"})
    if request.url.path == "/v2/library/redis/manifests/7.2" and "authorization" not in request.headers:
        challenge = (
            'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
            'scope="repository:library/redis:pull"'
        )
        return httpx.Response(401, headers={"WWW-Authenticate": challenge})
    found = {
        "registry-1.docker.io/v2/library/redis/manifests/7.2": answer(b"redis"),
        "ghcr.io/v2/some/thing/manifests/1": answer(b"thing"),
        "registry-1.docker.io/v2/me/one-platform/manifests/2": answer(
            b"x", "application/vnd.oci.image.manifest.v1+json"
        ),
    }
    return found.get(f"{request.url.host}{request.url.path}", httpx.Response(404))


@pytest.fixture
def client() -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(registry))


def test_every_reference_gets_the_digest_of_what_its_registry_has(tmp_path: Path, client: httpx.Client) -> None:
    compose, dockerfile = tmp_path / "compose.yml", tmp_path / "Dockerfile"
    compose.write_text(
        "services:\n  redis:\n    image: redis:7.2\n  a:\n    image: sept-services:${SEPT_VERSION:-0.1.0}\n"
    )
    dockerfile.write_text(f"ARG PYTHON=ghcr.io/some/thing:1@{OLD}\n\nFROM ${{PYTHON}} AS build\n")
    digests = {name: f"sha256:{hashlib.sha256(name.encode()).hexdigest()}" for name in ("redis", "thing")}
    assert pin([compose, dockerfile], client) == {
        "redis:7.2": digests["redis"],
        "ghcr.io/some/thing:1": digests["thing"],
    }
    assert f"    image: redis:7.2@{digests['redis']}\n  a:\n    image: sept-services:${{SEPT" in compose.read_text()
    assert dockerfile.read_text().startswith(f"ARG PYTHON=ghcr.io/some/thing:1@{digests['thing']}\n\nFROM ${{PYTHON}}")


@pytest.mark.parametrize("reference", ["redis:8", "me/one-platform:2", "example.com/gone:1"])
def test_what_has_no_digest_for_all_platforms_changes_nothing(
    tmp_path: Path, client: httpx.Client, reference: str
) -> None:
    text = f"    image: redis:7.2\n    image: {reference}\n"
    (path := tmp_path / "compose.yml").write_text(text)
    with pytest.raises(UnavailableError, match=re.escape(reference)):
        pin([path], client)
    assert path.read_text() == text


def test_references_are_read_as_docker_reads_them() -> None:
    assert Image.of("redis:7.2") == ("registry-1.docker.io", "library/redis", "7.2")
    assert Image.of("prom/prometheus:v3") == ("registry-1.docker.io", "prom/prometheus", "v3")
    assert Image.of("ghcr.io/some/thing:1") == ("ghcr.io", "some/thing", "1")


def test_the_base_images_are_found_in_all_files_that_name_any() -> None:
    named = {path for path in ROOT.glob("deploy/containers/**/*") if path.is_file() and base_images(_text(path))}
    assert named | {ROOT / "docker-compose.yml"} == set(FILES)
    found = {path.name: base_images(path.read_text()) for path in FILES}
    assert {name: {image.split(":")[0] for image in images} for name, images in found.items()} == {
        "docker-compose.yml": {"redis", "nginxinc/nginx-unprivileged", "prom/prometheus", "grafana/grafana"},
        "Dockerfile": {"python"},
        "sept.yaml": {"redis"},
    }
    for path in FILES:
        text = path.read_text()
        again = with_digests(text, dict.fromkeys(base_images(text), OLD))
        assert with_digests(again, dict.fromkeys(base_images(again), OLD)) == again
        assert again.count(OLD) == len(re.findall(r"^\s*image: (?!sept-)|^ARG PYTHON=", text, re.MULTILINE))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return ""
