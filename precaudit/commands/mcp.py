"""`precaudit mcp`: tools for coding agents, by the Model Context Protocol on standard input and output."""

from __future__ import annotations

import click

from precaudit.errors import UsageError


@click.command(short_help="Serve check, trace, rule and report to coding agents (MCP).")
def mcp() -> None:
    """Serve check, trace, rule and report to a coding agent that speaks the Model Context Protocol.

    \b
    claude mcp add precaudit -- precaudit mcp
    """
    try:
        from precaudit.integrations.mcp import server
    except ImportError as error:
        raise UsageError(f"mcp: the SDK is missing ({error}); pip install 'precaudit[mcp]'") from None
    server().run("stdio")
