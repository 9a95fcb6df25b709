"""docs/configuration.md says what the settings say."""

from __future__ import annotations

from pathlib import Path

from deploy.docs_tools.reference import PAGE, configuration_page
from deploy.settings import setting_fields

ROOT = Path(__file__).parents[3]


def test_the_reference_page_is_up_to_date() -> None:
    assert (ROOT / PAGE).read_text() == configuration_page(), "run `make docs`"


def test_every_setting_is_documented() -> None:
    page = (ROOT / PAGE).read_text()
    for key, field in setting_fields().items():
        assert field.description, key
        assert f"| `{key}` |" in page
