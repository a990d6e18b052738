"""The `rlvo` command: one module per command group. A command imports what it needs when it runs."""
