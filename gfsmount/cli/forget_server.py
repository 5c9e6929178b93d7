"""`gfs forget-server`: a chunkserver that will never come back."""

from __future__ import annotations

import click

from gfsmount.cli.options import master_option


@click.command("forget-server")
@click.argument("server")
@master_option
def command(server: str, master: str | None) -> None:
    """Stop waiting for SERVER, which is down for good.

    After its start a master deletes nothing before every chunkserver it knows has reported; this ends the wait.
    """
    from gfsmount.cli.cluster_client import Session, on_cluster
    from gfsmount.cli.targets import default_address

    async def work(session: Session) -> str:
        return await session.client.operator.forget_server(server)

    click.echo(f"{on_cluster(default_address(master), work)} is forgotten")
