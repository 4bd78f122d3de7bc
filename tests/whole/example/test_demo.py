"""``make demo``, without the installation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[3]
DEMO = [sys.executable, "-m", "example_app.demo"]


@pytest.mark.workers
def test_demo(tmp_path: Path, short_tmp: Path) -> None:
    """It exits with 0, names the faulty views, and leaves no file."""
    done = subprocess.run(
        DEMO,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "$ flask --app example_app pool-status" in done.stdout
    assert "$ flask --app example_app session-status" in done.stdout

    # By endpoint, file and line.
    assert "faults.keep_connection" in done.stdout
    assert "faults.sleep_in_transaction" in done.stdout
    assert "faults.py:" in done.stdout
    assert "faults.forget_commit" in done.stdout
    assert list(short_tmp.iterdir()) == []


@pytest.mark.workers
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo(tmp_path: Path, short_tmp: Path, number: int) -> None:
    """Ctrl-C and ``kill`` stop all processes that it has started."""
    process = subprocess.Popen(
        DEMO,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None

    for line in process.stdout:
        if "It answers at" in line:
            break

    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 4  # gunicorn and its workers
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert psutil.wait_procs(children, timeout=5)[1] == []
    assert list(short_tmp.iterdir()) == []
