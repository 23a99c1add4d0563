"""`kms serve`: an engine, its ticker, and the HTTP service on it, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import logging
import signal
import socket
import sys

import click

import kmscore
from kmscore.cli.engine import home_path, open_engine, own_command, takes_home
from kmscore.config import Settings, load_settings
from kmscore.errors import SetupError

DRAIN_SECONDS = 10  # how long requests in progress may take to end


@click.command()
@click.option("--listen", metavar="HOST:PORT", help="Where to listen.  [default: $KMS_LISTEN, else 127.0.0.1:8480]")
@takes_home
def serve(listen: str | None) -> None:
    """Serve, and rotate and destroy keys on time. Makes the home at the first start."""
    import uvicorn  # late: `kms --help` needs none of it

    from kmscore.api.app import build_app

    servers: list[uvicorn.Server] = []

    def stop(number: int, _: object) -> None:
        """Before there is a server: leave through every `with`. Then it is told: an exception in the midst of its start would leave things
        half-made. What it hands on when it has drained changes nothing any more."""
        if servers:
            servers[0].should_exit = True
            return
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    settings = load_settings(home_path())
    with _bind(listen or settings.listen) as listener, open_engine(ticker=True) as kms:
        config = uvicorn.Config(
            build_app(kms), log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=DRAIN_SECONDS
        )
        servers.append(uvicorn.Server(config))
        _announce(kms.settings, listener)
        servers[0].run(sockets=[listener])


def _bind(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or int(port) > 65535:
        raise SetupError(f"KMS_LISTEN must be HOST:PORT, not {address!r}")
    try:
        family = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, int(port)), family=family, backlog=1024)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # create_server repeats the address
        raise SetupError(f"cannot listen on {address}: {reason}") from None


def _announce(settings: Settings, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    kms = own_command(settings.home)
    made = "from the environment or kms.toml" if settings.root_access_key_id else settings.home / "credentials"
    level = "HSM" if settings.has_token else "SOFTWARE"
    lines = (
        f"kmscore {kmscore.__version__} serves on http://{shown}:{port}",
        f"credentials: {made}",
        "try:",
        f'  {kms} CreateKey --ProtectionLevel {level} --Description "Key1 in Managed HSM"',
        f"  {kms} ListKeys",
    )
    click.echo("\n".join(lines))  # in one piece, and at once also into a pipe
