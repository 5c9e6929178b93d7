"""The master process: a thin shell around `gfscore.metadata` that logs, locks, calls and answers [0040]-[0062].

Decisions are made by the pure core; what is here knows about time, sessions, chunkservers and the log.
"""
