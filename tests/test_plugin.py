"""The fixtures, as a user of pytest has them."""

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from quiesce.testing import LeakError, NotInTimeError, Witness, WitnessError, no_leaks, wait_until

TEST = """
import os
import pytest
import quiesce

def work(path, slot):
    from quiesce.testing import Witness
    while not quiesce.wait_for_shutdown(0.01):
        Witness.at(path).tick(slot)

@pytest.mark.quiesce_cluster(runtimes={"background": {"processes": 1}})
@pytest.mark.quiesce_witness(slots=10)
def test_all_of_it(quiesce_cluster, quiesce_witness, quiesce_leaks):
    assert quiesce_witness.slots == 10
    slot = quiesce_witness.new_slot("acme")
    client = quiesce_cluster.client()
    client.spawn("background", "attach", work, quiesce_witness.path, slot, tenant_id="acme")
    quiesce_cluster.wait_until(lambda: quiesce_witness.read(slot).ticks)
    client.shutdown_tasks(tenant_id="acme")
    quiesce_witness.assert_nothing_after(quiesce_witness.now(), quiesce_witness.slots_of("acme"))

@pytest.mark.parametrize("quiesce_witness", [{"slots": 3}], indirect=True)
def test_by_parameter(quiesce_witness):
    assert quiesce_witness.slots == 3

def test_leaves_something(quiesce_leaks):
    os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "1000")
"""


def run_pytest(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """As a user does; the plugin comes from what is installed, if that has one."""
    plugin = (
        [] if entry_points(group="pytest11", name="quiesce") else ["-p", "quiesce.testing.plugin"]
    )
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *plugin, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        timeout=100,
    )


def test_the_fixtures(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(TEST)
    done = run_pytest(tmp_path, "-q", "--strict-markers", "-W", "error")
    text = done.stdout + done.stderr
    # The leak is an error of the teardown, so that its test has passed.
    assert "3 passed, 1 error" in text, text
    assert "ERROR test_mine.py::test_leaves_something" in text, text
    assert "left behind:" in text
    assert "sleep 1000" in text


def test_the_plugin_is_light(tmp_path: Path) -> None:
    """Who does not use it pays for the face and no more."""
    (tmp_path / "test_other.py").write_text(
        "import sys\n"
        "def test_other():\n"
        "    ours = sorted(name for name in sys.modules if name.startswith('quiesce'))\n"
        "    assert ours == ['quiesce', 'quiesce.testing', 'quiesce.testing.plugin']\n"
        "    assert not {'zmq', 'msgpack', 'multiprocess', 'dill'} & set(sys.modules)\n"
    )
    done = run_pytest(tmp_path, "-q", "-W", "error")
    assert done.returncode == 0, done.stdout + done.stderr


# --- the parts that need no cluster


def sleep() -> None:
    os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "1000")


def test_no_leaks_names_what_is_left(run_folder: Path) -> None:
    with no_leaks(run_folder):
        pass
    with (
        pytest.raises(LeakError, match=r"left behind:\n  process \d+, child of \d+: sleep 1000"),
        no_leaks(patience=0.0),
    ):
        sleep()
    (run_folder / "lock").touch()
    with pytest.raises(LeakError, match=r"left behind:\n  file .*/lock"), no_leaks(run_folder):
        pass
    (run_folder / "lock").unlink()
    with pytest.raises(ZeroDivisionError) as raised, no_leaks(patience=0.0):
        sleep()
        raise ZeroDivisionError
    assert "sleep 1000" in raised.value.__notes__[0]


def test_wait_until() -> None:
    found = iter([0, 0, 3])
    assert wait_until(lambda: next(found)) == 3
    assert wait_until(lambda: 0, wanted=lambda seen: seen == 0) == 0
    with pytest.raises(
        NotInTimeError, match=r"after 0\.01 s still not so: .*lambda.*; last seen: 0"
    ):
        wait_until(lambda: 0, 0.01)
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: 1 // 0)


def test_a_witness_names_who_ran_on(tmp_path: Path) -> None:
    with Witness(tmp_path / "witness", slots=5) as witness:
        first = witness.new_slot("acme", "walker")
        second = witness.new_slot("acme", width=2)
        other = witness.new_slot("globex")
        assert [first, second, other] == [0, 1, 3]
        assert witness.slots_of("acme") == [0, 1, 2]
        assert witness.slots_of("acme", "walker") == [0]
        assert witness.slots_of() == [0, 1, 2, 3]
        with pytest.raises(ValueError, match="5 slots, all of them taken"):
            witness.new_slot(width=2)
        instant = witness.now()
        Witness.at(witness.path).tick(other)
        witness.assert_nothing_after(instant, witness.slots_of("acme"))
        witness.assert_nothing_after(witness.now())
        with pytest.raises(WitnessError, match=r"slot 3 \(globex\): \d+\.\d+ ms after, its tick 1"):
            witness.assert_nothing_after(instant)
    witness.close()
