"""The cluster for tests: what it starts, every way to hurt it, and what is left of it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import quiesce
from quiesce import Client, ConfigurationError, TaskCrashedError
from quiesce.testing import (
    Cluster,
    ClusterError,
    NotInTimeError,
    Witness,
    bodies,
    cluster_life,
    is_running,
    network,
    no_leaks,
    wait_until,
)

SMALL = {"background": {"processes": 1, "slots": 1}}
IS_ROOT = os.geteuid() == 0


def mine(value: int) -> int:
    """A task of this very module."""
    return value + 1


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(runtimes=SMALL) as cluster:
        yield cluster


@pytest.fixture
def wired() -> Iterator[Cluster]:
    with Cluster(runtimes=SMALL, network=True) as cluster:
        yield cluster


@pytest.fixture
def patient() -> Iterator[Cluster]:
    """For tests in which a pool is to outlive a while without its broker, however long a busy machine makes it."""
    with Cluster(runtimes=SMALL, network=True, lease=60.0) as cluster:
        yield cluster


@pytest.fixture
def witness(run_folder: Path) -> Iterator[Witness]:
    with Witness(run_folder / "witness", slots=100) as witness:
        yield witness


def ticking(client: Client, witness: Witness, slot: int, **of: Any) -> "quiesce.TaskHandle[Any]":
    """A task that dozes and ticks, once it does."""
    handle = client.spawn("background", "attach", bodies.doze, witness.path, slot, **of)
    wait_until(lambda: witness.read(slot).ticks)
    return handle


# --- as it is


def test_the_default_one_has_the_default_runtimes(quiesce_cluster: Cluster) -> None:
    assert {each.runtime for each in quiesce_cluster.processes("worker")} == {
        "compute-request",
        "mgmt-request",
        "walreceiver",
        "background",
    }
    client = quiesce_cluster.client()
    assert client.spawn("background", "attach", mine, 1).result(timeout=20) == 2
    assert client.broker_info().pid == quiesce_cluster.processes("broker")[0].pid
    folder = quiesce_cluster.folder
    assert "quiesce is up" in quiesce_cluster.log
    assert quiesce_cluster.stop() == 0
    assert quiesce_cluster.stop() == 0
    assert quiesce_cluster.processes() == []
    assert folder.exists()


@pytest.mark.quiesce_cluster(
    runtimes={"own": {"processes": 1, "title": 'a "quoted" title'}},
    kinds={"counting": {"max_running": 1}},
    durability="none",
    lease=0.5,
    history=7,
    env={"MY_VARIABLE": "1", "HOME": None},
)
def test_any_configuration(quiesce_cluster: Cluster) -> None:
    (runtime,) = quiesce_cluster.config.runtimes
    assert (runtime.name, runtime.title) == ("own", 'a "quoted" title')
    broker = quiesce_cluster.config.broker
    assert (broker.durability, broker.lease, broker.history) == ("none", 0.5, 7)
    client = quiesce_cluster.client()
    assert client.spawn("own", "counting", os.getenv, "MY_VARIABLE").result(20) == "1"
    assert client.spawn("own", "counting", os.getenv, "HOME").result(20) is None
    (worker,) = quiesce_cluster.processes("worker", "own")
    assert worker.command.startswith('a "quoted" title')


def test_a_wrong_configuration_is_told_at_once_and_leaves_nothing() -> None:
    with no_leaks(), pytest.raises(ConfigurationError, match="did you mean 'slots'"):
        Cluster(runtimes={"background": {"slot": 1}})


def test_one_that_does_not_come_up_shows_its_log() -> None:
    cluster = Cluster(runtimes=SMALL)
    (cluster.folder / "run").touch()
    with (
        no_leaks(),
        pytest.raises(ClusterError, match=r"(?s)has ended with status 1\n.* ends so:\n.*/run"),
    ):
        cluster.start()
    assert not cluster.folder.exists()


def test_it_has_an_address_of_its_own() -> None:
    with pytest.raises(TypeError, match="its own address and state"):
        Cluster(address="ipc:///tmp/somewhere", state="/tmp")


def test_a_failing_block_has_the_end_of_the_log_and_leaves_nothing() -> None:
    with no_leaks():
        with pytest.raises(ZeroDivisionError) as raised, Cluster(runtimes=SMALL) as cluster:
            cluster.pause("up")
            raise ZeroDivisionError
        (note,) = raised.value.__notes__
        assert "the log of the cluster ends so:" in note
        assert not cluster.folder.exists()


def test_a_link_takes_no_port_of_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn before the broker has bound its own."""
    draw = network.free_tcp_address
    drawn = draw()
    port = int(drawn.rpartition(":")[2])
    answers = [drawn, f"tcp://127.0.0.1:{port - 1}", f"tcp://127.0.0.1:{port + 1}"]
    monkeypatch.setattr(cluster_life, "free_tcp_address", lambda: drawn)
    monkeypatch.setattr(network, "free_tcp_address", lambda: answers.pop(0) if answers else draw())
    with Cluster(runtimes=SMALL, tcp=True, network=True) as cluster:
        assert cluster.client().workers()
    assert not answers


def test_tcp() -> None:
    with Cluster(runtimes=SMALL, tcp=True, network=True) as cluster:
        assert cluster.address.startswith("tcp://127.0.0.1:")
        client = cluster.client()
        assert client.address != cluster.address
        assert client.spawn("background", "attach", mine, 1).result(timeout=20) == 2
        assert cluster.link("clients").connections == 2


def test_wait_until_says_what_was_seen_last_and_shows_the_log(cluster: Cluster) -> None:
    with pytest.raises(NotInTimeError) as raised:
        cluster.wait_until(list, 0.05, "something")
    assert "after 0.05 s still not so: something; last seen: []" in str(raised.value)
    assert "quiesce is up" in str(raised.value)


# --- processes


def test_kill_a_worker(cluster: Cluster, witness: Witness) -> None:
    client = cluster.client()
    handle = ticking(client, witness, 0)
    worker = cluster.kill("worker", "background")
    instant = witness.now()
    assert not is_running(worker.pid)
    witness.assert_nothing_after(instant, [0], watch=0.1)
    with pytest.raises(TaskCrashedError):
        handle.result(timeout=20)
    cluster.wait_until_ready()


def test_pause_and_resume_exactly_one(cluster: Cluster, witness: Witness) -> None:
    client = cluster.client()
    handle = ticking(client, witness, 0)
    worker = cluster.pause("worker", pid=handle.status().worker_pid)
    instant = witness.now()
    witness.assert_nothing_after(instant, [0], watch=0.2)
    cluster.resume(worker)
    wait_until(lambda: witness.ticked_after(instant, [0]))
    cluster.pause("worker")
    cluster.kill("worker")
    cluster.resume()  # the dead are passed over
    cluster.resume(worker)


def test_restart_everything(cluster: Cluster) -> None:
    client = cluster.client()
    for what in ("worker", "supervisor", "broker", "up"):
        (old,) = cluster.processes(what)
        cluster.restart(what)
        (new,) = cluster.processes(what)
        assert new.pid != old.pid
        assert client.spawn("background", "attach", mine, 1).result(timeout=20) == 2


def test_kill_of_up_and_a_second_life(cluster: Cluster) -> None:
    client = cluster.client()
    handle = client.spawn("background", "attach", mine, 1)
    assert handle.result(timeout=20) == 2
    cluster.kill("up")
    cluster.wait_until(lambda: not cluster.processes())
    with pytest.raises(ClusterError, match="there is no broker to kill; there are: none"):
        cluster.kill("broker")
    cluster.restart("up")
    assert client.task(handle.id).outcome == "completed"


def test_what_tasks_of_a_killed_up_had_started_is_ended_and_told(
    run_folder: Path, witness: Witness
) -> None:
    with Cluster(runtimes=SMALL) as cluster:
        client = cluster.client()
        client.spawn("background", "attach", bodies.with_process, witness.path, 0)
        wait_until(lambda: witness.read(0).ticks)
        cluster.kill("up")
        cluster.stop()
        instant = witness.now()
        (left,) = cluster.left
        assert left.startswith("process ")
        assert "import sys, time" in left
    witness.assert_nothing_after(instant, watch=0.1)


def test_a_system_that_ends_by_itself(cluster: Cluster) -> None:
    client = cluster.client()
    client.spawn("background", "attach", bodies.fail, shutdown_process_on_error=True).wait(20)
    assert cluster.wait() == 1
    assert cluster.stop() == 1


def test_what_is_not_there_is_told(cluster: Cluster) -> None:
    with pytest.raises(ValueError, match="'wroker'"):
        cluster.kill("wroker")
    with pytest.raises(ConfigurationError, match="there is no runtime 'backgroud'; did you mean"):
        cluster.kill("worker", "backgroud")
    with pytest.raises(
        ClusterError, match=r"there is no worker with pid 1 to pause; there are: up"
    ):
        cluster.pause("worker", pid=1)
    with pytest.raises(ClusterError, match="network=True"):
        cluster.partition("broker", "background")
    with pytest.raises(ClusterError, match="disk=True"):
        cluster.fill_disk()


KILLED_RUN = """
import signal, os, sys
from quiesce.testing import Cluster, bodies

cluster = Cluster(runtimes={"background": {"processes": 1, "slots": 1}}, network=True).start()
cluster.client().spawn("background", "attach", bodies.with_process, sys.argv[1], 0)
pids = [each.pid for each in cluster.processes()]
print(cluster.folder, *pids, flush=True)
sys.stdin.read()
"""


def test_a_test_run_that_is_killed_takes_its_cluster_with_it(witness: Witness) -> None:
    command = [sys.executable, "-c", KILLED_RUN, witness.path]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        folder, *pids = process.stdout.readline().split()
        wait_until(lambda: witness.read(0).ticks)
        process.kill()
        process.wait()
    wait_until(lambda: [pid for pid in pids if is_running(int(pid))], wanted=lambda left: not left)
    wait_until(lambda: not Path(folder).exists())
    witness.assert_nothing_after(witness.now(), watch=0.1)


# --- the network


def test_a_partition_of_a_pool_ends_its_tasks_by_the_lease(
    wired: Cluster, witness: Witness
) -> None:
    client = wired.client()
    client.spawn("background", "attach", bodies.stubborn, witness.path, 0, tenant_id="acme")
    wait_until(lambda: witness.read(0).ticks)
    wired.partition("broker", "background")
    (task,) = client.shutdown_tasks(tenant_id="acme", grace=0.0, timeout=30).tasks
    instant = witness.now()
    assert (task.outcome, task.evidence) == ("lost", "FENCED")
    witness.assert_nothing_after(instant, watch=0.1)
    wired.heal()
    wired.wait_until_ready()
    assert client.spawn("background", "attach", mine, 1).result(timeout=20) == 2


def test_a_short_partition_loses_nothing(patient: Cluster, witness: Witness) -> None:
    client = patient.client()
    handle = ticking(client, witness, 0)
    before = patient.link("background")
    patient.partition("background", "broker")
    patient.partition("clients", "broker")
    spawned = client.spawn("background", "attach", mine, 1, tenant_id="acme")
    ticks = witness.read(0).ticks
    wait_until(lambda: witness.read(0).ticks > ticks + 20)
    assert not handle.done()
    patient.heal()
    assert spawned.id
    assert patient.link("background").cuts == before.cuts == 0
    assert handle.shutdown().tasks[0].outcome == "completed"
    assert spawned.result(timeout=20) == 2


def test_one_way_and_one_channel(wired: Cluster) -> None:
    """The broker hears and its answer does not come: the client asks again and gets one answer."""
    client = wired.client()
    wired.partition("broker", "clients", one_way=True, channel="data")
    handle = client.spawn("background", "attach", mine, 1, tenant_id="acme")
    direct = Client(wired.address)
    try:
        wired.wait_until(lambda: direct.tasks(state="ended"))
        assert not handle.done()
        wired.heal("broker", "clients")
        assert handle.result(timeout=20) == 2
        assert len(direct.tasks(state="ended")) == 1
    finally:
        direct.close()


def test_a_delay(wired: Cluster) -> None:
    client = wired.client()

    def took() -> float:
        began = time.monotonic()
        client.broker_info()
        return time.monotonic() - began

    # A busy machine adds to it: what it takes at most is shown by the first that is quick enough.
    wired.delay("clients", "broker", 0.2)
    assert took() >= 0.4
    wired.delay("clients", "broker", 0.2, one_way=True)
    wired.delay("broker", "clients", 0.0, one_way=True)
    assert wait_until(took, wanted=lambda seconds: seconds < 0.4) >= 0.2
    wired.heal("clients")
    wait_until(took, wanted=lambda seconds: seconds < 0.2)


@pytest.mark.parametrize("after", [1, 10, 1000, 70_000])
def test_a_connection_that_breaks_at_a_byte(wired: Cluster, after: int) -> None:
    client = wired.client()
    cuts = wired.link("clients").cuts
    wired.cut("broker", "clients", after=after, channel="data")
    data = client.spawn("background", "attach", bodies.large, 100_000).result(timeout=20)
    assert len(data) == 100_000
    assert wired.link("clients").cuts == cuts + 1


def test_all_connections_of_a_pool_break_now(wired: Cluster, witness: Witness) -> None:
    client = wired.client()
    handle = ticking(client, witness, 0)
    there = wired.link("background").connections
    wired.cut("broker", "background")
    wired.wait_until(lambda: wired.link("background"), wanted=lambda it: it.connections == there)
    assert wired.link("background").cuts == there
    assert handle.shutdown().tasks[0].outcome == "completed"


def test_a_broker_that_is_killed_behind_a_partition(patient: Cluster) -> None:
    client = patient.client()
    handle = client.spawn("background", "attach", mine, 1)
    patient.partition("clients", "broker")
    patient.restart("broker")
    patient.heal()
    assert handle.result(timeout=20) == 2
    assert client.broker_info().epoch == 2


def test_links_that_are_not_there(wired: Cluster) -> None:
    with pytest.raises(ValueError, match="no link between 'background' and 'clients': one end is"):
        wired.partition("background", "clients")
    with pytest.raises(ValueError, match="no link between 'broker' and 'nowhere'"):
        wired.cut("broker", "nowhere")
    with pytest.raises(ValueError, match="a channel is"):
        wired.delay("broker", "clients", 1, channel="both")
    with pytest.raises(ValueError, match="'nowhere'"):
        wired.heal("nowhere")


def test_a_new_connection_behind_a_partition_comes_about_afterwards(
    wired: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one that is held in one direction alone: nothing comes back from nowhere."""
    wired.partition("clients", "broker", one_way=True)
    with pytest.raises(quiesce.BrokerUnavailableError):
        Client(wired.client_address, timeout=0.3)
    wired.cut("clients", "broker")
    with pytest.raises(quiesce.BrokerUnavailableError):
        Client(wired.client_address, timeout=0.3)
    wired.heal()
    with wired.client() as client:
        assert client.broker_info().epoch == 1
    assert caplog.messages == []


# --- the disk


@pytest.mark.skipif(not IS_ROOT, reason="mounting needs root")
def test_a_full_disk_refuses_spawns_and_stops_all_the_same(witness: Witness) -> None:
    with Cluster(runtimes=SMALL, disk=True) as cluster:
        client = cluster.client()
        ticking(client, witness, 0, tenant_id="acme")
        cluster.fill_disk()

        def refused() -> str:
            try:
                client.spawn("background", "attach", mine, 1, tenant_id="other").id  # noqa: B018 - asks
            except quiesce.QueueFullError as error:
                return str(error)
            return ""

        text = cluster.wait_until(refused)
        assert "no room on the broker's disk" in text
        wanted = "it wants 32 MiB free on the disk of {}, beside its reserve of 8 MiB"
        assert text.endswith(wanted.format(cluster.folder / "state"))
        assert len(client.shutdown_tasks(tenant_id="acme").tasks) == 1
        instant = witness.now()
        cluster.free_disk()
        cluster.wait_until(lambda: not refused())
        witness.assert_nothing_after(instant)
        folder = cluster.folder
    assert str(folder) not in Path("/proc/mounts").read_text()


@pytest.mark.skipif(not IS_ROOT, reason="needs root to become somebody else")
def test_a_disk_without_the_right_to_mount_says_what_is_needed(run_folder: Path) -> None:
    code = """if True:
        import os, sys
        from pathlib import Path
        from quiesce.testing.cluster_files import Disk
        os.setgid(65534)
        os.setuid(65534)
        try:
            Disk(Path(sys.argv[1]), 2**20)
        except AssertionError as error:
            print(error)
    """
    command = [sys.executable, "-c", code, str(run_folder / "disk")]
    run_folder.chmod(0o777)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "needs the right to mount (root, CAP_SYS_ADMIN)" in done.stdout, done.stderr


def test_signals_that_end_a_cluster_from_outside(cluster: Cluster) -> None:
    (up,) = cluster.processes("up")
    os.kill(up.pid, signal.SIGTERM)
    assert cluster.wait() == 0


@pytest.mark.skipif(not IS_ROOT, reason="mounting needs root")
def test_a_broker_that_dies_while_its_disk_is_full_comes_back_in_its_reserve() -> None:
    """And where that is taken too, it is started until there is room: there is a system to come back to."""
    with Cluster(runtimes=SMALL, disk=True) as cluster:
        client = cluster.client(timeout=60.0)
        client.shutdown_tasks(tenant_id="acme", keep_closed=True)
        cluster.fill_disk()
        cluster.kill("broker")
        cluster.wait_until_ready()
        with pytest.raises(quiesce.QueueFullError):
            client.spawn("background", "attach", mine, 1).result(timeout=60)
        assert client.shutdown_tasks(tenant_id="globex").tasks == ()

        cluster.fill_disk()
        cluster.kill("broker")
        cluster.wait_until(lambda: cluster.log.count("starting it again") > 6, 60.0)
        cluster.free_disk()
        cluster.wait_until_ready()
        assert client.spawn("background", "attach", mine, 1).result(timeout=60) == 2
        assert [each.scope for each in client.closed_scopes()] == ["tenant_id=acme"]
