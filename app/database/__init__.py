"""Tables, sessions and queries, on SQLite and PostgreSQL."""
