"""The small log and catalog of tests.data.files, written."""

import pytest

from tests.data.files import ITEMS, LOG, write


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "log.csv", LOG)
    write(tmp_path / "items.csv", ITEMS)
    return tmp_path
