"""Environment variables by which a process tells whose it is, whatever became of its parents."""

from typing import Final

#: Of everything that a `quiesce up` starts, and all that descends from it: its run, in hex.
RUN_MARKER: Final = "QUIESCE_RUN"
#: Of each worker and its descendants: "<supervisor id in hex>:<serial>".
WORKER_MARKER: Final = "QUIESCE_WORKER"
#: Of every process that is started in an attempt, and its descendants: "<task>.<attempt>".
ATTEMPT_MARKER: Final = "QUIESCE_ATTEMPT"

#: A setting of setproctitle: without it a title overwrites what /proc shows as the environment, marks and all,
#: in the process that sets it and in those that it forks.
KEEP_ENVIRONMENT: Final = "SPT_NOENV"
