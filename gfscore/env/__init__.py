"""Everything uncertain, passed in from outside: clock, randomness, disk and transport.

Servers and the client get one `Env`. `real.py` has the operating system's, `memory.py` the twins that
run a whole cluster inside one process and one thread, deterministically, from one seed.
"""

from gfscore.env.interfaces import Clock, Disk, DiskFile, Env, IoRunner

__all__ = ["Clock", "Disk", "DiskFile", "Env", "IoRunner"]
