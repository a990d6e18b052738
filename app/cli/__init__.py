"""The `rlvo` command, one module per command group; a command imports its modules when it runs."""
