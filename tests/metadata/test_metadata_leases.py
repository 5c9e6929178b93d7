from __future__ import annotations

import pytest

from gfscore.metadata.leases import Lease, LeaseTable, WriterTable


def lease(handle: int, version: int = 1, primary: str = "a", epoch: int = 5) -> Lease:
    return Lease(handle, version, primary, epoch, (primary, "z"))


def test_a_chunk_has_one_lease() -> None:
    table = LeaseTable()
    table.grant(lease(1))
    table.grant(lease(1))
    table.grant(lease(1, version=2, primary="b"))
    assert table.find(1) == lease(1, 2, "b") and table.by_server("a") == [] and len(table) == 1
    with pytest.raises(AssertionError):
        table.grant(lease(1, version=2, primary="c"))
    assert table.drop(1) == lease(1, 2, "b") and table.drop(1) is None and table.find(1) is None


def test_leases_end_with_the_session_of_their_server() -> None:
    table = LeaseTable()
    for handle in (1, 2):
        table.grant(lease(handle))
    table.grant(lease(3, epoch=6))
    table.grant(lease(4, primary="b"))
    assert [ended.handle for ended in table.drop_server("a", 5)] == [1, 2]
    assert table.by_server("a") == [lease(3, epoch=6)] and table.find(4) is not None
    assert table.drop_server("nobody", 9) == []


def test_writers_come_and_go() -> None:
    writers = WriterTable()
    assert writers.add(1, 10) is None and writers.add(1, 10) is None
    assert writers.is_sole(1, 10) and writers.sole_writer(1) == 10
    assert writers.add(1, 11) == 10, "the sole writer has to be told"
    assert writers.add(1, 12) is None
    assert writers.sole_writer(1) is None and not writers.is_sole(1, 10)
    writers.add(2, 11)
    assert set(writers.inodes(11)) == {1, 2} and set(writers.writers(1)) == {10, 11, 12}
    assert writers.drop_client(11) == [2]
    assert not writers.remove(1, 10) and writers.remove(1, 12) and writers.remove(1, 12)
    writers.add(3, 10)
    writers.drop_inode(3)
    writers.add(4, 10, request=7)
    assert not writers.release(4, 10, request=6), "sent before the lease was asked for, and late"
    assert writers.is_sole(4, 10)
    writers.add(4, 10, request=5)  # repeated by the network
    assert not writers.release(4, 10, request=6) and writers.release(4, 10, request=8)
    assert not writers.writers(3) and not writers.inodes(10)
