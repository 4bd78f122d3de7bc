"""Scopes: who uses a session or connection, and when that use ends."""
