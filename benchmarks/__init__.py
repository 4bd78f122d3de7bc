"""Compares the extension with its peers in interleaved rounds."""
