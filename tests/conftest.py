"""Fixtures for every test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(params=["plain", "sp ace", "quo'te", 'dou"ble', "'; echo foo", "new\nline"])
def weird_tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a name that unquoted shell text breaks on."""
    folder = tmp_path / str(request.param)
    folder.mkdir()
    return folder
