"""Random clusters: sessions, supervisors and workers whose messages wait, get lost and come late.

Whatever the registry says of ends and stops must be true, see `registry_cluster`, and the checks of the desk
must hold, after every event. In the end, when nothing is lost any more, every stop is complete.

`RANDOM_EXAMPLES=2000 pytest tests/test_registry_random.py` looks longer, and elsewhere each time.
"""

import itertools
import os
from collections import deque
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from quiesce.registry import events
from quiesce.registry.ids import (
    AttemptKey,
    Incarnation,
    RequestNumber,
    SpawnNumber,
    StopId,
)
from quiesce.registry.scope import Scope
from registry_cluster import Cluster, Process
from registry_helpers import session_id, spawn_row

EXAMPLES = int(os.environ.get("RANDOM_EXAMPLES", "0"))
STEPS = 60

TENANTS = st.sampled_from([None, "x", "y"])
SCOPES = st.builds(
    Scope,
    kind=st.sampled_from([None, None, "gc", "flush"]),
    tenant_id=TENANTS,
    timeline_id=st.sampled_from([None, None, None, "l"]),
    runtime=st.sampled_from([None, None, None, "pool"]),
)
ROWS = st.fixed_dictionaries(
    {
        "runtime": st.sampled_from(["pool"] * 6 + ["solo"] * 2 + ["none"]),
        "kind": st.sampled_from(["gc", "flush"]),
        "tenant_id": TENANTS,
        "timeline_id": st.sampled_from([None, None, "l"]),
        "retries": st.sampled_from([0, 0, 1]),
        "restart": st.sampled_from(["never", "never", "on-failure", "always"]),
        "timeout": st.sampled_from([None, None, 2.0]),
        "unique_key": st.sampled_from([None, None, "k"]),
        "shutdown_process_on_error": st.sampled_from([False] * 19 + [True]),
    }
)
NAMES = st.sampled_from(["A", "B"])
PICK = st.integers(0, 1000)


class Machine(RuleBasedStateMachine):
    """What may happen next."""

    @initialize(flow=st.sampled_from([0, 1, 3, 99, 99]), eager=st.booleans())
    def begin(self, flow: int, eager: bool) -> None:
        """`flow`: how many messages arrive on each connection after each step; `eager`: tasks begin at once."""
        self.cluster = Cluster()
        self.flow, self.eager = flow, eager
        self.reopens = itertools.count(10_000)
        for name in ("A", "B"):
            self.open(name)
        for runtime in ("pool", "pool", "solo"):
            self.start(runtime)
        self.pump(99)

    @invariant()
    def time_flows(self) -> None:
        self.pump(self.flow)

    def pump(self, count: int) -> None:
        """So many messages arrive everywhere."""
        cluster = self.cluster
        for name in ("A", "B"):
            for _ in range(min(count, len(cluster.spawns[name]))):
                cluster.say(cluster.spawns[name].popleft())
        for process in cluster.processes:
            for channel in ("control", "data"):
                for _ in range(min(count, len(process.says[channel]))):
                    cluster.say(process.says[channel].popleft())
                for _ in range(min(count, len(process.to[channel]))):
                    process.take(channel)
            if process.alive and self.eager:
                for key in sorted(process.received):
                    process.begin(key)

    def running(self) -> list[tuple[Process, AttemptKey]]:
        return [
            (process, key)
            for process in self.cluster.processes
            if process.alive
            for key in sorted(process.running)
        ]

    def living(self) -> list[Process]:
        return [process for process in self.cluster.processes if process.alive]

    # --- clients ----------------------------------------------------------------------------------

    def open(self, name: str) -> None:
        self.cluster.spawns[name] = deque()
        self.cluster.sent[name] = 0
        self.cluster.say(events.SessionHello(session_id(name), 1, "here", 0))
        self.cluster.commit()

    @rule(name=NAMES, rows=st.lists(ROWS, min_size=1, max_size=3), atomic=st.booleans())
    def spawn(self, name: str, rows: list[dict[str, Any]], atomic: bool) -> None:
        cluster = self.cluster
        made = []
        for row in rows:
            cluster.sent[name] += 1
            made.append(spawn_row(SpawnNumber(cluster.sent[name]), **row))
        if atomic:
            made = [row._replace(runtime=made[0].runtime) for row in made]
        cluster.spawns[name].append(events.SpawnsAsked(session_id(name), made, atomic))

    @precondition(lambda self: any(self.cluster.spawns.values()))
    @rule(name=NAMES, twice=st.booleans())
    def spawns_arrive(self, name: str, twice: bool) -> None:
        waiting = self.cluster.spawns[name]
        if waiting:
            event = waiting.popleft()
            self.cluster.say(event)
            if twice:
                self.cluster.say(event)

    @rule(
        name=NAMES,
        scope=SCOPES,
        like=PICK,
        task=st.sampled_from([None, None, None, None, 1, 2, 3, 4]),
        timeout=st.sampled_from([None, None, 0.0, 3.0]),
        grace=st.sampled_from([None, 0.0, 5.0, float("inf")]),
        keep=st.sampled_from([False] * 7 + [True]),
        hold=st.sampled_from([False, False, False, True]),
        caller=PICK,
        again=st.booleans(),
    )
    def stop(self, name, scope, like, task, timeout, grace, keep, hold, caller, again) -> None:  # type: ignore[no-untyped-def]  # drawn by hypothesis
        cluster = self.cluster
        live = list(cluster.desk.registry.state.tasks.values())
        if live and like % 2:  # a scope that surely has somebody in it
            of = live[like // 2 % len(live)]
            labels = (of.spawn.kind, of.tenant_id, of.timeline_id, of.spawn.runtime)
            scope = Scope(*[a if like >> bit & 1 else None for bit, a in enumerate(labels, 3)])
        running = [key for _, key in self.running()]
        call = running[caller % len(running)] if running and caller % 5 == 0 else None
        cluster.requests += 1
        inside = call is not None and (
            call[0] == task if task else scope.matches(*cluster.truth.labels[call[0]])
        )
        event = events.StopAsked(
            session_id(name),
            RequestNumber(cluster.requests),
            Scope() if task else scope,
            task,
            grace,
            timeout,
            keep,
            hold,
            "",
            cluster.sent[name],
            call,
        )
        left_out = call[0] if call is not None and inside else None
        cluster.asked[(event.session, event.request)] = (event, left_out)
        cluster.say(event)
        if again:
            cluster.say(event)

    @precondition(lambda self: self.cluster.blocks)
    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        name, stop_id = self.cluster.blocks.pop(pick % len(self.cluster.blocks))
        self.cluster.say(
            events.ReleaseAsked(session_id(name), RequestNumber(9999), StopId(stop_id))
        )

    @rule(scope=SCOPES)
    def reopen(self, scope: Scope) -> None:
        request = RequestNumber(next(self.reopens))
        self.cluster.say(events.ReopenAsked(session_id("A"), request, scope))

    @rule(name=NAMES)
    def results_taken(self, name: str) -> None:
        session = self.cluster.desk.registry.state.sessions[session_id(name)]
        self.cluster.say(events.ResultsTaken(session.id, list(session.results)))
        self.cluster.say(events.SessionHeard(session.id, session.spawned))

    @rule(name=NAMES, pick=PICK)
    def client_dies(self, name: str, pick: int) -> None:
        if pick % 9 == 4:
            self.cluster.say(events.SessionGoodbye(session_id(name)))
            self.cluster.commit()
            self.cluster.blocks = [block for block in self.cluster.blocks if block[0] != name]
            self.cluster.unanswered.pop(session_id(name), None)
            for key in [key for key in self.cluster.asked if key[0] == session_id(name)]:
                del self.cluster.asked[key]
            self.open(name)

    # --- pools ------------------------------------------------------------------------------------

    @rule(runtime=st.sampled_from(["pool", "solo"]))
    def start(self, runtime: str) -> None:
        cluster = self.cluster
        living = [process.runtime for process in cluster.processes if process.alive]
        if living.count(runtime) < 2:
            cluster.serials += 1
            supervisor = cluster.supervisors[runtime]
            cluster.processes.append(Process(cluster.truth, runtime, supervisor, cluster.serials))

    @precondition(lambda self: self.flow < 9)
    @rule(pick=PICK, channel=st.sampled_from(["control", "data"]), count=st.integers(1, 4))
    def broker_hears(self, pick: int, channel: str, count: int) -> None:
        """Also the last words of a dead process."""
        cluster = self.cluster
        speaking = [process for process in cluster.processes if process.says[channel]]
        for _ in range(count if speaking else 0):
            process = speaking[pick % len(speaking)]
            if process.says[channel]:
                cluster.say(process.says[channel].popleft())

    @precondition(lambda self: self.flow < 9)
    @rule(pick=PICK, channel=st.sampled_from(["control", "data"]), count=st.integers(1, 4))
    def worker_hears(self, pick: int, channel: str, count: int) -> None:
        hearing = [process for process in self.cluster.processes if process.to[channel]]
        for _ in range(count if hearing else 0):
            process = hearing[pick % len(hearing)]
            if process.to[channel]:
                process.take(channel)

    @precondition(lambda self: not self.eager)
    @rule(pick=PICK)
    def task_begins(self, pick: int) -> None:
        ready = [
            (process, key)
            for process in self.cluster.processes
            if process.alive
            for key in process.received
        ]
        if ready:
            process, key = ready[pick % len(ready)]
            process.begin(key)

    @precondition(lambda self: self.running())
    @rule(pick=PICK, outcome=st.sampled_from(["completed", "failed", "cancelled", "crashed"]))
    def task_ends(self, pick: int, outcome: str) -> None:
        running = self.running()
        process, key = running[pick % len(running)]
        process.end(key, outcome)

    @precondition(lambda self: self.running())
    @rule(pick=PICK, tenant=TENANTS, timeline=st.sampled_from([None, "l"]))
    def task_associates(self, pick: int, tenant: str | None, timeline: str | None) -> None:
        running = self.running()
        process, key = running[pick % len(running)]
        if process.registered:
            worker = Incarnation(process.incarnation)
            event = events.AssociateAsked(worker, 1, *key, tenant, timeline)
            process.says["control"].append(event)

    @precondition(lambda self: self.running())
    @rule(pick=PICK)
    def task_lingers_and_asks_for_time(self, pick: int) -> None:
        running = self.running()
        process, key = running[pick % len(running)]
        if process.registered:
            worker = Incarnation(process.incarnation)
            process.says["control"].append(events.TaskLingers(worker, *key, "a thread"))
            process.says["control"].append(events.GraceAsked(worker, *key, 1.0))

    @precondition(lambda self: self.living())
    @rule(pick=PICK)
    def connection_breaks(self, pick: int) -> None:
        living = self.living()
        living[pick % len(living)].reconnect()

    @precondition(lambda self: any(process.held for process in self.living()))
    @rule()
    def ends_are_said_again(self) -> None:
        for process in self.living():
            process.say_ended()

    @precondition(lambda self: self.running())
    @rule(pick=PICK, table_known=st.booleans(), lost=st.booleans())
    def process_dies(self, pick: int, table_known: bool, lost: bool) -> None:
        running = self.running()
        process, _ = running[pick % len(running)]
        self.cluster.pending_exits.append(process.die(table_known=table_known))
        if lost:
            process.says["data"].clear()
            process.says["control"].clear()

    @precondition(lambda self: self.cluster.pending_exits)
    @rule(twice=st.booleans())
    def exit_is_reported(self, twice: bool) -> None:
        event = self.cluster.pending_exits.pop(0)
        self.cluster.untaken[(event.supervisor, event.row.serial)] = event
        for _ in range(1 + twice):
            self.cluster.say(event)
        self.start(event.supervisor.decode()[:4])

    @rule(runtime=st.sampled_from(["pool", "solo"]), pick=PICK)
    def supervisor_dies(self, runtime: str, pick: int) -> None:
        cluster = self.cluster
        if pick % 7 == 3:
            old = cluster.supervisors[runtime]
            told = cluster.forget_exits(old)
            told += [
                process.die(table_known=bool(pick % 2))
                for process in cluster.processes
                if process.alive and process.supervisor == old
            ]
            cluster.succeed(
                runtime,
                events.Predecessor(old, 1, -9, bool(pick % 3), [event.row for event in told]),
            )

    @rule(runtime=st.sampled_from(["pool", "solo"]), pick=PICK)
    def supervisor_is_cut_off(self, runtime: str, pick: int) -> None:
        if pick % 9 == 5:
            self.cluster.cut.add(self.cluster.supervisors[runtime])

    @rule(prompt=st.booleans())
    def journal_commits(self, prompt: bool) -> None:
        self.cluster.commit()
        self.cluster.prompt = prompt

    @rule(pick=PICK)
    def broker_dies(self, pick: int) -> None:
        if pick % 5 == 2:
            self.cluster.restart()

    # --- time -------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 0.6, 2.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.cluster.pass_time(seconds)

    @precondition(lambda self: self.cluster.desk.again)
    @rule()
    def slices_go_on(self) -> None:
        self.cluster.desk.go_on()
        self.cluster.follow()

    @rule(pick=PICK)
    def system_stops(self, pick: int) -> None:
        if pick % 50 == 13:
            self.cluster.say(events.SystemStopAsked("SIGTERM"))

    # --- the end ----------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Let everything that is on its way arrive and every task end: then every stop is complete."""
        if not hasattr(self, "cluster"):
            return
        cluster = self.cluster
        cluster.prompt = True
        cluster.commit()
        for runtime in ("pool", "solo"):
            self.start(runtime)
        for turn in range(120):
            self._round(0.6 if turn < 60 else 5.0)
            state = cluster.desk.registry.state
            if not state.tasks and not state.open_stops:
                break
        state = cluster.desk.registry.state
        stuck = [stop.scope for stop in state.open_stops.values()]
        assert not state.open_stops, f"these stops are never complete: {stuck}"
        assert not state.tasks or state.leaving, f"these tasks never end: {sorted(state.tasks)}"

    def _round(self, seconds: float) -> None:
        cluster = self.cluster
        while cluster.pending_exits:
            self.exit_is_reported(False)
        self.eager = True
        self.pump(99)
        for process, key in self.running():
            process.end(key, "cancelled")
        self.ends_are_said_again()
        self.slices_go_on()
        self.time_passes(seconds)
        for runtime in ("pool", "solo"):
            self.start(runtime)


SETTINGS = settings(
    max_examples=EXAMPLES or 100,
    stateful_step_count=STEPS,
    deadline=None,
    derandomize=not EXAMPLES,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    phases=(Phase.generate, Phase.shrink),  # the others trace every line, which takes minutes
)


@pytest.mark.timeout(600)
def test_whatever_happens_every_end_is_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quiesce.registry.stopping.SLICE", 2)
    run_state_machine_as_test(Machine, settings=SETTINGS)
