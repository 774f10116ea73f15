"""`precaudit server`: a language server on standard input and output, for editors."""

from __future__ import annotations

import click

from precaudit.errors import UsageError


@click.command(short_help="Serve diagnostics, fixes and rule pages to an editor (LSP).")
def server() -> None:
    """Serve what `check` finds to an editor that speaks the Language Server Protocol; docs/editors.md sets editors up.

    \b
    precaudit server
    """
    try:
        from precaudit.integrations import lsp
    except ImportError as error:
        raise UsageError(f"server: pygls is missing ({error}); pip install 'precaudit[lsp]'") from None
    lsp.server().start_io()
