from __future__ import annotations

import pytest
from metadata_state import State

from gfscore.errors import Code, GfsError
from gfscore.metadata.inodes import HAS_XATTRS
from gfscore.metadata.remove import unlink
from gfscore.metadata.tables import XATTRS
from gfscore.metadata.xattrs import get_xattr, list_xattrs, remove_xattr, set_xattr


def refused(state: State, code: Code, operation: object, *args: object, **kwargs: object) -> None:
    with pytest.raises(GfsError) as caught:
        state.run(operation, *args, **kwargs)  # type: ignore[arg-type]
    assert caught.value.code is code


def test_set_get_list_remove(state: State) -> None:
    f, g = state.make(b"f"), state.make(b"g")
    state.run(set_xattr, f, b"user.b", b"2")
    state.run(set_xattr, f, b"user.a", b"")
    state.run(set_xattr, f, b"user.b", b"3", replace=True)
    assert list_xattrs(state.tables, f) == [b"user.a", b"user.b"] and list_xattrs(state.tables, g) == []
    assert get_xattr(state.tables, f, b"user.b") == b"3" and get_xattr(state.tables, f, b"user.a") == b""
    refused(state, Code.EXISTS, set_xattr, f, b"user.b", b"4", create=True)
    refused(state, Code.NO_ATTRIBUTE, set_xattr, f, b"user.c", b"4", replace=True)
    refused(state, Code.NO_ATTRIBUTE, remove_xattr, f, b"user.c")
    state.run(remove_xattr, f, b"user.a")
    assert state.record(f).flags & HAS_XATTRS
    state.run(remove_xattr, f, b"user.b")
    assert not state.record(f).flags & HAS_XATTRS
    with pytest.raises(GfsError) as caught:
        get_xattr(state.tables, f, b"user.b")
    assert caught.value.code is Code.NO_ATTRIBUTE


def test_limits(state: State) -> None:
    f = state.make(b"f")
    state.run(set_xattr, f, b"user." + b"n" * 250, bytes(65536))
    refused(state, Code.NAME_TOO_LONG, set_xattr, f, b"user." + b"n" * 251, b"")
    refused(state, Code.ATTRIBUTE_TOO_LARGE, set_xattr, f, b"user.x", bytes(65537))
    refused(state, Code.INVALID, set_xattr, f, b"", b"")
    refused(state, Code.STALE_INODE, set_xattr, 99, b"user.x", b"")


def test_no_more_names_than_can_be_listed(state: State) -> None:
    f = state.make(b"f")
    names = [b"%0255d" % number for number in range(256)]
    state.tables.apply([(XATTRS, f.to_bytes(8, "big") + name, b"") for name in names[:255]])
    state_record = state.record(f)
    state_record.flags |= HAS_XATTRS
    state.tables.apply([("inodes", f.to_bytes(8, "big"), state_record.pack())])
    state.run(set_xattr, f, names[255], b"")
    refused(state, Code.NO_SPACE, set_xattr, f, b"user.one-more", b"")
    state.run(set_xattr, f, names[0], b"again")


def test_they_go_with_the_inode(state: State) -> None:
    f = state.make(b"f")
    state.run(set_xattr, f, b"user.a", b"1")
    state.run(unlink, parent=1, name=b"f")
    assert list(state.tables.range(XATTRS, b"", None)) == []
