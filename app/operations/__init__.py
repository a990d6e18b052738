"""Operator tasks: promotion of versions, consistency check, subject export and monitoring."""
