"""What follows in a row in the main thread, while another thread has the lock at any moment: see `streak_house`."""

import subprocess
import sys
from pathlib import Path

import pytest

from streak_house import INTRUSIONS

HOUSE = Path(__file__).parent / "streak_house.py"


@pytest.mark.parametrize("intrusion", INTRUSIONS)
def test_all_agree_on_what_has_begun(intrusion: str) -> None:
    command = [sys.executable, str(HOUSE), intrusion]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1_000
