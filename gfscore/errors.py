"""One error tree for the whole system, and the one decision what is worth a retry.

An error crosses process borders as (code, message). Codes below 100 have a POSIX meaning and reach
an application as an errno (`gfsmount/errnos.py`); codes from 100 on are between our own processes
and normally never leave the client library.
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """What went wrong; the numbers are part of the wire contract."""

    OK = 0
    NOT_FOUND = 1
    EXISTS = 2
    NOT_DIRECTORY = 3
    IS_DIRECTORY = 4
    NOT_EMPTY = 5
    NOT_PERMITTED = 6  # EPERM
    ACCESS_DENIED = 7  # EACCES
    INVALID = 8
    NAME_TOO_LONG = 9
    NO_SPACE = 10
    FILE_TOO_LARGE = 11  # EFBIG
    MESSAGE_TOO_LARGE = 12  # EMSGSIZE: a record or a message over its limit
    NO_ATTRIBUTE = 13  # ENODATA
    NOT_SUPPORTED = 14
    STALE_INODE = 15  # ESTALE
    TOO_MANY_LINKS = 16
    LOOP = 17
    ATTRIBUTE_TOO_LARGE = 18  # E2BIG
    READ_ONLY = 19
    IO = 20  # EIO: data could not be read or written anywhere
    TIMED_OUT = 21  # ETIMEDOUT: the operation's time is over
    BUSY = 22

    UNREACHABLE = 100  # the other process did not answer, or the connection broke
    SHUTTING_DOWN = 101
    NOT_READY = 102  # e.g. the master has not heard from enough chunkservers yet
    NO_SERVERS = 103  # fewer live chunkservers than one
    STALE_VERSION = 110  # this replica, or this request, has another chunk version
    NOT_PRIMARY = 111  # no lease here
    BAD_GRANT = 112  # signature, epoch or session of a grant do not hold
    UNKNOWN_CHUNK = 113
    UNKNOWN_PUSH = 114  # the pushed data aged out or never came
    SERIAL_GAP = 115
    CHECKSUM_MISMATCH = 116  # stored or received bytes do not match their checksum
    REPLICA_FAILED = 117  # a secondary did not apply the mutation
    UNKNOWN_SESSION = 118  # register or say hello again
    WRONG_CLUSTER = 120
    WRONG_PROTOCOL = 121
    BAD_MESSAGE = 122  # malformed or oversized
    INTERNAL = 199


_RETRYABLE = frozenset(
    {
        Code.UNREACHABLE,
        Code.SHUTTING_DOWN,
        Code.NOT_READY,
        Code.NO_SERVERS,
        Code.STALE_VERSION,
        Code.NOT_PRIMARY,
        Code.BAD_GRANT,
        Code.UNKNOWN_CHUNK,
        Code.UNKNOWN_PUSH,
        Code.SERIAL_GAP,
        Code.CHECKSUM_MISMATCH,
        Code.REPLICA_FAILED,
        Code.UNKNOWN_SESSION,
    }
)


class GfsError(Exception):
    """Anything this system reports. `message` is one line: the cause and, where there is one, the remedy."""

    def __init__(self, code: Code, message: str = "") -> None:
        super().__init__(message or code.name)
        self.code = code
        self.message = message or code.name.lower().replace("_", " ")

    def __str__(self) -> str:
        return self.message

    @property
    def retryable(self) -> bool:
        """True where trying again, perhaps after asking the master anew, can help."""
        return self.code in _RETRYABLE


def code_from_wire(number: int) -> Code:
    """The code for `number`, INTERNAL for one this version does not know."""
    try:
        return Code(number)
    except ValueError:
        return Code.INTERNAL
