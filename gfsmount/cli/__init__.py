"""The `gfs` command: one module per command, found by name in `main.COMMANDS` and imported only when it runs."""
