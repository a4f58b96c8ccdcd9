"""Stacks cut to where a task is."""

import re

from quiesce.protocol.stack_text import innermost

OWN = """thread 'quiesce-slot-1' (140):
  File "/x/quiesce/workers/runner.py", line 130, in _load_and_call
    return function(*args, **kwargs)
  File "/app/job.py", line 1, in a
    b()
  File "/app/job.py", line 2, in b
    c()
  File "/app/job.py", line 3, in c
    time.sleep(1)
"""

WHOLE = """all of process 5, by faulthandler, since its interpreter did not answer:
Thread 0x0001 (most recent call first):
  File "/x/quiesce/workers/control.py", line 90 in _turn
  File "/lib/threading.py", line 982 in run

Thread 0x0002 (most recent call first):
  File "/lib/zmq/sugar/poll.py", line 106 in poll
  File "/x/quiesce/client/connection.py", line 100 in poll

Current thread 0x0003 (most recent call first):
  File "/app/job.py", line 3 in c
  File "/app/job.py", line 2 in b
  File "/app/job.py", line 1 in a
  File "/x/quiesce/workers/runner.py", line 9 in start
"""


def test_the_innermost_frames_are_kept_and_their_head() -> None:
    assert innermost([OWN], frames=2) == [
        (
            "thread 'quiesce-slot-1' (140):\n  …\n"
            '  File "/app/job.py", line 2, in b\n    c()\n'
            '  File "/app/job.py", line 3, in c\n    time.sleep(1)'
        )
    ]
    whole = OWN.rstrip().splitlines()
    assert innermost([OWN], frames=3) == innermost([OWN]) == ["\n".join([whole[0], *whole[3:]])]
    machinery = "\n".join(whole[:3])
    assert innermost([machinery]) == [machinery]


def test_a_dump_is_turned_round_and_its_machinery_left_out() -> None:
    assert innermost([WHOLE], frames=2) == [
        (
            "all of process 5, by faulthandler, since its interpreter did not answer:\n"
            "Current thread 0x0003 (most recent call last):\n"
            '  File "/app/job.py", line 2 in b\n'
            '  File "/app/job.py", line 3 in c'
        )
    ]


def test_how_the_worker_came_to_call_the_task_is_left_out_of_a_dump() -> None:
    (text,) = innermost([WHOLE])
    assert [line.split()[-1] for line in text.splitlines()[2:]] == ["a", "b", "c"]


def test_where_nothing_but_machinery_is_left_it_is_shown() -> None:
    only = WHOLE[: WHOLE.index("Current thread")]
    (first, second) = innermost([only])
    assert re.search(r"control\.py.*$", first)
    assert second.splitlines()[-1] == '  File "/lib/zmq/sugar/poll.py", line 106 in poll'


def test_of_many_threads_the_first_are_shown() -> None:
    texts = innermost([OWN] * 5, frames=1, parts=2)
    assert len(texts) == 3
    assert texts[2] == "… and 3 more"


def test_what_is_no_stack_stays_as_it_is() -> None:
    assert innermost(["no stack: process 5 is stopped (SIGSTOP)\n", ""]) == [
        "no stack: process 5 is stopped (SIGSTOP)",
        "",
    ]
    assert innermost([]) == []
