"""The public client library: read, write, record append and snapshot, from any Python program.

    async with open_client("127.0.0.1:9333") as client:
        attr, file = await client.create_file(ROOT_INODE, b"log", 0o644, 0, 0)
        offset = await file.append(b"one record")

`gfscore.client.sync` is the same for programs without trio, by path.
"""

from gfscore.client.attributes import LengthUnknown
from gfscore.client.client import Client, open_client
from gfscore.client.open_file import OpenFile
from gfscore.client.options import ClientOptions
from gfscore.client.types import (
    Attr,
    AttrChanges,
    Entry,
    FileSystemSpace,
    FileType,
    Invalidation,
)
from gfscore.errors import Code, GfsError
from gfscore.ids import ROOT_INODE

__all__ = [
    "ROOT_INODE",
    "Attr",
    "AttrChanges",
    "Client",
    "ClientOptions",
    "Code",
    "Entry",
    "FileSystemSpace",
    "FileType",
    "GfsError",
    "Invalidation",
    "LengthUnknown",
    "OpenFile",
    "open_client",
]
