"""A shell with job control for one program, which ``terminal.py`` runs on its terminal.

The program is one of ``lean.py``, and a fork of this shell, which prints how it stopped
or ended, and the state in which it left the terminal. A line that is typed while it is
stopped continues it.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import termios

from lean import run


def main() -> None:
    """Run the program ``sys.argv[1:]`` in the foreground of the terminal on stdin."""
    # nohup, or a shell's background, can have the tests ignore these. The program would
    # inherit this, and then neither it nor this shell would end when it should.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # With SIGTTOU ignored, this shell can take the terminal back.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    print("$ the command", flush=True)
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.tcsetpgrp(0, os.getpid())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run(sys.argv[1:])
        return
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        os.tcsetpgrp(0, os.getpid())
        if not os.WIFSTOPPED(status):
            break
        print(f"stopped, {state()}", flush=True)
        sys.stdin.readline()
        os.tcsetpgrp(0, pid)
        os.kill(pid, signal.SIGCONT)
    print(f"exit {os.waitstatus_to_exitcode(status)}, {state()}", flush=True)
    # Keep the terminal open until the test has read it.
    sys.stdin.readline()


def state() -> str:
    """Describe whether input is echoed, and whether unread input exists."""
    echo = termios.tcgetattr(0)[3] & termios.ECHO
    typed = select.select([0], [], [], 0)[0]
    return f"echo {'on' if echo else 'off'}, {'typed' if typed else 'nothing typed'}"


if __name__ == "__main__":
    main()
