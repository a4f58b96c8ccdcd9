"""See `worlds`, whose functions other processes can import."""

import sys

from quiesce.testing.simulator.worlds import main

if __name__ == "__main__":
    sys.exit(main())
