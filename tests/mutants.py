"""Planted bugs: small mutations of the machines, each a rule that somebody could forget, and who catches it.

`python tests/mutants.py [--only NAME ...] [--all]` copies the tree, plants one after the other, and runs the suites
until one fails (`--all`: all of them). `scripts/mutants` sets everything up for it. A mutation is a text and what
stands in its place; that each still fits the code is tested in the default run.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent


class Mutant(NamedTuple):
    """In `file`, `text` becomes `instead`."""

    name: str
    file: str
    text: str
    instead: str


MUTANTS: Final = (
    # --- stops and closures
    Mutant(
        "a stop does not close its scope",
        "registry/apply_stops.py",
        "        state.closed.setdefault(closure.scope, set()).add(stop_id)\n",
        "",
    ),
    Mutant(
        "a stop forgets its queued tasks",
        "registry/stopping.py",
        "    return turn.state.marked.has(stop.id)\n",
        "    return False\n",
    ),
    Mutant(
        "a slice is missing in the report",
        "registry/apply_slices.py",
        "            state.stops[stop_id].report(reported, _CANCELLED, _NEVER_RAN)\n",
        "            state.stops[stop_id].held.difference_update([row.id for row in reported])\n",
    ),
    Mutant(
        "a stop does not wait for what another has marked",
        "registry/matching.py",
        "        for batch in state.marked\n",
        "        for batch in ()\n",
    ),
    Mutant(
        "a stop of a timeline waits for what another has marked, and the other does no more",
        "registry/marked.py",
        "                self.add(batch.place, Lane(out), batch.stops | {stop_id})\n",
        "                self.add(batch.place, Lane(out), frozenset({stop_id}))\n",
    ),
    Mutant(
        "a kept scope is reopened early",
        "registry/apply_stops.py",
        "        elif stop.keep_closed:\n",
        "        elif False:\n",
    ),
    Mutant(
        "a stop that timed out opens its scope",
        "registry/apply_stops.py",
        "        if fact.timed_out:\n",
        "        if False:\n",
    ),
    Mutant(
        "a stop is complete with tasks left",
        "registry/stopping.py",
        "    if stop is None or stop.held or has_queued(turn, stop):\n        return\n    if not seen_all",
        "    if stop is None or len(stop.held) > 1 or has_queued(turn, stop):\n        return\n    if not seen_all",
    ),
    Mutant(
        "a stop does not wait for the caller's spawns",
        "registry/stopping.py",
        "    if not seen_all(state.sessions.get(stop.session), stop.last_spawn):\n",
        "    if False:\n",
    ),
    Mutant(
        "who comes into a closed scope is asked, but not waited for",
        "registry/stopping.py",
        "            turn.emit(facts.StopJoined(stop.id, task.id))\n",
        "            pass\n",
    ),
    Mutant(
        "who comes into a kept scope is not asked",
        "registry/stopping.py",
        "        stop = state.open_stops.get(stop_id)\n        if stop is None:\n            ask(",
        "        stop = state.open_stops.get(stop_id)\n        if stop is None:\n            continue\n"
        "            ask(",
    ),
    Mutant(
        "an incomplete journal answers at once",
        "registry/stopping.py",
        "    if state.certain_at is not None and not _is_system(turn, stop):\n",
        "    if False:\n",
    ),
    Mutant(
        "a request to stop is not sent again",
        "registry/stopping.py",
        '    turn.timers.set(("resend", task.id), turn.now.tick + RESEND)\n',
        '    turn.timers.set(("resend", task.id), turn.now.tick + 1e9)\n',
    ),
    Mutant(
        "whoever is spoken to more seldom than its lease lasts is frozen",
        "registry/forcing.py",
        "        frozen = not task.ask.answered and when - task.ask.heard > max(turn.state.lease, PATIENCE)\n",
        "        frozen = when - task.ask.heard > turn.state.lease\n",
    ),
    Mutant(
        "who had nothing to answer was silent",
        "registry/forcing.py",
        "        task.ask.heard = turn.now.tick  # it",
        "        pass  # it",
    ),
    Mutant(
        "more time that was asked for without a broker is forgotten",
        "workers/worker_session.py",
        "        effects += self.say_extended(self.extending)\n",
        "",
    ),
    Mutant(
        "more time that is said again is given again",
        "registry/stopping.py",
        "        _set_force(turn, task, present + extended - ask_.extended, extended)\n",
        "        _set_force(turn, task, present + extended, ask_.extended + extended)\n",
    ),
    Mutant(
        "time that stood still uses up the patience of an orderly stop",
        "cli/up.py",
        "                self._deadline += late\n",
        "                pass\n",
    ),
    Mutant(
        "a client that stood still does not read what has arrived",
        "client/waiting.py",
        "            gate.acquire(timeout=HELD_UP)\n",
        "            pass\n",
    ),
    # --- stale words
    Mutant(
        "a stale incarnation is accepted",
        "registry/attempts.py",
        "task.worker != worker or task.attempt != attempt:\n        return None",
        "task.attempt != attempt:\n        return None",
    ),
    Mutant(
        "a stale attempt is accepted",
        "registry/attempts.py",
        "task.worker != worker or task.attempt != attempt:\n        return None",
        "task.worker != worker:\n        return None",
    ),
    Mutant(
        "what was given back is taken back whatever its number",
        "registry/attempts.py",
        "task.assign_number != number or task.state",
        "task.state",
    ),
    Mutant(
        "a worker whose end was reported may come",
        "registry/pools.py",
        "    if event.serial in supervisor.dead_serials:\n",
        "    if False:\n",
    ),
    Mutant(
        "a supervisor whose end was reported may come",
        "registry/pools.py",
        "    elif event.supervisor in state.gone_supervisors:\n",
        "    elif False:\n",
    ),
    Mutant(
        "a supervisor that was not recovered may come",
        "registry/pools.py",
        "    elif known is None and event.incarnation:\n",
        "    elif False:\n",
    ),
    # --- leases
    Mutant(
        "tasks go to a worker whose supervisor is not armed",
        "registry/scheduling.py",
        "    return supervisor.armed and supervisor.silent_since is None\n",
        "    return True\n",
    ),
    Mutant(
        "a lease is called over when it may not be",
        "registry/leasing.py",
        "turn.now.tick + supervisor.bound)",
        "turn.now.tick + supervisor.bound / 2)",
    ),
    Mutant(
        "a lease counts anew from each restart",
        "registry/leasing.py",
        "since + supervisor.bound)",
        "turn.now.tick + supervisor.bound)",
    ),
    Mutant(
        "the lease rule forgets the drift of the other clock",
        "registry/leases.py",
        "(lease / (1.0 - drift) + kill_delay)",
        "(lease + kill_delay)",
    ),
    Mutant(
        "a supervisor counts its lease from the answer",
        "workers/lease.py",
        "        until = sent_at + length\n",
        "        until = now + length\n",
    ),
    Mutant(
        "an old answer brings back a lease that is half over in a moment",
        "workers/lease.py",
        "now <= self._half() - self.ask_every",
        "now < self._half()",
    ),
    Mutant(
        "a lease that is over proves the end of what is left",
        "broker/core.py",
        "            if over and not self._is_clear(supervisor):\n",
        "            if False:\n",
    ),
    Mutant(
        "a session that was found silent once is forgotten",
        "registry/sessions.py",
        "    if is_silent and session.last_heard != DOUBTED:\n",
        "    if False:\n",
    ),
    Mutant(
        "a supervisor that was away for half a lease asks nobody",
        "workers/lease.py",
        "now > due + patience or now < asked + patience",
        "now > due + patience",
    ),
    # --- deaths, retries, force
    Mutant(
        "what may have begun is queued again",
        "registry/pools.py",
        "        elif phase is None and row.table_known and task.state is TaskState.ASSIGNED:\n",
        "        elif phase is None and task.state is TaskState.ASSIGNED:\n",
    ),
    Mutant(
        "what had ended is called crashed",
        "registry/pools.py",
        "        if phase in ENDED:\n",
        "        if False:\n",
    ),
    Mutant(
        "what was stopped runs again",
        "registry/ending.py",
        "    if _asked(task) or turn.state.stopping:\n",
        "    if turn.state.stopping:\n",
    ),
    Mutant(
        "a retry goes into a closed scope",
        "registry/ending.py",
        "    return not (\n        closing(",
        "    return True or not (\n        closing(",
    ),
    Mutant(
        "a forced end is a crash",
        "registry/pools.py",
        "Outcome.CANCELLED if asked else Outcome.CRASHED",
        "Outcome.CRASHED",
    ),
    Mutant(
        "force takes the neighbours along",
        "registry/waiting.py",
        "    if innocent and not frozen and not ",
        "    if False and innocent and not ",
    ),
    # --- the journal's order, sessions, recovery
    Mutant(
        "a stop is answered before its facts are safe",
        "registry/effects.py",
        "HASTY: Final = frozenset(\n    {",
        "HASTY: Final = frozenset(\n    {AnswerStop, ",
    ),
    Mutant(
        "a spawn is answered before its facts are safe",
        "registry/effects.py",
        "HASTY: Final = frozenset(\n    {",
        "HASTY: Final = frozenset(\n    {AnswerSpawns, ",
    ),
    Mutant(
        "a task is assigned before its facts are safe",
        "registry/effects.py",
        "HASTY: Final = frozenset(\n    {",
        "HASTY: Final = frozenset(\n    {AssignTasks, ",
    ),
    Mutant(
        "an end is acknowledged before its facts are safe",
        "registry/effects.py",
        "HASTY: Final = frozenset(\n    {",
        "HASTY: Final = frozenset(\n    {TakeEnds, ",
    ),
    Mutant(
        "a spawn that comes again runs again",
        "registry/spawning.py",
        "        rows = [row for row in single if row.number > last]\n",
        "        rows = [row._replace(number=last + 1 + n) for n, row in enumerate(single)]\n",
    ),
    Mutant(
        "a session that was forgotten is opened anew",
        "registry/sessions.py",
        "    if session is None and event.resumed:\n",
        "    if False:\n",
    ),
    Mutant(
        "a recovered worker counts as reached",
        "registry/recovery.py",
        "        worker.attached = False\n",
        "        worker.attached = True\n",
    ),
    Mutant(
        "a task that ended in time has timed out",
        "registry/attempts.py",
        "            in_time=_in_time(task, row),\n",
        "",
    ),
    Mutant(
        "a recovered task has timed out before its worker has said that it still runs",
        "registry/recovery.py",
        "age, at_least=turn.state.lease)",
        "age)",
    ),
    Mutant(
        "a step of force that can't reach the worker counts",
        "registry/forcing.py",
        "    if not worker.attached and turn.now.tick",
        "    if False and turn.now.tick",
    ),
    Mutant(
        "force waits for ever for a worker that does not come back",
        "registry/forcing.py",
        "    if not worker.attached and turn.now.tick - task.ask.heard <= turn.state.lease:\n",
        "    if not worker.attached:\n",
    ),
    Mutant(
        "a recovered stop has no time limit",
        "registry/recovery.py",
        '        turn.timers.set(("stop", stop.id), turn.now.tick + left)\n',
        "",
    ),
    Mutant(
        "a task that was frozen ahead, and is joined, is written as it was",
        "registry/ahead.py",
        "(facts.TaskAssigned, facts.SpawnJoined)",
        "(facts.TaskAssigned,)",
    ),
    Mutant(
        "a task that was frozen ahead, and is assigned, is written as it was",
        "registry/ahead.py",
        "(facts.TaskAssigned, facts.SpawnJoined)",
        "(facts.SpawnJoined,)",
    ),
    Mutant(
        "a task that was frozen ahead, and is assigned with others, is written as it was",
        "registry/ahead.py",
        "                    self._rows.pop(TaskId(task_id), None)\n",
        "                    pass\n",
    ),
    Mutant(
        "a task that was frozen ahead, and has something parked behind it, is written as it was",
        "registry/ahead.py",
        "                self._rows.pop(TaskId(fact.holder), None)\n",
        "                pass\n",
    ),
    Mutant(
        "what follows from the last slice of a stop waits until somebody speaks",
        "broker/core.py",
        "        ours = self._follows or self.registry.ahead.begun\n",
        "        ours = self.registry.ahead.begun\n",
    ),
    Mutant(
        "the slices of a stop wait as long as somebody speaks",
        "broker/core.py",
        "else now and rested < RECESS",
        "else now",
    ),
    Mutant(
        "the loop commits what a snapshot will hold already",
        "broker/journal_thread.py",
        "self._done != self._taken or self._cut_due or",
        "self._done != self._taken or",
    ),
    Mutant(
        "the loop overtakes what the journal's thread has taken",
        "broker/journal_thread.py",
        "            if self._done != self._taken or self._cut_due or",
        "            if self._cut_due or",
    ),
    Mutant(
        "a task is handed over behind one that nobody knows",
        "registry/scheduling.py",
        "            if not (calm[incarnation] and is_quick(worker, state.tasks[task_id])):\n",
        "            if not is_quick(worker, state.tasks[task_id]):\n",
    ),
    # --- many at once
    Mutant(
        "what waits in one's hand counts as calm",
        "registry/scheduling.py",
        "map(state.tasks.__getitem__, (*worker.tasks, *hand))",
        "map(state.tasks.__getitem__, worker.tasks)",
    ),
    Mutant(
        "many are assigned past a limit",
        "registry/scheduling.py",
        "    if alike is not None and not state.kind(alike[0]).is_limited:\n",
        "    if alike is not None:\n",
    ),
    Mutant(
        "an end that a stop waits for is one of many",
        "registry/ending.py",
        "        not any(map(_ASK, tasks))\n        and ",
        "        ",
    ),
    Mutant(
        "an end of another attempt is one of many",
        "registry/ending.py",
        "        and set(map(_ATTEMPT, tasks)) == {attempt}\n",
        "",
    ),
    Mutant(
        "ends that are alike have the result of the first",
        "registry/attempts.py",
        "*(ends.results or repeat(row.result, len(ends.task_ids)))]",
        "*repeat(row.result, len(ends.task_ids))]",
    ),
    Mutant(
        "all are dealt to who holds the least at first",
        "registry/scheduling.py",
        "        until = min([most for _, _, most in lowest] + [held for held, _, _ in others[:1]])\n",
        "        until = min([most for _, _, most in lowest])\n",
    ),
    Mutant(
        "a function that is not known to be short is handed over with many",
        "registry/scheduling.py",
        "    return worker.slots > 1 or all_quick(worker, map(state.tasks.__getitem__, task_ids))\n",
        "    return True\n",
    ),
    Mutant(
        "answers to a batch are forgotten with the first of them",
        "registry/answers.py",
        "        if left < len(numbers):\n",
        "        if False:\n",
    ),
    Mutant(
        "results that differ are told as one",
        "registry/results.py",
        "    if results.count(results[0]) == len(results):\n",
        "    if True:\n",
    ),
    Mutant(
        "an end that is said twice counts twice",
        "registry/attempts.py",
        "        if task is None or task.id in plain:\n",
        "        if task is None:\n",
    ),
    Mutant(
        "spawns that are alike need not follow each other",
        "protocol/field_checks.py",
        "numbers == tuple(range(row[0] + 1, row[0] + 1 + len(numbers)))",
        "numbers",
    ),
    Mutant(
        "many are registered in a closed scope",
        "registry/spawning.py",
        "    if row.unique_key is not None or _refusal(state, run.largest()):\n",
        "    if row.unique_key is not None:\n",
    ),
    Mutant(
        "a worker keeps in hand what has completed",
        "registry/apply_alike.py",
        "    take_out(state.held, task_ids)\n",
        "",
    ),
    Mutant(
        "many that end together are told to the watchers of the first",
        "registry/leaving.py",
        "        task.watchers,\n",
        "",
    ),
    Mutant(
        "many that end together keep their unique keys",
        "registry/leaving.py",
        "            _leave_key(state, task)\n",
        "            pass\n",
    ),
    Mutant(
        "many that end together had the labels of the first",
        "registry/leaving.py",
        "        task.tenant_id,\n        task.timeline_id,\n        task.watchers,\n",
        "        task.watchers,\n",
    ),
    Mutant(
        "closures are not synced",
        "broker/journal_rows.py",
        "            if type(fact) in SYNCED:\n",
        "            if False:\n",
    ),
    Mutant(
        "a stop is reported before it is on the disk",
        "registry/effects.py",
        "BINDING: Final = frozenset({AnswerStop, ",
        "BINDING: Final = frozenset({",
    ),
    Mutant(
        "what binds does not wait for the disk",
        "broker/journal_thread.py",
        "        self._store.bind(bound.seq)\n",
        "",
    ),
    Mutant(
        "what binds overtakes what waits for the disk",
        "broker/journal_thread.py",
        "self._done == self._taken and not self._binds and",
        "self._done == self._taken and",
    ),
    Mutant(
        "what is handed over during a commit is told before its sync",
        "broker/journal_thread.py",
        "        if self._behind is None:\n",
        "        if True:\n",
    ),
    # --- workers
    Mutant(
        "the tombstone is forgotten",
        "workers/worker_session.py",
        "            self.tombstones[key] = last_assign\n",
        "            pass\n",
    ),
    Mutant(
        "what is handed over begins although it was stopped",
        "workers/worker_session.py",
        "        if self.handed.pop(key, None) is not None:\n            self.hold_unbegun(key, now)\n",
        "        if key in self.handed:\n            self.hold_unbegun(key, now)\n",
    ),
    Mutant(
        "an assignment that comes again is taken again",
        "workers/worker_session.py",
        "            if row.assign_number <= passed:\n",
        "            if False:\n",
    ),
    Mutant(
        "an end is said once only",
        "workers/worker_ends.py",
        "        if everything or now >= self.resend_at:\n",
        "        if False:\n",
    ),
    Mutant(
        "a worker obeys a broker of the past",
        "workers/worker_session.py",
        "        if epoch < self.epoch:\n",
        "        if False:\n",
    ),
    Mutant(
        "tasks begin though half of the lease is over",
        "workers/worker_session.py",
        "        if not self.received or self.exiting_since is not None or self.lease_is_over:\n",
        "        if not self.received or self.exiting_since is not None:\n",
    ),
    Mutant(
        "what was given back may still begin",
        "workers/worker_gives_back.py",
        "        self.received = {}\n        self.given_back.update",
        "        self.given_back.update",
    ),
    Mutant(
        "what the main thread has announced has not begun",
        "workers/worker.py",
        "        if current is not None and self._is_handed(current):\n",
        "        if False:\n",
    ),
    Mutant(
        "the main thread does not look whether somebody had the lock",
        "workers/main_thread.py",
        "        if turn % 2 or turn != streak.turn or",
        "        if",
    ),
    Mutant(
        "the main thread does not look whether somebody has the lock now",
        "workers/main_thread.py",
        "        if turn % 2 or turn != streak.turn or",
        "        if turn != streak.turn or",
    ),
    Mutant(
        "the main thread does not look at the lease",
        "workers/main_thread.py",
        " or self._place.words[LEASE_TURNS] != worker.lease_turns:\n            streak",
        ":\n            streak",
    ),
    Mutant(
        "the main thread asks whether something may begin of which it has said that it has begun",
        "workers/main_thread.py",
        "            streak.current = None\n            worker.runner.start(attempt)\n",
        "            worker.runner.start(attempt)\n            streak.current = None\n",
    ),
    Mutant(
        "an attempt of a row that was withdrawn begins",
        "workers/worker.py",
        "        return self.attempts.get(key) is attempt and self._session.handed.get(key) is attempt.row\n",
        "        return self.attempts.get(key) is attempt\n",
    ),
    Mutant(
        "what is withdrawn stays in the row",
        "workers/streak.py",
        "                    self.rows.remove(row)\n",
        "                    pass\n",
    ),
    Mutant(
        "who begins has copies of itself in the row",
        "workers/worker.py",
        "        self.main.streak.rows.clear()\n",
        "",
    ),
    Mutant(
        "the entry of an attempt that is being made is freed",
        "workers/worker.py",
        "                    if self.attempts.pop(key, None) is not None:\n    ",
        "                    self.attempts.pop(key, None)\n",
    ),
    Mutant(
        "what follows one that runs is not withdrawn",
        "workers/worker_session.py",
        "        return self.take_back()  # what was handed in a row with it\n",
        "        return []\n",
    ),
    Mutant(
        "a row is as long as what waits",
        "workers/worker_session.py",
        "        free = self.identity.capacity - busy - len(self.held)\n",
        "        free = len(self.received)\n",
    ),
    Mutant(
        "the main thread falls asleep without a last look",
        "workers/main_thread.py",
        "            if patience is None and (link",
        "            if patience is None and worker.inline and (link",
    ),
    Mutant(
        "an end is left to a main thread that has fallen asleep meanwhile",
        "workers/main_thread.py",
        "        elif not self.goes_on:\n            self.wake.set()\n",
        "",
    ),
    Mutant(
        "a thread that is called falls asleep at once, since there are too many",
        "workers/hands.py",
        "None if self._too_many and has_worked else",
        "None if self._too_many else",
    ),
    Mutant(
        "nobody is called for what waits behind something long",
        "workers/hands.py",
        "            is_stuck = self._taken < self._waited\n",
        "            is_stuck = False\n",
    ),
    Mutant(
        "a supervisor says a death once only",
        "workers/supervisor_session.py",
        "report._replace(send_at=now + RESEND)",
        "report._replace(send_at=now + 1e9)",
    ),
)


class Suite(NamedTuple):
    """Tests, and seconds after which they count as hanging, which is a failure too."""

    name: str
    arguments: tuple[str, ...]
    timeout: float


SUITES: Final = (
    Suite(
        "tables",
        (
            *(f"tests/{each.name}" for each in sorted((ROOT / "tests").glob("test_registry_*.py"))),
            "tests/test_workers_session.py",
            "tests/test_workers_streak.py",
            "tests/test_workers_slots.py",
            "tests/test_workers_supervisor_session.py",
            "tests/test_client_session.py",
            "tests/test_client_waiting.py",
            "tests/test_codec.py",
            "--deselect=tests/test_registry_random.py",
        ),
        300,
    ),
    Suite("random clusters", ("tests/test_registry_random.py",), 600),
    Suite("explorer", ("tests/test_explorer.py",), 600),
    Suite("simulator", ("tests/test_simulator.py",), 600),
    Suite(
        "journal",
        (
            "tests/test_broker_core.py",
            "tests/test_journal.py",
            "tests/test_crash_points.py",
            "tests/test_stalled_disk.py",
            "--deselect=tests/test_stalled_disk.py::test_a_stalled_disk_fences_nobody_and_holds_up_no_request",
        ),
        600,
    ),
    Suite("up", ("tests/test_cli_up.py",), 300),
)


def plant(mutant: Mutant, tree: Path) -> None:
    """Change the tree. ValueError if the text does not stand there exactly once."""
    path = tree / mutant.file
    code = path.read_text()
    if code.count(mutant.text) != 1:
        raise ValueError(
            f"{mutant.name!r}: its text stands {code.count(mutant.text)} times in {mutant.file}, not once"
        )
    path.write_text(code.replace(mutant.text, mutant.instead))


def caught(suite: Suite, tree: Path) -> str:
    """How the suite ends in this tree: "caught", "not caught", or "hangs"."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        *suite.arguments,
    ]
    # As the console script does: without the current folder on the path, where `broker` would be found twice.
    command[1:3] = ["-P", "-m", "pytest"]
    environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env=environment,
            capture_output=True,
            timeout=suite.timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "hangs"
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{suite.name} can't run:\n{done.stdout.decode()[-2000:]}")
    return "caught" if done.returncode else "not caught"


def copy_tree(to: Path) -> None:
    """Code and tests, without what was built or installed."""
    skip = shutil.ignore_patterns(
        ".git", ".venv", ".bench", "build", "__pycache__", "*.egg-info", ".*_cache"
    )
    shutil.copytree(ROOT, to, symlinks=True, ignore=skip)


def main() -> int:
    """See the module. Exits 1 if a planted bug goes unnoticed."""
    parser = argparse.ArgumentParser(prog="scripts/mutants", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", metavar="WORDS", help="those whose name has these words"
    )
    parser.add_argument("--all", action="store_true", help="run every suite, to see which catch it")
    parser.add_argument("--list", action="store_true", help="only name them")
    options = parser.parse_args()
    wanted = [
        mutant
        for mutant in MUTANTS
        if not options.only or any(word in mutant.name for word in options.only)
    ]
    if not wanted:
        parser.error(f"none has any of the words {', '.join(options.only)}: --list names all")
    if options.list:
        print("\n".join(mutant.name for mutant in wanted))
        return 0
    missed = []
    for number, mutant in enumerate(wanted, 1):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="quiesce-mutant-") as folder:
            tree = Path(folder, "tree")
            copy_tree(tree)
            plant(mutant, tree)
            by = []
            for suite in SUITES:
                if caught(suite, tree) != "not caught":
                    by.append(suite.name)
                    if not options.all:
                        break
        words = f"caught by {', '.join(by)}" if by else "NOT CAUGHT"
        took = time.monotonic() - began
        print(f"{number:3}/{len(wanted)}  {mutant.name}: {words} ({took:.0f} s)", flush=True)
        if not by:
            missed.append(mutant.name)
    print(f"{len(wanted) - len(missed)} of {len(wanted)} planted bugs are caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
