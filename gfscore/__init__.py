"""The file system itself: metadata, replicas, storage, wire, servers and the client library."""
