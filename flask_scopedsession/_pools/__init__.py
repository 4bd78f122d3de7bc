"""Engines and their pools, and the account kept of every connection."""
