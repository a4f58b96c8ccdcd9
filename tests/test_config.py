# ruff: noqa: E501 - the tables of wrong inputs have the whole message in one row
"""The configuration: what it is by default, what wins over what, and how it says what is wrong."""

import json
import math
import os
from pathlib import Path

import pytest

from quiesce.broker.settings import BrokerSettings
from quiesce.cli.config import (
    DEFAULT_KINDS,
    DEFAULT_RUNTIMES,
    DEFAULT_SHUTDOWN_ORDER,
    BrokerConfig,
    Config,
    load_config,
)
from quiesce.cli.settings import (
    broker_settings,
    missing_folders,
    pool_settings,
    state_folder,
)
from quiesce.errors import ConfigurationError
from quiesce.registry.leases import is_safe
from quiesce.values import TaskKind
from quiesce.workers.settings import PoolSettings

KEYS_OF_BROKER = (
    "(keys: address, state, lease, lease_bound, clock_drift, kill_delay, durability, stop_timeout, "
    "payload_limit, session_timeout, history, busy_poll, app_dir, log_level, log_file, log_format, metrics, "
    "metrics_public, shutdown_order, default_runtimes)"
)
KEYS_OF_RUNTIME = "(keys: processes, slots, max_queue, kill_neighbours, stop_grace, preload, title)"
KEYS_OF_KIND = "(keys: stop_grace, max_running, max_running_per_tenant)"
ABOUT_VARIABLES = (
    "(a variable can set the keys of runtimes and kinds that the defaults or the file declare)"
)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str = "", **env: str) -> Config:
    Path("quiesce.toml").write_text(text)
    return load_config(env=env)


def problems(text: str = "", **env: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(text, **env)
    return str(caught.value).splitlines()


def names(config: Config) -> list[str]:
    return [runtime.name for runtime in config.runtimes]


# --- what it is


def test_without_a_file_there_are_four_runtimes_and_sixteen_kinds(tmp_path: Path) -> None:
    config = load_config(env={})
    assert config.source is None
    assert {each.name: each.title for each in config.runtimes} == {
        "compute-request": "compute request worker",
        "mgmt-request": "mgmt request worker",
        "walreceiver": "walreceiver worker",
        "background": "background op worker",
    }
    assert {(each.processes, each.slots, each.max_queue) for each in config.runtimes} == {
        (2, 16, 100_000)
    }
    assert [each.name for each in config.kinds] == [kind.value for kind in TaskKind]
    assert {each.stop_grace for each in config.kinds} == {10.0}
    assert config.broker == BrokerConfig(
        address=config.broker.address, app_dir=str(tmp_path), shutdown_order=DEFAULT_SHUTDOWN_ORDER
    )


def test_a_table_of_a_default_runtime_changes_it() -> None:
    config = load("[runtimes.background]\nslots = 1\n")
    assert names(config) == list(DEFAULT_RUNTIMES)
    assert [each.slots for each in config.runtimes] == [16, 16, 16, 1]
    assert config.runtime("background").title == "background op worker"


def test_a_runtime_of_its_own_replaces_the_four() -> None:
    config = load("[runtimes.gpu]\nprocesses = 1\n[runtimes.background]\nslots = 1\n")
    assert names(config) == ["gpu", "background"]
    assert config.runtime("gpu").title == "gpu worker"
    assert config.runtime("background").processes == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[runtimes.gpu]\n[broker]\ndefault_runtimes = true", [*DEFAULT_RUNTIMES, "gpu"]),
        ("[runtimes.background]\n[broker]\ndefault_runtimes = false", ["background"]),
    ],
)
def test_default_runtimes_says_so_outright(text: str, expected: list[str]) -> None:
    assert names(load(text)) == expected


def test_kinds_add_to_the_sixteen() -> None:
    config = load(
        "[kinds.vacuum]\nstop_grace = inf\n[kinds.compaction]\nmax_running_per_tenant = 1\n"
    )
    assert [each.name for each in config.kinds] == [*DEFAULT_KINDS, "vacuum"]
    by_name = {each.name: each for each in config.kinds}
    assert by_name["vacuum"].stop_grace == math.inf
    assert by_name["compaction"].max_running_per_tenant == 1
    assert by_name["compaction"].stop_grace == 10.0


def test_every_key_from_a_file(tmp_path: Path) -> None:
    config = load(
        """
        [broker]
        address = "tcp://127.0.0.1:7000"
        state = "here/state"
        lease = 6
        lease_bound = 13.5
        clock_drift = 0.1
        kill_delay = 2
        durability = "power-loss"
        stop_timeout = 0
        payload_limit = 2048
        session_timeout = 10
        history = 0
        busy_poll = 0
        app_dir = "."
        log_level = "debug"
        log_file = "log"
        log_format = "json"
        metrics = "0.0.0.0:9464"
        metrics_public = true
        shutdown_order = ["compaction", "*"]
        [runtimes.background]
        processes = 3
        slots = 4
        max_queue = 5
        kill_neighbours = true
        stop_grace = inf
        preload = ["json", "os.path"]
        title = "bg"
        """
    )
    assert config.broker == BrokerConfig(
        address="tcp://127.0.0.1:7000",
        state=str(tmp_path / "here/state"),
        lease=6.0,
        lease_bound=13.5,
        clock_drift=0.1,
        kill_delay=2.0,
        durability="power-loss",
        stop_timeout=0.0,
        payload_limit=2048,
        session_timeout=10.0,
        history=0,
        busy_poll=0.0,
        app_dir=str(tmp_path),
        log_level="DEBUG",
        log_file=str(tmp_path / "log"),
        log_format="json",
        metrics="0.0.0.0:9464",
        metrics_public=True,
        shutdown_order=("compaction", "*"),
    )
    background = config.runtime("background")
    assert (background.processes, background.slots, background.max_queue) == (3, 4, 5)
    assert (background.kill_neighbours, background.stop_grace) == (True, math.inf)
    assert (background.preload, background.title) == (("json", "os.path"), "bg")


# --- where it comes from


def test_the_environment_wins_over_the_file_and_that_over_the_default() -> None:
    text = "[broker]\nlease = 5\nstop_timeout = 6\n[kinds.compaction]\nstop_grace = 7\n"
    config = load(
        text,
        QUIESCE_BROKER_LEASE="8",
        QUIESCE_KINDS_COMPACTION_STOP_GRACE="inf",
        QUIESCE_KINDS_INITIAL_LOGICAL_SIZE_CALCULATION_MAX_RUNNING="2",
        QUIESCE_RUNTIMES_COMPUTE_REQUEST_SLOTS="9",
        QUIESCE_RUNTIMES_BACKGROUND_KILL_NEIGHBOURS="true",
        QUIESCE_RUNTIMES_BACKGROUND_PRELOAD="json, os.path",
        QUIESCE_BROKER_LOG_LEVEL="",
    )
    assert (config.broker.lease, config.broker.stop_timeout, config.broker.history) == (
        8,
        6,
        10_000,
    )
    assert config.runtime("compute-request").slots == 9
    assert config.runtime("background").kill_neighbours is True
    assert config.runtime("background").preload == ("json", "os.path")
    by_name = {each.name: each for each in config.kinds}
    assert by_name["compaction"].stop_grace == math.inf
    assert by_name["initial-logical-size-calculation"].max_running == 2
    assert config.broker.log_level == "INFO"  # empty is as good as unset


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, "ipc:///tmp/file"),
        ({"QUIESCE_ADDRESS": "ipc:///tmp/short"}, "ipc:///tmp/short"),
        ({"QUIESCE_BROKER_ADDRESS": "ipc:///tmp/long"}, "ipc:///tmp/long"),
        (
            {"QUIESCE_ADDRESS": "ipc:///tmp/short", "QUIESCE_BROKER_ADDRESS": "ipc:///tmp/long"},
            "ipc:///tmp/long",
        ),
    ],
)
def test_the_address_has_a_short_variable(env: dict[str, str], expected: str) -> None:
    assert load('[broker]\naddress = "ipc:///tmp/file"\n', **env).broker.address == expected


def test_variables_reach_runtimes_that_the_file_declares() -> None:
    config = load("[runtimes.gpu-a]\n", QUIESCE_RUNTIMES_GPU_A_SLOTS="3")
    assert [(each.name, each.slots) for each in config.runtimes] == [("gpu-a", 3)]


def test_pyproject_is_read_where_it_speaks_of_quiesce() -> None:
    Path("pyproject.toml").write_text("[tool.other]\nbroken = 1\n")
    assert load_config(env={}).source is None
    Path("pyproject.toml").write_text("[tool.quiesce.broker]\nlease = 5\n")
    config = load_config(env={})
    assert (config.source, config.broker.lease) == (Path("pyproject.toml"), 5)
    assert load("[broker]\nlease = 6\n").broker.lease == 6  # quiesce.toml comes first


def test_a_broken_pyproject_of_somebody_else_is_no_business_of_ours() -> None:
    Path("pyproject.toml").write_text("[project\nname = quiesce")
    assert load_config(env={}).source is None


def test_a_named_file_is_read_instead(tmp_path: Path) -> None:
    Path("quiesce.toml").write_text("nonsense")
    Path("other").mkdir()
    named = Path("other/some.toml")
    named.write_text('[broker]\nlease = 7\nstate = "state"\n')
    for config in (load_config(named, env={}), load_config(env={"QUIESCE_CONFIG": str(named)})):
        assert config.broker.lease == 7
        assert config.broker.state == str(tmp_path / "other" / "state")  # relative to its file


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_named_file_must_be_there(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"(there is no such file|is a folder)$"):
        load_config(name, env={})
    with pytest.raises(ConfigurationError, match="from QUIESCE_CONFIG"):
        load_config(env={"QUIESCE_CONFIG": name})


# --- what is wrong

LEAST = ": a supervisor could still run when it is declared dead. The least is"
RULE = (
    " = (1 + clock_drift) * (lease / (1 - clock_drift) + kill_delay); leave the key out to get it"
)
WRONG = [
    ("[brokr]", "quiesce.toml:1: there is no table [brokr]; did you mean 'broker'? (tables: broker, runtimes, kinds)"),
    ("[runtime.background]", "quiesce.toml:1: there is no table [runtime]; did you mean 'runtimes'? (tables: broker, runtimes, kinds)"),
    ("lease = 3", "quiesce.toml:1: there is no key 'lease' here; did you mean [broker] lease? (tables: broker, runtimes, kinds)"),
    ("\n[broker]\n\nleese = 3", f"quiesce.toml:4: [broker] has no key 'leese'; did you mean 'lease'? {KEYS_OF_BROKER}"),
    ("[runtimes.background]\nslot = 3", f"quiesce.toml:2: [runtimes.background] has no key 'slot'; did you mean 'slots'? {KEYS_OF_RUNTIME}"),
    ("runtimes.background.zzz = 3", f"quiesce.toml:1: [runtimes.background] has no key 'zzz' {KEYS_OF_RUNTIME}"),
    ("[kinds]\ncompaction = { stop_grce = 3 }", f"quiesce.toml:2: [kinds.compaction] has no key 'stop_grce'; did you mean 'stop_grace'? {KEYS_OF_KIND}"),
    ("broker = 3", "quiesce.toml:1: broker: expected a table, got 3"),
    ("[runtimes]\nbackground = 3", "quiesce.toml:2: [runtimes] background: expected a table [runtimes.NAME], got 3"),
    ('[runtimes."a b"]', "quiesce.toml:1: [runtimes.a b]: the name of a runtime has 1 to 64 letters, digits, '-', '_' and '.', and begins and ends with a letter or digit"),
    ("[broker]\nlease = '3'", "quiesce.toml:2: [broker] lease: expected a number of seconds from 0.5 to 3600, got '3'"),
    ("[broker]\nlease = true", "quiesce.toml:2: [broker] lease: expected a number of seconds from 0.5 to 3600, got true"),
    ("[broker]\nlease = nan", "quiesce.toml:2: [broker] lease: expected a number of seconds from 0.5 to 3600, got nan"),
    ("[broker]\nclock_drift = 0.6", "quiesce.toml:2: [broker] clock_drift: expected a number from 0 to 0.5, got 0.6"),
    ("[broker]\nclock_drift = -0.1", "quiesce.toml:2: [broker] clock_drift: expected a number from 0 to 0.5, got -0.1"),
    ("[broker]\nkill_delay = -1", "quiesce.toml:2: [broker] kill_delay: expected a number of seconds from 0 to 3600, got -1"),
    ("[broker]\nlease_bound = inf", "quiesce.toml:2: [broker] lease_bound: expected a number of seconds from 0.5 to 86400, got inf"),
    ("[broker]\nlease_bound = 32", f"quiesce.toml:2: [broker] lease_bound: 32 s is not safe with lease 30, clock_drift 0.03, kill_delay 1{LEAST} 32.886 s{RULE}"),
    ("[broker]\nlease_bound = 7\nlease = 6\nkill_delay = 0.5\nclock_drift = 0.1", f"quiesce.toml:2: [broker] lease_bound: 7 s is not safe with lease 6, clock_drift 0.1, kill_delay 0.5{LEAST} 7.884 s{RULE}"),
    # What it depends on is wrong itself: that is said alone.
    ("[broker]\nlease_bound = 7\nlease = 0", "quiesce.toml:3: [broker] lease: expected a number of seconds from 0.5 to 3600, got 0"),
    ("[broker]\nstop_timeout = inf", "quiesce.toml:2: [broker] stop_timeout: expected a number of seconds from 0 to 86400, got inf"),
    ("[broker]\ndurability = 'crsh'", "quiesce.toml:2: [broker] durability: expected one of power-loss, crash, none; got 'crsh'; did you mean 'crash'?"),
    ("[broker]\nlog_format = 'yaml'", "quiesce.toml:2: [broker] log_format: expected one of console, json; got 'yaml'"),
    ("[broker]\nmetrics = '9464'", "quiesce.toml:2: [broker] metrics: expected HOST:PORT, such as 127.0.0.1:9464 or [::1]:9464 (port 0: any free one), got '9464'"),
    ("[broker]\nmetrics = 'localhost:99999'", "quiesce.toml:2: [broker] metrics: expected HOST:PORT, such as 127.0.0.1:9464 or [::1]:9464 (port 0: any free one), got 'localhost:99999'"),
    ("[broker]\nmetrics = '::1:9464'", "quiesce.toml:2: [broker] metrics: expected HOST:PORT, such as 127.0.0.1:9464 or [::1]:9464 (port 0: any free one), got '::1:9464'"),
    ("[broker]\nmetrics = '0.0.0.0:9464'", "quiesce.toml:2: [broker] metrics: 0.0.0.0:9464 can be reached from other machines, and whoever reaches it may read it: use 127.0.0.1, or add metrics_public = true"),
    ("[broker]\nlog_level = 'chatty'", "quiesce.toml:2: [broker] log_level: expected one of DEBUG, INFO, WARNING, ERROR, CRITICAL; got 'chatty'"),
    ("[broker]\nshutdown_order = ['compacton']", "quiesce.toml:2: [broker] shutdown_order: there is no kind 'compacton'; did you mean 'compaction'?"),
    ("[broker]\nshutdown_order = ['*', '*']", "quiesce.toml:2: [broker] shutdown_order: '*' is in the list twice"),
    ("[broker]\nshutdown_order = 'compaction'", "quiesce.toml:2: [broker] shutdown_order: expected a list of kinds, got 'compaction'"),
    ("[broker]\naddress = ''", "quiesce.toml:2: [broker] address: expected a text on one line, got ''"),
    ("[broker]\napp_dir = '/nowhere'", "quiesce.toml:2: [broker] app_dir: there is no folder /nowhere"),
    ("[broker]\ndefault_runtimes = false", "quiesce.toml:2: [broker] default_runtimes: false, but no [runtimes.NAME] is declared"),
    ("[runtimes.background]\nprocesses = 0", "quiesce.toml:2: [runtimes.background] processes: expected a whole number from 1 to 1024, got 0"),
    ("[runtimes.background]\nslots = 257", "quiesce.toml:2: [runtimes.background] slots: expected a whole number from 1 to 256, got 257"),
    ("[runtimes.background]\nslots = 1.5", "quiesce.toml:2: [runtimes.background] slots: expected a whole number from 1 to 256, got 1.5"),
    ("[runtimes.background]\nkill_neighbours = 1", "quiesce.toml:2: [runtimes.background] kill_neighbours: expected true or false, got 1"),
    ("[runtimes.background]\npreload = ['a-b']", "quiesce.toml:2: [runtimes.background] preload: expected a list of modules to import, but it holds 'a-b'"),
    ("[kinds.x]\nstop_grace = -1", "quiesce.toml:2: [kinds.x] stop_grace: expected a number of seconds from 0 to 86400 or inf, got -1"),
    ("[kinds.x]\nmax_running = 0", "quiesce.toml:2: [kinds.x] max_running: expected a whole number from 1 to 2147483648, got 0"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), WRONG)
def test_what_is_wrong_is_said_with_its_place(text: str, expected: str) -> None:
    assert problems(text) == [expected]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("/tmp", "Is a directory"),
        ("pipe", "No such device or address"),  # one that nobody reads
        ("/nowhere/log", None),
    ],
)
def test_a_log_file_that_can_not_be_written_is_said_to_who_runs_the_system(
    tmp_path: Path, given: str, why: str | None
) -> None:
    os.mkfifo("pipe")
    path = tmp_path / given
    Path("quiesce.toml").write_text(f"[broker]\nlog_file = {str(given)!r}\n")
    text = f"{path} can't be written: {why}; name a file that can be, or leave it out"
    with pytest.raises(ConfigurationError) as caught:
        load_config(env={}, to_run=True)
    text = text if why else "there is no folder /nowhere"
    assert str(caught.value) == f"quiesce.toml:2: [broker] log_file: {text}"
    if why:
        assert load_config(env={}).broker.log_file == str(path)


def test_a_log_file_is_left_alone_by_others() -> None:
    load("[broker]\nlog_file = 'log'\n")
    assert not Path("log").exists()


def test_a_current_folder_that_is_gone_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigurationError, match="the current folder no longer exists: cd to one"):
        load_config(env={})


WRONG_ENVIRONMENT = [
    ({"QUIESCE_BROKER_LEESE": "3"}, f"environment: QUIESCE_BROKER_LEESE names no key; did you mean 'QUIESCE_BROKER_LEASE'? {ABOUT_VARIABLES}"),
    ({"QUIESCE_ADRESS": "ipc:///tmp/x"}, f"environment: QUIESCE_ADRESS names no key; did you mean 'QUIESCE_ADDRESS'? {ABOUT_VARIABLES}"),
    ({"QUIESCE_STATE": "/tmp/x"}, f"environment: QUIESCE_STATE names no key; did you mean 'QUIESCE_BROKER_STATE'? {ABOUT_VARIABLES}"),
    ({"QUIESCE_LEASE": "3"}, f"environment: QUIESCE_LEASE names no key; did you mean 'QUIESCE_BROKER_LEASE'? {ABOUT_VARIABLES}"),
    ({"QUIESCE_RUNTIMES_GPU_SLOTS": "3"}, f"environment: QUIESCE_RUNTIMES_GPU_SLOTS names no key; did you mean 'QUIESCE_RUNTIMES_BACKGROUND_SLOTS'? {ABOUT_VARIABLES}"),
    ({"QUIESCE_BROKER_LEASE": "x"}, "environment: QUIESCE_BROKER_LEASE: expected a number of seconds from 0.5 to 3600, got 'x'"),
    ({"QUIESCE_BROKER_LEASE_BOUND": "30"}, f"environment: QUIESCE_BROKER_LEASE_BOUND: 30 s is not safe with lease 30, clock_drift 0.03, kill_delay 1{LEAST} 32.886 s{RULE}"),
    ({"QUIESCE_RUNTIMES_BACKGROUND_SLOTS": "1.5"}, "environment: QUIESCE_RUNTIMES_BACKGROUND_SLOTS: expected a whole number from 1 to 256, got 1.5"),
    ({"QUIESCE_RUNTIMES_BACKGROUND_KILL_NEIGHBOURS": "yes"}, "environment: QUIESCE_RUNTIMES_BACKGROUND_KILL_NEIGHBOURS: expected true or false, got 'yes'"),
]  # fmt: skip


@pytest.mark.parametrize(("env", "expected"), WRONG_ENVIRONMENT)
def test_what_is_wrong_in_the_environment_is_said(env: dict[str, str], expected: str) -> None:
    assert problems("", **env) == [expected]


def test_all_that_is_wrong_is_said_at_once() -> None:
    found = problems(
        "[broker]\nlease = 0\nhistry = 3\n[kinds.x]\nmax_running = 'a'", QUIESCE_BROKER_STATE_="x"
    )
    assert [line.split(" ")[0] for line in found] == [
        "quiesce.toml:2:",
        "quiesce.toml:3:",
        "quiesce.toml:5:",
        "environment:",
    ]


def test_variables_of_others_are_let_be() -> None:
    config = load(
        "",
        QUIESCE_RUN="1",  # in a task, and all that it starts
        QUIESCE_WORKER="1",
        QUIESCE_ATTEMPT="1",
        QUIESCE_SERVICE_HOST="10.0.0.1",  # Kubernetes says so of a service named quiesce,
        QUIESCE_BROKER_SERVICE_PORT="1",  # or quiesce-broker
        QUIESCE_BROKER_PORT_1234_TCP_ADDR="10.0.0.1",
        QUIESCE_TEST_SEED="1",
        QUIESCE_DEBUG="1",
    )
    assert names(config) == list(DEFAULT_RUNTIMES)


def test_a_variable_does_not_bring_a_replaced_runtime_back() -> None:
    (problem,) = problems("[runtimes.gpu]\n", QUIESCE_RUNTIMES_BACKGROUND_SLOTS="3")
    assert problem == (
        "environment: QUIESCE_RUNTIMES_BACKGROUND_SLOTS: there is no runtime 'background': "
        "the file declares its own (gpu)"
    )


def test_an_ambiguous_variable_is_refused() -> None:
    (problem,) = problems("[kinds.a-b]\n[kinds.a_b]\n", QUIESCE_KINDS_A_B_MAX_RUNNING="3")
    assert problem == (
        "environment: QUIESCE_KINDS_A_B_MAX_RUNNING may mean [kinds.a-b] max_running and "
        "[kinds.a_b] max_running; use a file instead"
    )


def test_pyproject_is_named_with_its_own_headers() -> None:
    Path("pyproject.toml").write_text('[project]\nname = "x"\n[tool.quiesce.broker]\nlease = 0\n')
    with pytest.raises(ConfigurationError) as caught:
        load_config(env={})
    assert str(caught.value) == (
        "pyproject.toml:4: [tool.quiesce.broker] lease: expected a number of seconds from 0.5 to 3600, got 0"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[broker", "quiesce.toml: is not valid TOML: "),
        (b"\xff", "quiesce.toml: is not UTF-8 text: "),
    ],
)
def test_what_is_no_toml_is_said(content: bytes, expected: str) -> None:
    Path("quiesce.toml").write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        load_config(env={})
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    "address",
    ["tcp://0.0.0.0:5000", "tcp://example.com:5000", "tcp://[::1]:5000", "http://x", "ipc://rel"],
)
def test_an_unusable_address_is_refused(address: str) -> None:
    (problem,) = problems(f"[broker]\naddress = '{address}'")
    assert problem.startswith(f"quiesce.toml:2: [broker] address: address {address!r}: ")


def test_what_looks_like_a_slip_is_a_warning() -> None:
    config = load("[kinds.compactoin]\n[kinds.compaction-2]\n[runtimes.backgruond]\n")
    assert config.warnings == (
        "quiesce.toml:1: [kinds.compactoin] declares a new kind; did you mean 'compaction'?",
        "quiesce.toml:3: [runtimes.backgruond] declares a new runtime; did you mean 'background'?",
    )


def test_an_unknown_runtime_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load().runtime("backgroud")
    assert str(caught.value) == (
        "there is no runtime 'backgroud'; did you mean 'background'? "
        "(runtimes: compute-request, mgmt-request, walreceiver, background)"
    )


# --- what is handed on


def test_the_state_folder_has_a_place_of_its_own(tmp_path: Path) -> None:
    config = load()
    home, xdg = tmp_path / "home", tmp_path / "xdg"
    assert state_folder(config, {"HOME": str(home)}) == str(home / ".local/state/quiesce")
    assert state_folder(config, {"HOME": str(home), "XDG_STATE_HOME": str(xdg)}) == str(
        xdg / "quiesce"
    )
    assert state_folder(config, {"HOME": str(home), "XDG_STATE_HOME": "relative"}) == str(
        home / ".local/state/quiesce"
    )
    assert (xdg / "quiesce").stat().st_mode & 0o777 == 0o700


def test_folders_that_a_start_would_make(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path / "home")}
    local = tmp_path / "home" / ".local"
    local.mkdir(parents=True)
    new = missing_folders(load(), env)
    assert new == (str(local / "state/quiesce"), str(local / "state"))
    state_folder(load(), env)
    assert missing_folders(load(), env) == ()


def test_without_a_place_for_the_state_the_start_stops(tmp_path: Path) -> None:
    advice = "name a folder that can be written: [broker] state or QUIESCE_BROKER_STATE"
    with pytest.raises(ConfigurationError) as caught:
        state_folder(load(), {})
    assert str(caught.value) == (
        f"no folder for the broker's state: neither XDG_STATE_HOME nor HOME is set; {advice}"
    )
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError) as caught:
        state_folder(load(), {"HOME": str(tmp_path / "file")})
    assert str(caught.value) == (
        f"the broker's state folder {tmp_path}/file/.local/state/quiesce can't be made: "
        f"Not a directory; {advice}"
    )


def test_the_broker_gets_what_it_needs() -> None:
    text = "[broker]\naddress = 'ipc:///tmp/x'\nstate = 'state'\nshutdown_order = ['compaction']\n[kinds.x]\nstop_grace = inf"
    settings = broker_settings(load(text), parent_pid=7)
    assert (settings.control, settings.data) == ("ipc:///tmp/x/control", "ipc:///tmp/x/data")
    assert settings.lock_path == "/tmp/x/lock"
    assert settings.state == os.path.abspath("state")
    assert settings.shutdown_order == ("compaction", "*")
    assert settings.parent_pid == 7
    line = settings.to_json()
    assert "\n" not in line
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert BrokerSettings.from_json(line) == settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (30.0, 33.0, 0.03, 1.0)),
        ("lease = 2", (2.0, 3.5, 0.03, 1.0)),  # 3.154, up to the next half
        ("lease = 2\nkill_delay = 0\nclock_drift = 0", (2.0, 2.0, 0.0, 0.0)),
        ("lease = 2\nlease_bound = 3.154", (2.0, 3.154, 0.03, 1.0)),
        ("lease_bound = 100", (30.0, 100.0, 0.03, 1.0)),
    ],
)
def test_the_broker_gets_the_terms_of_leases(
    text: str, expected: tuple[float, float, float, float]
) -> None:
    settings = broker_settings(load(f"[broker]\nstate = 'state'\n{text}"), run="abc")
    terms = (settings.lease, settings.lease_bound, settings.clock_drift, settings.kill_delay)
    assert terms == expected
    assert is_safe(settings.lease_bound, settings.lease, settings.clock_drift, settings.kill_delay)
    assert (settings.run, settings.swept, settings.stopping) == ("abc", (), "")


def test_over_tcp_the_lock_is_in_the_state_folder() -> None:
    settings = broker_settings(load("[broker]\naddress = 'tcp://127.0.0.1:70'\nstate = 'state'"))
    assert (settings.control, settings.data) == ("tcp://127.0.0.1:70", "tcp://127.0.0.1:71")
    assert settings.lock_path == os.path.abspath("state/lock")


def test_a_pool_gets_what_it_needs(tmp_path: Path) -> None:
    config = load(
        "[broker]\naddress = 'ipc:///tmp/x'\n[runtimes.background]\nslots = 3\npreload = ['json']"
    )
    settings = pool_settings(config, "background", parent_pid=7, table_fd=9, run="abc")
    assert settings == PoolSettings(
        runtime="background",
        address="ipc:///tmp/x",
        control="ipc:///tmp/x/control",
        data="ipc:///tmp/x/data",
        processes=2,
        slots=3,
        app_dir=str(tmp_path),
        preload=("json",),
        title="background op worker",
        table_fd=9,
        parent_pid=7,
        run="abc",
    )
    assert PoolSettings.from_json(settings.to_json()) == settings
