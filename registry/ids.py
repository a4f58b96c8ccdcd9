"""The ids of the system: each is a type of its own, never a bare int.

All but SessionId are unsigned 64-bit integers that start at 1 and are never reused.
"""

from typing import Final, NewType

#: One task for ever, across its attempts and across broker restarts.
TaskId = NewType("TaskId", int)
#: One execution of a task; (TaskId, Attempt) names it. Starts at 1.
Attempt = NewType("Attempt", int)
#: Grows by one at each start of the broker.
Epoch = NewType("Epoch", int)
#: Grows by one at each registration of a supervisor or a worker; one sequence serves both.
Incarnation = NewType("Incarnation", int)
#: Numbers the assignments that the broker sends to one worker incarnation, from 1.
AssignNumber = NewType("AssignNumber", int)
#: Numbers the spawns of one client session, from 1, without gaps.
SpawnNumber = NewType("SpawnNumber", int)
#: Numbers the control requests of one client session, from 1.
RequestNumber = NewType("RequestNumber", int)
#: One `shutdown_tasks`, from its request to its report.
StopId = NewType("StopId", int)
#: One client session: 16 random bytes chosen by the client.
SessionId = NewType("SessionId", bytes)

#: (task, attempt): what a stop aims at.
AttemptKey = tuple[TaskId, Attempt]

U64_MAX: Final = 2**64 - 1
