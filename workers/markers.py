"""Environment variables by which a process tells whose it is, whatever became of its parents."""

from typing import Final

#: Of each worker and its descendants: "<supervisor id in hex>:<serial>".
WORKER_MARKER: Final = "QUIESCE_WORKER"
#: Of every process that is started in an attempt, and its descendants: "<task>.<attempt>".
ATTEMPT_MARKER: Final = "QUIESCE_ATTEMPT"
