"""A server's life: the socket, the web server in a thread, the engine in this one, and a graceful end."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from spark13b.errors import InputError, JobError
from spark13b.serve.desk import Desk

_STARTING = 10.0  # seconds for the web server to begin
_TELLING = 3.0  # and to tell its clients that it ends


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises InputError when the port is taken or the address is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(512)
    except (OSError, OverflowError) as error:
        found.close()
        what = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"cannot listen on {host} port {port}: {what}",
            where="--port",
            fix="choose another --port or --host, or stop what listens there ('ss -ltnp' shows it)",
        ) from error
    return found


def address(where: socket.socket) -> str:
    """The URL of a socket."""
    name, number = where.getsockname()[:2]
    return f"http://[{name}]:{number}" if ":" in name else f"http://{name}:{number}"


def run(
    app: FastAPI,
    desk: Desk,
    where: socket.socket,
    grace: float,
    ready: Callable[[], None],
    live: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish the running answers for at most `grace` seconds; a second signal ends
    at once. `live` is called again and again.

    Raises JobError when the engine fails, or the web server does not begin or breaks off.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=int(grace) + 1,
    )
    server = uvicorn.Server(config)
    broken: list[BaseException] = []

    def serve_web() -> None:
        try:
            server.run(sockets=[where])
        except BaseException as error:  # uvicorn may end its process, too
            broken.append(error)

    web = threading.Thread(target=serve_web, name="web", daemon=True)
    stop_at = [float("inf")]

    def end(number: int, frame: FrameType | None) -> None:
        if server.should_exit:
            stop_at[0] = 0.0
        server.should_exit = True  # no new connections; open requests go on
        stop_at[0] = min(stop_at[0], time.monotonic() + grace)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        web.start()
        until = time.monotonic() + _STARTING
        while not server.started and web.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        if server.started:
            ready()
            desk.serve(lambda: not web.is_alive() or time.monotonic() > stop_at[0], live)
        if broken or not server.started:
            what = "broke off" if server.started else "did not begin"
            reason = f": {broken[0]}" if broken else f" within {_STARTING:g} s"
            raise JobError(f"the web server {what}{reason}", fix="start it again; --debug shows more")
    finally:
        server.should_exit = True
        web.join(timeout=_TELLING)  # clients are told why their answers do not end
        server.force_exit = True
        web.join(timeout=_TELLING)
        for number, handler in before.items():
            signal.signal(number, handler)
