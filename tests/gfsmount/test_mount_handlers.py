"""Handlers without a mount: the guard, look-up counts, record appends, coherence with changes that come in between."""

from __future__ import annotations

import errno
import logging
import os
from typing import Any
from unittest.mock import Mock

import pyfuse3
import pytest
import trio
from fake_client import FakeClient

from gfscore.client import AttrChanges, FileType, Invalidation, LengthUnknown
from gfscore.errors import Code, GfsError
from gfscore.ids import ROOT_INODE
from gfsmount.mount_options import MountOptions
from gfsmount.operations import Operations


class Caller:
    """A request's context."""

    def __init__(self, uid: int = 0, pid: int = 0) -> None:
        self.uid = uid
        self.gid = uid
        self.pid = pid or os.getpid()
        self.umask = 0o022


class Token:
    """The buffer of one readdir request."""

    def __init__(self) -> None:
        self.room = 5


@pytest.fixture
def ctx() -> Any:
    return Caller()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, int, Any]]:
    """What readdir shows; at most five entries fit into one reply."""
    entries: list[tuple[bytes, int, Any]] = []

    def reply(token: Any, name: bytes, attr: Any, next_id: int) -> bool:
        if token.room == 0:
            return False
        token.room -= 1
        entries.append((name, next_id, attr))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    return entries


@pytest.fixture
def notified(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        pyfuse3, "invalidate_inode", lambda inode, attr_only=False: calls.append(("inode", inode, attr_only))
    )
    monkeypatch.setattr(pyfuse3, "invalidate_entry", lambda parent, name: calls.append(("entry", parent, name)))
    return calls


async def failing(awaitable: Any) -> int:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await awaitable
    return int(caught.value.errno)


async def test_errors_become_errnos(operations: Operations, client: FakeClient, ctx: Any) -> None:
    assert await failing(operations.lookup(1, b"none", ctx)) == errno.ENOENT
    assert await failing(operations.lookup(1, b"n" * 256, ctx)) == errno.ENAMETOOLONG
    assert await failing(operations.getattr(77, ctx)) == errno.ESTALE
    client.errors["getattr"] = GfsError(Code.NOT_FOUND)
    assert await failing(operations.getattr(77, ctx)) == errno.ESTALE
    client.errors["getattr"] = ExceptionGroup("several", [GfsError(Code.NO_SPACE)])
    assert await failing(operations.getattr(1, ctx)) == errno.ENOSPC
    client.errors["getattr"] = GfsError(Code.CHECKSUM_MISMATCH)
    assert await failing(operations.getattr(1, ctx)) == errno.EIO
    assert await failing(operations.read(99, 0, 10)) == errno.ESTALE


async def test_an_unexpected_exception_is_a_logged_eio(
    operations: Operations, client: FakeClient, ctx: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client.errors["getattr"] = ZeroDivisionError("planted")
    with caplog.at_level(logging.ERROR):
        assert await failing(operations.getattr(1, ctx)) == errno.EIO
    assert "operation=getattr" in caplog.text and "planted" in caplog.text
    client.errors["lookup"] = ZeroDivisionError("planted")
    assert await failing(operations.lookup(1, b"f", ctx)) == errno.EIO


async def test_an_operation_that_never_ends_is_given_up(
    client: FakeClient, ctx: Any, autojump_clock: trio.testing.MockClock
) -> None:
    operations = Operations(client, ROOT_INODE, MountOptions(timeout_seconds=7))  # type: ignore[arg-type]
    client.before["readlink"] = trio.sleep_forever
    assert await failing(operations.readlink(1, ctx)) == errno.ETIMEDOUT
    assert 7 <= trio.current_time() < 15


async def test_lookups_are_counted_and_forgotten(operations: Operations, ctx: Any) -> None:
    made = await operations.mkdir(1, b"d", 0o755, ctx)
    await operations.lookup(1, b"d", ctx)
    assert operations.inodes.is_known(made.st_ino)
    operations.forget([(made.st_ino, 1)])
    assert operations.inodes.is_known(made.st_ino)
    operations.forget([(made.st_ino, 1)])
    assert not operations.inodes.is_known(made.st_ino)


async def test_a_subdirectory_is_the_root_of_its_mount(client: FakeClient, ctx: Any) -> None:
    directory = await client.create(ROOT_INODE, b"sub", FileType.DIRECTORY, 0o755, 0, 0)
    operations = Operations(client, directory.inode, MountOptions())  # type: ignore[arg-type]
    assert (await operations.getattr(1, ctx)).st_ino == 1
    await operations.mkdir(1, b"inside", 0o755, ctx)
    assert b"inside" in client.names[directory.inode]
    await operations.rename(1, b"inside", 1, b"renamed", 0, ctx)
    await operations.setxattr(1, b"user.a", b"1", ctx)
    assert client.xattrs[directory.inode] == {b"user.a": b"1"}
    await operations.rmdir(1, b"renamed", ctx)
    assert client.names[directory.inode] == {}


async def test_volatile_attributes_are_not_kept_by_the_kernel(
    operations: Operations, client: FakeClient, ctx: Any
) -> None:
    _, entry = await operations.create(1, b"f", 0o644, os.O_WRONLY, ctx)
    assert entry.attr_timeout == entry.entry_timeout == 3600
    client.attrs[entry.st_ino].volatile = True
    assert (await operations.getattr(entry.st_ino, ctx)).attr_timeout == 0
    assert (await operations.lookup(1, b"f", ctx)).entry_timeout == 3600


async def test_a_file_whose_length_nobody_can_tell_is_shown_unless_it_is_open(
    operations: Operations, client: FakeClient, ctx: Any
) -> None:
    info, entry = await operations.create(1, b"f", 0o644, os.O_WRONLY, ctx)
    client.errors["getattr"] = LengthUnknown(entry.st_ino)
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await operations.getattr(entry.st_ino, ctx)
    assert caught.value.errno == errno.ETIMEDOUT
    await operations.release(info.fh)
    client.errors["getattr"] = LengthUnknown(entry.st_ino)
    assert (await operations.getattr(entry.st_ino, ctx)).st_ino == entry.st_ino


async def test_an_answer_overtaken_by_an_invalidation_is_not_kept(
    operations: Operations, client: FakeClient, ctx: Any, notified: list[tuple[object, ...]]
) -> None:
    entry = await operations.mkdir(1, b"d", 0o755, ctx)

    async def meanwhile() -> None:
        await operations.notifier.invalidate(Invalidation(entry.st_ino, [], True, False))

    client.before["lookup"] = meanwhile
    answer = await operations.lookup(1, b"d", ctx)
    assert answer.entry_timeout == answer.attr_timeout == 0


async def test_only_what_the_kernel_knows_is_invalidated(
    operations: Operations, ctx: Any, notified: list[tuple[object, ...]]
) -> None:
    entry = await operations.mkdir(1, b"d", 0o755, ctx)
    await operations.notifier.invalidate(Invalidation(999, [b"x"], True, True))
    assert notified == []
    await operations.notifier.invalidate(Invalidation(1, [b"d", b"never told"], True, False))
    assert notified == [("inode", 1, True), ("entry", 1, b"d")]
    notified.clear()
    await operations.notifier.invalidate(Invalidation(entry.st_ino, [], False, True))
    assert notified == [("inode", entry.st_ino, True)]  # no page was ever read
    operations.inodes.pages.add(entry.st_ino)
    notified.clear()
    await operations.notifier.invalidate(Invalidation(entry.st_ino, [], False, True))
    assert notified == [("inode", entry.st_ino, True), ("inode", entry.st_ino, False)]


async def test_a_blocked_notification_does_not_hold_up_the_master(
    operations: Operations, ctx: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    released = threading.Event()
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda inode, attr_only=False: None)
    monkeypatch.setattr(pyfuse3, "invalidate_entry", lambda parent, name: released.wait(10) and None)
    await operations.mkdir(1, b"d", 0o755, ctx)
    try:
        with trio.fail_after(5), operations.changing(1):
            await operations.notifier.invalidate(Invalidation(1, [b"d"], True, False))
        assert operations.notifier.threads_busy == 1
    finally:
        released.set()
    with trio.fail_after(5):
        while operations.notifier.threads_busy:
            await trio.sleep(0.005)


@pytest.mark.parametrize(("flags", "number"), [(0, errno.ESTALE), (os.O_EXCL, errno.EEXIST)])
async def test_a_file_that_another_client_made_first_is_not_opened_unasked(
    flags: int, number: int, operations: Operations, client: FakeClient, ctx: Any
) -> None:
    """The kernel, which believed that there is none, has not checked whether this caller may open it."""
    attr, file = await client.create_file(1, b"secret", 0o600, 0, 0)
    await file.close()
    creating = operations.create(1, b"secret", 0o644, os.O_RDWR | os.O_CREAT | os.O_TRUNC | flags, Caller(uid=1000))  # type: ignore[arg-type]
    assert await failing(creating) == number
    assert not client.is_open(attr.inode) and not operations.inodes.is_known(attr.inode)


async def test_append_handles_ignore_the_offset_and_remember_it_for_their_process(
    operations: Operations, client: FakeClient, ctx: Any
) -> None:
    info, entry = await operations.create(1, b"log", 0o644, os.O_WRONLY | os.O_APPEND, ctx)
    assert info.direct_io
    assert await operations.write(info.fh, 12345, b"one") == 3
    assert await operations.write(info.fh, 0, b"two") == 3
    assert bytes(client.data[entry.st_ino]) == b"onetwo"
    assert client.calls["append"] == 2
    assert await operations.getxattr(entry.st_ino, b"gfs.append.offset", ctx) == b"3"
    stranger = Caller(pid=1)
    assert await failing(operations.getxattr(entry.st_ino, b"gfs.append.offset", stranger)) == errno.ENODATA


async def test_direct_io_only_where_a_handle_cannot_be_mapped(operations: Operations, ctx: Any) -> None:
    _, entry = await operations.create(1, b"f", 0o644, os.O_WRONLY, ctx)
    direct = {
        flags: bool((await operations.open(entry.st_ino, flags, ctx)).direct_io)
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_APPEND)
    }
    assert list(direct.values()) == [False, True, False, True, True]


async def test_xattr_appends_share_an_open_file_that_is_closed_when_idle(
    operations: Operations,
    client: FakeClient,
    ctx: Any,
    notified: list[tuple[object, ...]],
    autojump_clock: trio.testing.MockClock,
) -> None:
    info, entry = await operations.create(1, b"log", 0o644, os.O_WRONLY, ctx)
    await operations.release(info.fh)
    for _ in range(3):
        await operations.setxattr(entry.st_ino, b"gfs.append", b"x", ctx)
    assert (client.calls["open"], client.calls["close"]) == (1, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(operations.append_files.keep_tidy)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert client.calls["close"] == 2
    assert ("inode", entry.st_ino, True) in notified


async def test_a_write_by_another_than_root_takes_set_user_id_away(
    operations: Operations, client: FakeClient, ctx: Any, notified: list[tuple[object, ...]]
) -> None:
    info, entry = await operations.create(1, b"f", 0o644, os.O_WRONLY, ctx)
    await client.setattr(entry.st_ino, AttrChanges(mode=0o6755))
    await operations.write(info.fh, 0, b"by root")
    assert client.attrs[entry.st_ino].mode == 0o6755
    other = await operations.open(entry.st_ino, os.O_WRONLY, Caller(uid=1000))
    await operations.write(other.fh, 0, b"by another")
    assert client.attrs[entry.st_ino].mode == 0o755


@pytest.mark.parametrize("how", ["create", "truncate", "append", "write on"])
async def test_set_user_id_never_outlives_a_change_by_another_than_root(
    how: str, operations: Operations, client: FakeClient, notified: list[tuple[object, ...]]
) -> None:
    user: Any = Caller(uid=1000)
    info, entry = await operations.create(1, b"f", 0o4755, os.O_WRONLY, user)
    if how == "truncate":
        await operations.open(entry.st_ino, os.O_WRONLY | os.O_TRUNC, user)
    elif how == "append":
        await operations.setxattr(entry.st_ino, b"gfs.append", b"record", user)
    else:
        await operations.write(info.fh, 0, b"bytes")
    if how == "write on":
        fields: Any = Mock(spec=pyfuse3.SetattrFields, update_mode=True, update_uid=False, update_gid=False)
        fields.update_atime = fields.update_mtime = fields.update_size = False
        mode: Any = Mock(st_mode=0o4755)
        await operations.setattr(entry.st_ino, mode, fields, None, user)
        assert client.attrs[entry.st_ino].mode == 0o4755
        await operations.write(info.fh, 0, b"other bytes")
    assert client.attrs[entry.st_ino].mode == 0o755


@pytest.mark.parametrize(
    ("mode", "gid", "allowed"),
    [(0o700, 4321, False), (0o775, 4321, False), (0o757, 4321, True), (0o775, 1000, True), (0o767, 1000, False)],
)
async def test_a_snapshot_is_made_only_where_its_caller_may_make_a_file(
    mode: int, gid: int, allowed: bool, operations: Operations, client: FakeClient, ctx: Any,
    notified: list[tuple[object, ...]],
) -> None:  # fmt: skip
    user: Any = Caller(uid=1000)
    _, entry = await operations.create(1, b"mine", 0o644, os.O_WRONLY, user)
    there = await operations.mkdir(1, b"there", 0o755, ctx)
    await operations.mkdir(there.st_ino, b"below", 0o777, ctx)
    await client.setattr(there.st_ino, AttrChanges(mode=mode, gid=gid))
    snapshot = operations.setxattr(entry.st_ino, b"gfs.snapshot", b"/there/copy", user)
    if allowed:
        await snapshot
    else:
        assert await failing(snapshot) == errno.EACCES
    assert (b"copy" in client.names[there.st_ino]) == allowed
    await client.setattr(there.st_ino, AttrChanges(mode=0o700, gid=4321))
    assert await failing(operations.setxattr(entry.st_ino, b"gfs.snapshot", b"/there/below/copy", user)) == errno.EACCES
    await operations.setxattr(entry.st_ino, b"gfs.snapshot", b"/there/below/copy", ctx)  # root may


async def test_set_user_id_is_looked_for_again_when_it_could_not_be_taken_away(
    operations: Operations, client: FakeClient, notified: list[tuple[object, ...]]
) -> None:
    user: Any = Caller(uid=1000)
    info, entry = await operations.create(1, b"f", 0o4755, os.O_WRONLY, user)
    client.errors["setattr"] = GfsError(Code.TIMED_OUT)
    assert await failing(operations.write(info.fh, 0, b"bytes")) == errno.ETIMEDOUT
    await operations.write(info.fh, 0, b"bytes")
    assert client.attrs[entry.st_ino].mode == 0o755


async def test_trusted_attributes_are_listed_to_root_alone(operations: Operations, ctx: Any) -> None:
    _, entry = await operations.create(1, b"f", 0o644, os.O_WRONLY, ctx)
    for name in (b"user.a", b"trusted.b"):
        await operations.setxattr(entry.st_ino, name, b"x", ctx)
    assert await operations.listxattr(entry.st_ino, ctx) == [b"user.a", b"trusted.b"]
    assert await operations.listxattr(entry.st_ino, Caller(uid=1000)) == [b"user.a"]  # type: ignore[arg-type]


async def test_kernel_probes_are_answered_without_a_call(operations: Operations, client: FakeClient, ctx: Any) -> None:
    before = client.calls.total()
    assert await failing(operations.getxattr(1, b"security.capability", ctx)) == errno.ENODATA
    assert await failing(operations.getxattr(1, b"system.posix_acl_access", ctx)) == errno.EOPNOTSUPP
    assert await failing(operations.setxattr(1, b"system.posix_acl_access", b"", ctx)) == errno.EOPNOTSUPP
    assert client.calls.total() == before


async def read_directory(operations: Operations, shown: list[tuple[bytes, int, Any]], fh: int, start: int = 0) -> None:
    while True:
        count = len(shown)
        await operations.readdir(fh, start, Token())  # type: ignore[arg-type]
        if len(shown) == count:
            return
        start = shown[-1][1]


async def test_readdir_shows_each_entry_once_while_entries_come_and_go(
    operations: Operations, client: FakeClient, ctx: Any, shown: list[tuple[bytes, int, Any]]
) -> None:
    for number in range(40):
        await operations.mkdir(1, b"d%02d" % number, 0o755, ctx)
    fh = await operations.opendir(1, ctx)
    await operations.readdir(fh, 0, Token())  # type: ignore[arg-type]
    await operations.rmdir(1, b"d00", ctx)  # shown already
    await operations.rmdir(1, b"d30", ctx)  # fetched, not shown yet
    await operations.mkdir(1, b"d99", 0o755, ctx)
    await client.setattr(client.names[1][b"d20"], AttrChanges(mode=0o700))
    await read_directory(operations, shown, fh, shown[-1][1])
    names = [name for name, _, _ in shown]
    assert len(names) == len(set(names))
    assert set(names) >= {b".", b"..", *(b"d%02d" % n for n in range(40) if n != 30)}
    assert b"d30" not in names
    modes = {name: attr.st_mode & 0o777 for name, _, attr in shown}
    assert modes[b"d20"] == 0o700  # changed between being fetched and being shown


async def test_readdir_goes_on_from_an_older_cookie(
    operations: Operations, ctx: Any, shown: list[tuple[bytes, int, Any]]
) -> None:
    for number in range(12):
        await operations.mkdir(1, b"d%02d" % number, 0o755, ctx)
    fh = await operations.opendir(1, ctx)
    await read_directory(operations, shown, fh)
    first = [name for name, _, _ in shown]
    cookie = next(cookie for name, cookie, _ in shown if name == b"d04")
    shown.clear()
    await read_directory(operations, shown, fh, cookie)
    assert [name for name, _, _ in shown] == first[first.index(b"d04") + 1 :]
    shown.clear()
    await operations.mkdir(1, b"a", 0o755, ctx)
    await read_directory(operations, shown, fh)  # rewinddir sees what is new
    assert [name for name, _, _ in shown][:3] == [b".", b"..", b"a"]


async def test_rename_flags(operations: Operations, ctx: Any) -> None:
    a = await operations.mkdir(1, b"a", 0o755, ctx)
    await operations.mkdir(1, b"b", 0o755, ctx)
    assert await failing(operations.rename(1, b"a", 1, b"b", pyfuse3.RENAME_NOREPLACE, ctx)) == errno.EEXIST
    assert await failing(operations.rename(1, b"a", 1, b"b", 4, ctx)) == errno.EINVAL
    await operations.rename(1, b"a", 1, b"b", pyfuse3.RENAME_EXCHANGE, ctx)
    assert (await operations.lookup(1, b"b", ctx)).st_ino == a.st_ino


@pytest.mark.parametrize("how", ["append", "write"])
@pytest.mark.parametrize("slow", ["getattr", "setattr"])
async def test_set_user_id_that_is_set_during_a_change_goes_with_the_next_one(
    slow: str, how: str, operations: Operations, client: FakeClient, ctx: Any, notified: list[tuple[object, ...]],
    autojump_clock: trio.testing.MockClock,
) -> None:  # fmt: skip
    """Whoever changes the file has looked at its mode before it is set, or looks while that is on its way."""
    user: Any = Caller(uid=1000)
    info, entry = await operations.create(1, b"f", 0o755, os.O_WRONLY, user)
    await operations.setxattr(entry.st_ino, b"gfs.append", b"by root", ctx)

    async def change() -> None:
        if how == "append":
            await operations.setxattr(entry.st_ino, b"gfs.append", b"record", user)
        else:
            await operations.write(info.fh, 0, b"bytes")

    async def set_mode() -> None:
        fields: Any = Mock(spec=pyfuse3.SetattrFields, update_mode=True, update_uid=False, update_gid=False)
        fields.update_atime = fields.update_mtime = fields.update_size = False
        mode: Any = Mock(st_mode=0o4755)
        await operations.setattr(entry.st_ino, mode, fields, None, ctx)

    call = getattr(client, slow)

    async def late(*args: Any) -> Any:
        setattr(client, slow, call)
        if slow == "setattr":
            await trio.sleep(1)
        found = await call(*args)
        if slow == "getattr":
            await trio.sleep(1)
        return found

    setattr(client, slow, late)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(change if slow == "getattr" else set_mode)
        await trio.sleep(0.5)
        await (set_mode if slow == "getattr" else change)()
    assert client.attrs[entry.st_ino].mode == 0o4755
    await change()
    assert client.attrs[entry.st_ino].mode == 0o755
