"""Handlers of FUSE requests, one module per family. They import the driver's tables, never one another."""
