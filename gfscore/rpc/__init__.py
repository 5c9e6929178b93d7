"""How calls travel: gRPC for control, framed TCP streams for data and sessions, memory for the twin."""
