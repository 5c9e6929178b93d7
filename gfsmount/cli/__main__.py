"""`python -m gfsmount.cli`: the `gfs` command without its script."""

from gfsmount.cli.main import main

main()
