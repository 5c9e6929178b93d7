"""Sources and options of a mount, and the driver's tables."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfscore.errors import Code, GfsError
from gfsmount.callers import AppendOffsets, thread_group
from gfsmount.errnos import errno_of
from gfsmount.inodes import InodeTable, NameFilter
from gfsmount.kernel import mounts
from gfsmount.mount_options import MountConfig, MountOptions, fuse_options, parse_options, parse_source


@pytest.mark.parametrize(
    ("source", "parsed"),
    [
        ("127.0.0.1:7700", ("127.0.0.1:7700", "/")),
        ("host:1/", ("host:1", "/")),
        ("host:1/a//b/", ("host:1", "/a/b")),
    ],
)
def test_sources(source: str, parsed: tuple[str, str]) -> None:
    assert parse_source(source) == parsed
    assert MountConfig(parsed[0], "/mnt", parsed[1]).source == parsed[0] + parsed[1].rstrip("/")


@pytest.mark.parametrize("source", ["", "host", ":1", "host:x", "host:0", "host:70000", "host:1/../x", "/a:1"])
def test_bad_sources(source: str) -> None:
    with pytest.raises(GfsError) as caught:
        parse_source(source)
    assert caught.value.code is Code.INVALID


def test_options() -> None:
    options = parse_options(["ro,noatime,x-systemd.automount", "read_ahead=2MiB,timeout=5,_netdev", "max_background=7"])
    assert options == MountOptions(
        read_only=True,
        read_ahead_kib=2048,
        max_background=7,
        timeout_seconds=5.0,
        kernel_flags=("ro", "noatime"),
    )
    words = fuse_options(MountConfig("h:1", "/mnt", "/s", options))
    assert {"fsname=h:1/s", "subtype=gfs", "default_permissions", "ro", "noatime"} <= words
    assert parse_options([""]) == parse_options([]) == MountOptions()


def test_a_directory_of_any_name_can_be_mounted() -> None:
    """libfuse takes a comma for the end of an option, and a backslash with octal digits for a byte."""
    words = fuse_options(MountConfig("h:1", "/mnt", "/a,b\\c/\u00fc\udcff"))
    assert r"fsname=h:1/a\054b\134c/\303\274\377" in words


@pytest.mark.parametrize(
    "option",
    [
        "colour=blue",
        "read_ahead=much",
        "read_ahead",
        "timeout=0",
        "timeout=soon",
        "max_background=0",
        "ro=1",
        "fsname=x",
    ],
)
def test_bad_options_say_what_is_known(option: str) -> None:
    with pytest.raises(GfsError) as caught:
        parse_options([option])
    assert caught.value.code is Code.INVALID and option.partition("=")[0] in str(caught.value)


def test_every_code_with_a_posix_meaning_has_its_errno() -> None:
    import errno

    for code in Code:
        if 0 < code < 100 and code is not Code.IO:
            assert errno_of(code) != errno.EIO, code
        elif code >= 100:
            assert errno_of(code) == errno.EIO


@given(st.lists(st.tuples(st.integers(1, 1 << 40), st.binary(min_size=1, max_size=255)), max_size=50))
def test_the_name_filter_never_forgets_within_a_generation(pairs: list[tuple[int, bytes]]) -> None:
    names = NameFilter()
    for parent, name in pairs:
        names.add(parent, name)
    assert all(pair in names for pair in pairs)
    names.rotate()
    assert all(pair in names for pair in pairs)
    names.rotate()
    assert not any(pair in names for pair in pairs)


def test_forgetting_an_inode_forgets_its_pages() -> None:
    table = InodeTable(root=5)
    assert (table.to_kernel(5), table.to_real(1), table.to_kernel(6)) == (1, 5, 6)
    table.looked_up(6)
    table.looked_up(6)
    table.pages.add(6)
    table.forget([(6, 1)])
    assert table.is_known(6) and 6 in table.pages
    table.forget([(6, 1), (99, 3)])
    assert not table.is_known(6) and 6 not in table.pages and len(table) == 0
    assert table.is_known(1)


def test_a_thread_counts_as_its_process() -> None:
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(thread_group(threading.get_native_id())))
    thread.start()
    thread.join()
    assert seen == [os.getpid()]
    assert thread_group(os.getpid()) == os.getpid()
    assert thread_group(0) == 0


def test_append_offsets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gfsmount.callers.OFFSETS_MAX", 3)
    offsets = AppendOffsets()
    for inode in range(5):
        offsets.remember(inode, 1, inode * 10)
    assert [offsets.get(inode, 1) for inode in range(5)] == [None, None, 20, 30, 40]


def test_mountinfo_is_understood() -> None:
    assert any(mount.mountpoint == "/proc" and mount.kind == "proc" for mount in mounts())
