"""What lasts: the master's operation log and checkpoints, and the chunk files of a chunkserver.

Blocking code on the `Disk` interface; it decides nothing about names, leases or replicas.
"""
