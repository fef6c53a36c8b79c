"""Every error a user can meet. The message names what was got, what was wanted and what to do next.

HotsetError                1   anything below
├── UsageError             2   wrong flag or argument
├── ModelError             3   architecture, config key or tensor that cannot be run
├── FormatError            4   file that is not what it says: truncated, corrupt, hostile
├── StorageError           5   drive: missing, full, failing, short read
├── MemoryBudgetError      6   does not fit in the memory granted
├── InputError             7   text that cannot be run: empty, too long, not UTF-8
├── DownloadError          8   hub or network
├── HostError              9   this machine lacks what was asked for
└── TrainingError         10   training that cannot go on: the loss is no number
(KeyboardInterrupt       130   Ctrl-C)
"""


class HotsetError(Exception):
    """Base of all errors that hotset raises on purpose; `exit_code` is what the command line exits with."""

    exit_code = 1


class UsageError(HotsetError, ValueError):
    exit_code = 2


class ModelError(HotsetError):
    exit_code = 3


class FormatError(HotsetError):
    exit_code = 4


class StorageError(HotsetError, OSError):
    exit_code = 5


class MemoryBudgetError(HotsetError, MemoryError):
    exit_code = 6


class InputError(HotsetError, ValueError):
    exit_code = 7


class DownloadError(HotsetError):
    exit_code = 8


class HostError(HotsetError):
    exit_code = 9


class TrainingError(HotsetError):
    exit_code = 10
