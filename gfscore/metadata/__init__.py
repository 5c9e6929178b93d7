"""The master's decisions, pure: namespace, chunks, policies, placement, locks and leases.

Every change is decided over a `Transaction` and takes effect only when its batch is applied to the
`LayeredTables`. Nothing here does I/O, reads a clock, rolls a die, awaits or knows protobuf.
"""
