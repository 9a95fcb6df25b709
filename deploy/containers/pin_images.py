"""Writes the digests of the base images into the files that name them: `make pin-images`.

    redis:7.2-bookworm   ->   redis:7.2-bookworm@sha256:...

Each tag is asked of its registry anew, so running it again takes the newer images. Images of our own have no registry.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import httpx

from services import durable
from services.errors import SeptError, UnavailableError

ROOT = Path(__file__).parents[2]
FILES = tuple(
    ROOT / name
    for name in (
        "docker-compose.yml",
        "deploy/containers/docker/Dockerfile",
        "deploy/containers/kubernetes/sept.yaml",
    )
)
"""All that name a base image."""
DOCKER_HUB = "registry-1.docker.io"
TIMEOUT_S = 30.0

# Of all platforms, so that the same digest serves every processor.
_INDEXES = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"
_REFERENCE = re.compile(
    r"(?P<before>^\s*(?:image: |ARG PYTHON=))(?P<image>(?!sept-)[\w.\-/]+:[\w.\-]+)(?:@sha256:[0-9a-f]{64})?(?=\s*$)",
    re.MULTILINE,
)
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


class Image(NamedTuple):
    """Where an image is: Image.of("redis:7.2") is that tag of library/redis on Docker Hub."""

    registry: str
    repository: str
    tag: str

    @classmethod
    def of(cls, reference: str) -> Image:
        """The reference as docker reads it: without a host it is of Docker Hub, without a user an official one."""
        name, _, tag = reference.rpartition(":")
        host, slash, rest = name.partition("/")
        if slash and "." in host:
            return cls(host, rest, tag)
        return cls(DOCKER_HUB, name if slash else f"library/{name}", tag)


def base_images(text: str) -> set[str]:
    """The references in a file, without their digests."""
    return {match["image"] for match in _REFERENCE.finditer(text)}


def with_digests(text: str, digests: dict[str, str]) -> str:
    """The file with each of its references followed by its digest."""
    return _REFERENCE.sub(lambda match: f"{match['before']}{match['image']}@{digests[match['image']]}", text)


def digest_of(reference: str, client: httpx.Client) -> str:
    """The digest that the tag has now, of the very bytes that the registry gives.

    Raises:
        UnavailableError: the registry does not answer, or has no such image for several platforms.
    """
    image = Image.of(reference)
    url = f"https://{image.registry}/v2/{image.repository}/manifests/{image.tag}"
    headers = {"Accept": _INDEXES}
    try:
        answer = client.get(url, headers=headers)
        if answer.status_code == httpx.codes.UNAUTHORIZED:  # also what is public asks for a token, which anybody gets
            asked = dict(_CHALLENGE.findall(answer.headers.get("www-authenticate", "")))
            token = client.get(asked.pop("realm"), params=asked).raise_for_status().json()["token"]
            answer = client.get(url, headers=headers | {"Authorization": f"Bearer {token}"})
        answer.raise_for_status()
    except (httpx.HTTPError, KeyError, ValueError) as error:
        raise UnavailableError(
            f"{image.registry} gives no digest of {reference}: {type(error).__name__}: {error}",
            hint="run it where the registry can be reached; nothing was changed",
        ) from error
    if answer.headers.get("content-type") not in _INDEXES.split(", "):
        raise UnavailableError(
            f"{image.registry} gives no index of {reference} for several platforms, but "
            f"{answer.headers.get('content-type')}",
            hint="name a tag that the registry has; nothing was changed",
        )
    return f"sha256:{hashlib.sha256(answer.content).hexdigest()}"


def pin(files: Iterable[Path], client: httpx.Client) -> dict[str, str]:
    """Write the digests into the files, all or nothing; reference -> digest."""
    texts = {path: path.read_text() for path in files}
    references = sorted(set[str]().union(*map(base_images, texts.values())))
    digests = {reference: digest_of(reference, client) for reference in references}
    for path, text in texts.items():
        durable.write_file(path, with_digests(text, digests))
    return digests


def main() -> str:
    """What is wrong, or empty when the files are written."""
    try:
        with httpx.Client(timeout=TIMEOUT_S, follow_redirects=True) as client:
            pin(FILES, client)
    except SeptError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    raise SystemExit(main() or None)
