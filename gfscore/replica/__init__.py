"""Pure decisions for one chunk replica: which mutation may be applied now, where a record goes, who may ask for it.

Nothing here does I/O, reads a clock or awaits. The chunkserver carries the decisions out.
"""
