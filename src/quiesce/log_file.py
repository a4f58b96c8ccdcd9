"""The file that `log_file` names, through `logrotate`, full disks, and what else may come of it."""

import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from logging.handlers import WatchedFileHandler

from quiesce.seldom import Seldom


class LogFile(WatchedFileHandler):
    """Begins a new file when its own was moved away, with the next record.

    While it can't be written, lines go elsewhere, and one more each minute says so. Whoever logs never fails by it.
    """

    def __init__(self, file: str, elsewhere: Callable[[str], None]) -> None:
        super().__init__(file, encoding="utf-8", errors="backslashreplace")
        self._elsewhere = elsewhere
        self._complaints = Seldom()

    def emit(self, record: logging.LogRecord) -> None:
        """See the class."""
        try:
            super().emit(record)
        except OSError:  # of a new file that can't be made
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is the base's
        """What the file does not take goes elsewhere; what can't be formatted is shown as ever."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        if self.stream is not None:
            # With what waits in it: kept, that would be written twice once there is room again.
            with suppress(OSError):
                self.stream.close()
            # The next record opens it anew.
            self.stream = None
        try:
            line = self.format(record)
        except Exception:
            super().handleError(record)
            return
        if self._complaints.is_time():
            self._elsewhere(self.format(self._trouble(error)))
        self._elsewhere(line)

    def _trouble(self, error: OSError) -> logging.LogRecord:
        text = (
            f"the log file {self.baseFilename} can't be written: {error.strerror or error}. Its records are "
            "here until it can: make room, or name another file with [broker] log_file"
        )
        make = logging.getLogRecordFactory()  # whose records have what the format needs
        return make("quiesce.logs", logging.ERROR, "", 0, text, (), None)
