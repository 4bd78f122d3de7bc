"""Marks of tests in which one user meets another."""

from __future__ import annotations

import os

import pytest

#: Only root can run a process as another user, or give a file away. The command that
#: runs the tests can install a package that is missing, but not these rights, so this
#: is one of the few conditions for which a test is skipped.
as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, to act as another user"
)
