"""The FUSE driver: turns the kernel's requests into calls of the client library, and the `gfs` command."""
