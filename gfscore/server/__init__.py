"""The processes of a cluster: thin shells around the pure cores."""
