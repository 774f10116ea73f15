"""One module per subcommand; `cli.COMMANDS` is their table."""
