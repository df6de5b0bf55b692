"""What the benchmarks that start servers share: waiting for them."""

import socket
import sys
import time


def wait_for(condition, what, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"{what} takes too long")
        time.sleep(0.002)


def answers(path):
    """Whether a server listens at this socket."""
    probe = socket.socket(socket.AF_UNIX)
    try:
        probe.connect(path)
        return True
    except OSError:
        return False
    finally:
        probe.close()
