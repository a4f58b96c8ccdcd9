"""The file that `log_file` names, through `logrotate` and what else may come of it."""

import logging
from logging.handlers import WatchedFileHandler


class LogFile(WatchedFileHandler):
    """Begins a new file when its own was moved away, with the next record."""

    def emit(self, record: logging.LogRecord) -> None:
        """What can't be written is lost: whoever logs must not fail because of it."""
        try:
            super().emit(record)
        except OSError:  # of a new file that can't be made
            self.handleError(record)
