"""A short run of the campaign of rotations; `make campaign-rotation` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns.rotation import campaign


@pytest.mark.slow
def test_a_hundred_rotations_are_in_time_and_done_once(tmp_path: Path) -> None:
    result = campaign(14, 4, 2, strikes=0.7, seed=7, directory=tmp_path)
    assert result.wrong == [], str(result)
    assert result.rotations >= 80
