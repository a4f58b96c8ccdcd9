"""The runtimes that the page server uses, and what their workers import at their start."""

from typing import Final

COMPUTE: Final = "compute-request"
MGMT: Final = "mgmt-request"
WALRECEIVER: Final = "walreceiver"
BACKGROUND: Final = "background"

RUNTIMES: Final = (COMPUTE, MGMT, WALRECEIVER, BACKGROUND)

PRELOAD: Final = {
    COMPUTE: "quiesce.examples.pageserver.tasks_compute",
    MGMT: "quiesce.examples.pageserver.tasks_mgmt",
    WALRECEIVER: "quiesce.examples.pageserver.tasks_walreceiver",
    BACKGROUND: "quiesce.examples.pageserver.tasks_tenants",
}
