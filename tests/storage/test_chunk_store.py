"""The chunk store in good weather: what is written is read, names, versions, clones, appends, descriptors, threads."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from chunk_model import CHUNK_BYTES, Model, open_store
from hypothesis import given, settings
from hypothesis import strategies as st

from gfscore.checksum import block_checksums, crc32c
from gfscore.env.memory_disk import MemoryDisk
from gfscore.env.real_disk import RealDisk
from gfscore.errors import Code, GfsError
from gfscore.ids import BLOCK_BYTES
from gfscore.storage.buffers import LARGE_BYTES, BufferPool
from gfscore.storage.chunk_extents import normalise
from gfscore.storage.chunk_format import SLOTS_MAX
from gfscore.storage.chunk_store import ChunkStore

_OFFSETS = st.one_of(
    st.integers(0, CHUNK_BYTES - 1),
    st.sampled_from([0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES]),
)
_SIZES = st.sampled_from([1, 7, 200, 4096, 10_000, BLOCK_BYTES, BLOCK_BYTES + 3, 150_000])
_EXTENTS = st.lists(st.tuples(_OFFSETS, _SIZES, st.integers(1, 255)), min_size=1, max_size=6)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), _EXTENTS, st.booleans()),
        st.tuples(st.just("cut"), _OFFSETS, st.booleans()),
        st.tuples(st.just("reopen"), st.just(0), st.booleans()),
    ),
    max_size=12,
)


@settings(max_examples=120)
@given(_STEPS)
def test_random_mutations_against_a_bytearray(steps: list[tuple[str, object, bool]]) -> None:
    disk = MemoryDisk()
    store = open_store(disk)
    chunk = store.create(1, 1)
    model = Model()
    for kind, detail, sync in steps:
        if kind == "write":
            assert isinstance(detail, list)
            extents = [(at, bytes([byte]) * min(size, CHUNK_BYTES - at)) for at, size, byte in detail]
            chunk.write(extents, sync=sync)
            model.write(extents)
        elif kind == "cut":
            assert isinstance(detail, int)
            chunk.set_version(model.version, model.version + 1, detail)
            model.version += 1
            model.cut(detail)
        else:
            if sync:
                store.close()
            disk.kill()
            store = open_store(disk)
            chunk = store.get(1)
        assert (chunk.length, chunk.version) == (len(model.data), model.version)
        assert bytes(chunk.read(0, CHUNK_BYTES)) == model.data
    length, tail, table = chunk.block_checksums()
    expected = list(block_checksums(bytes(model.data)))
    if length % BLOCK_BYTES:
        assert tail == expected.pop()
    assert table == b"".join(crc.to_bytes(4, "little") for crc in expected)
    assert chunk.verify() == []


@given(st.lists(st.tuples(st.integers(0, 40), st.binary(max_size=12)), max_size=12))
def test_normalised_extents_have_the_same_effect(extents: list[tuple[int, bytes]]) -> None:
    one, two = bytearray(64), bytearray(64)
    for offset, data in extents:
        one[offset : offset + len(data)] = data
    end = 0
    for offset, view in normalise(extents):
        assert offset >= end
        end = offset + len(view)
        two[offset:end] = view
    assert one == two


def test_reads_of_every_shape() -> None:
    store = open_store(MemoryDisk())
    chunk = store.create(1, 1)
    content = bytes(range(251)) * 900
    chunk.write([(0, content)])
    for offset in (0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 70_001, len(content) - 1, len(content), len(content) + 5):
        for size in (0, 1, 4096, BLOCK_BYTES, 3 * BLOCK_BYTES):
            expected = content[offset : offset + size]
            buffer = store.pool.acquire(size)
            assert bytes(chunk.read(offset, size)) == expected
            assert chunk.read_into(buffer.view, offset) == len(expected)
            assert bytes(buffer.view[: len(expected)]) == expected
            buffer.release()
    assert store.pool.statistics()[0] == 0  # every buffer came back


def test_trusted_checksums_give_the_same_file_as_computed_ones() -> None:
    disk = MemoryDisk()
    store = open_store(disk)
    data = bytes(range(256)) * 600
    for handle, checksums in ((1, None), (2, list(block_checksums(data)))):
        chunk = store.create(handle, 1)
        chunk.write([(0, data)], checksums)
        chunk.write([(0, data[::-1])], None if checksums is None else list(block_checksums(data[::-1])))
    assert store.get(1).block_checksums() == store.get(2).block_checksums()
    assert store.get(2).verify() == []


def test_appends_are_remembered_until_the_table_is_full() -> None:
    disk = MemoryDisk()
    store = open_store(disk)
    chunk = store.create(1, 1)
    for client in range(SLOTS_MAX + 5):
        chunk.write([(chunk.length, b"record")], append=(client + 1, 9))
    disk.kill()
    chunk = open_store(disk).get(1)
    assert [chunk.append_slot(client) is None for client in (1, 5, 6, SLOTS_MAX + 5)] == [True, True, False, False]
    assert chunk.append_slot(6) == (9, 30, 6)


def test_replace_makes_a_replica_equal() -> None:
    store = open_store(MemoryDisk())
    good, bad = store.create(1, 1), store.create(2, 1)
    good.write([(0, b"g" * 150_000)], append=(4, 5))
    bad.write([(0, b"b" * 200_000)], append=(6, 7))
    length = good.length
    for start in range(0, length, BLOCK_BYTES):
        bad.replace(start, good.read(start, BLOCK_BYTES), length, good.append_table_bytes())
    assert bad.block_checksums() == good.block_checksums()
    assert bad.append_table_bytes() == good.append_table_bytes()
    assert bad.append_slot(6) is None and bad.append_slot(4) == (5, 0, 150_000)
    with pytest.raises(ValueError, match="append table"):
        bad.replace(0, b"", length, b"nonsense")


def test_versions_fence_and_repeat() -> None:
    chunk = open_store(MemoryDisk()).create(1, 5)
    chunk.set_version(5, 6)
    chunk.set_version(5, 6)
    with pytest.raises(GfsError) as caught:
        chunk.set_version(4, 7)
    assert caught.value.code == Code.STALE_VERSION and chunk.version == 6


def test_clone_is_independent() -> None:
    store = open_store(MemoryDisk())
    source = store.create(1, 2)
    source.write([(0, b"s" * 100_000)], append=(1, 1))
    clone = store.clone(1, 2, 3, 1)
    assert store.clone(1, 2, 3, 1) is clone
    source.write([(0, b"changed")])
    clone.write([(100_000, b"more")])
    assert bytes(clone.read(0, CHUNK_BYTES)) == b"s" * 100_000 + b"more"
    assert clone.append_slot(1) == (1, 0, 100_000) and source.length == 100_000
    with pytest.raises(GfsError) as caught:
        store.clone(1, 1, 4, 1)
    assert caught.value.code == Code.STALE_VERSION


def test_unknown_deleted_and_existing_chunks() -> None:
    store = open_store(MemoryDisk())
    chunk = store.create(1, 1)
    chunk.write([(0, b"x" * 10)])
    for call, code in ((lambda: store.create(1, 1), Code.EXISTS), (lambda: store.get(9), Code.UNKNOWN_CHUNK)):
        with pytest.raises(GfsError) as caught:
            call()
        assert caught.value.code == code
    assert list(store.scan()) == [(1, 1, 10)] and store.used_bytes == 10
    store.delete(1)
    with pytest.raises(GfsError) as caught:
        chunk.write([(0, b"x")])
    assert caught.value.code == Code.UNKNOWN_CHUNK and list(store.scan()) == [] and store.used_bytes == 0


def test_more_chunks_than_descriptors() -> None:
    disk = MemoryDisk()
    store = open_store(disk, open_limit=3)
    for round_ in range(3):
        for handle in range(1, 20):
            chunk = store.create(handle, 1) if round_ == 0 else store.get(handle)
            chunk.write([(chunk.length, bytes([handle]) * 100)], append=(1, round_ + 1))
    for handle in range(1, 20):
        assert bytes(store.get(handle).read(0, 1000)) == bytes([handle]) * 300


def test_pool_reuses_aligned_memory_within_its_bound() -> None:
    pool = BufferPool(keep_bytes=LARGE_BYTES)
    one, two = pool.acquire(1 << 20), pool.acquire(1 << 20)
    one.release()
    one.release()
    two.release()
    assert pool.statistics() == (0, LARGE_BYTES)
    with pytest.raises(ValueError, match="released"):
        _ = one.whole


def test_large_pieces_on_a_real_disk(tmp_path: Path) -> None:
    store = ChunkStore(RealDisk(tmp_path), 4 * 1024 * 1024, boot_id="b")
    store.open_all()
    chunk = store.create(1, 1)
    piece = store.pool.acquire(1 << 20)
    expected = bytearray()
    for number in range(3):
        piece.view[:] = bytes([number + 1]) * (1 << 20)
        chunk.write([(number << 20, piece.view)], [crc32c(piece.view[:BLOCK_BYTES])] * 16)
        expected += piece.view
    chunk.write([(5, b"small"), (1 << 20, piece.view)], sync=True)
    expected[5:10] = b"small"
    expected[1 << 20 : 2 << 20] = piece.view
    store.close()
    again = ChunkStore(RealDisk(tmp_path), 4 * 1024 * 1024, boot_id="b")
    again.open_all()
    assert list(again.scan()) == [(1, 1, 3 << 20)]
    got = again.get(1).read_pooled(0, 3 << 20)
    assert bytes(got.view) == expected
    assert again.clone(1, 1, 2, 1).verify() == []
    again.close()


def test_readers_beside_a_writer_never_see_a_mismatch(tmp_path: Path) -> None:
    store = ChunkStore(RealDisk(tmp_path), 1024 * 1024, boot_id="b", open_limit=1)
    store.open_all()
    chunk = store.create(1, 1)
    chunk.write([(0, b"\x01" * 200_000)])
    problems: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                data = bytes(chunk.read(60_000, 20_000))
                assert len(data) == 20_000
                assert len(set(data[:5536])) == 1 and len(set(data[5536:])) == 1, "a torn block was served"
        except BaseException as error:
            problems.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(150):
        chunk.write([(0, bytes([number]) * 200_000), (200_000 + number, b"x")])
        chunk.write([(chunk.length, b"tail")])
    done.set()
    for reader in readers:
        reader.join(10)
    assert not problems and not chunk.corrupt
