"""What a process of `fleet serve` runs: `edgekit.fleet.child web|ingest[-N]|background CONFIG LIFELINE [FD URL]`."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from edgekit.core.errors import EdgekitError, one_line
from edgekit.core.stopping import call_on_signal
from edgekit.fleet.config import read_config

_GRACE_S = 3.0


def main(arguments: list[str]) -> int:
    """Run one process until SIGTERM, SIGINT or the supervisor's end; its exit code."""
    kind, config_file, lifeline, *rest = arguments
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s {kind} %(levelname)s %(message)s", stream=sys.stderr
    )
    stop = threading.Event()
    threading.Thread(target=_watch, args=(int(lifeline),), daemon=True).start()
    call_on_signal(stop.set, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the supervisor says when
    try:
        config = read_config(Path(config_file))
        name, _, number = kind.partition("-")
        if name == "ingest":
            from edgekit.fleet.ingest import run_ingest

            run_ingest(config, stop, int(number or 1))
        elif kind == "background":
            from edgekit.fleet.background import run_background

            run_background(config, stop)
        else:
            from edgekit.fleet.web import run_web

            run_web(config, socket.socket(fileno=int(rest[0])), rest[1], stop)
    except EdgekitError as err:
        logging.getLogger("edgekit.fleet").error("%s", one_line(err))  # noqa: TRY400  (our errors are one line)
        return err.exit_code
    return 0


def _watch(lifeline: int) -> None:
    """End this process with its supervisor: reading returns when the last writing end is closed."""
    while os.read(lifeline, 1):
        pass
    threading.Timer(_GRACE_S, os._exit, (1,)).start()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
