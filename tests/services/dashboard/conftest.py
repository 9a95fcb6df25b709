"""The fixtures of the app that the page belongs to."""

from tests.services.api.conftest import endpoint, http

__all__ = ["endpoint", "http"]
