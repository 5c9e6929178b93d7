"""The one table from the system's error codes to POSIX errnos, and the one decision what an exception means to an
application. No handler may choose an errno for a `GfsError` by itself.
"""

from __future__ import annotations

import errno

from gfscore.errors import Code, GfsError

_ERRNOS: dict[Code, int] = {
    Code.NOT_FOUND: errno.ENOENT,
    Code.EXISTS: errno.EEXIST,
    Code.NOT_DIRECTORY: errno.ENOTDIR,
    Code.IS_DIRECTORY: errno.EISDIR,
    Code.NOT_EMPTY: errno.ENOTEMPTY,
    Code.NOT_PERMITTED: errno.EPERM,
    Code.ACCESS_DENIED: errno.EACCES,
    Code.INVALID: errno.EINVAL,
    Code.NAME_TOO_LONG: errno.ENAMETOOLONG,
    Code.NO_SPACE: errno.ENOSPC,
    Code.FILE_TOO_LARGE: errno.EFBIG,
    Code.MESSAGE_TOO_LARGE: errno.EMSGSIZE,
    Code.NO_ATTRIBUTE: errno.ENODATA,
    Code.NOT_SUPPORTED: errno.EOPNOTSUPP,
    Code.STALE_INODE: errno.ESTALE,
    Code.TOO_MANY_LINKS: errno.EMLINK,
    Code.LOOP: errno.ELOOP,
    Code.ATTRIBUTE_TOO_LARGE: errno.E2BIG,
    Code.READ_ONLY: errno.EROFS,
    Code.TIMED_OUT: errno.ETIMEDOUT,
    Code.BUSY: errno.EBUSY,
}

# What a person or the library meant by each; shown by nobody but the log.
_QUIET = frozenset(_ERRNOS) - {Code.TIMED_OUT}


def errno_of(code: Code) -> int:
    """The errno for `code`; EIO for everything without a POSIX meaning."""
    return _ERRNOS.get(code, errno.EIO)


def gfs_error_in(error: BaseException) -> GfsError | None:
    """The GfsError that `error` is, or the first one inside an exception group; None where there is none."""
    if isinstance(error, GfsError):
        return error
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            found = gfs_error_in(inner)
            if found is not None:
                return found
    return None


def is_ordinary(code: Code) -> bool:
    """True where the errno says all there is to say: such an answer is not worth a line in the log."""
    return code in _QUIET
