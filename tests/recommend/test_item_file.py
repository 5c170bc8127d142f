"""How the catalog's file of a data set was read, as its report tells it."""

from types import SimpleNamespace
from typing import Any

import pytest

from recommend.item_file import reading
from store.artifacts import Release


@pytest.mark.parametrize(
    ("asked", "template", "told", "expected"),
    [
        ("", "{name}", {"titled": True}, True),
        ("{title}", "{title}", {"titled": False}, False),
        # Reports of before do not say it.
        ("", "{title} | {genres}", {}, True),
        ("", "{name} | {genres}", {}, False),
        ("{brand}", "{brand}", {}, True),
    ],
)
def test_whether_the_file_has_titles(
    monkeypatch: pytest.MonkeyPatch, asked: str, template: str, told: dict[str, Any], expected: bool
):
    manifest = {"made_from": {"data": {"template": asked}}, "report": {"load": {"template": template, **told}}}
    monkeypatch.setattr("recommend.item_file.prepared_manifest", lambda folder: manifest)
    found = reading(SimpleNamespace(artifact=lambda kind, key: None), Release())  # type: ignore[arg-type]
    assert (found.titled, found.config.template) == (expected, template)
