"""What an operator does: promotion of a version, consistency check, subject export, monitoring."""
