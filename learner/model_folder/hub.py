"""Whether the Hugging Face hub has a model or a data set: one request, no retries, so a typo is told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from services.errors import UnavailableError

ANSWERS_WITHIN_S = 5.0
"""The hub, about a name."""


def is_on_hub(kind: Literal["model", "dataset"], name: str) -> bool:
    """Whether the hub has it and shows it to this user; UnavailableError when the hub does not answer."""
    try:
        HfApi().repo_info(name, repo_type=kind, timeout=ANSWERS_WITHIN_S)
    except (RepositoryNotFoundError, HFValidationError):
        return False
    except Exception as error:  # its own, its HTTP library's and the system's errors all mean the same here
        raise UnavailableError(
            f"{name} is not on this machine (looked in {Path.cwd()}), "
            f"and the Hugging Face hub does not answer: {error}",
            hint="check the path; without a network, give a folder or file of this machine",
        ) from error
    return True
