"""`kms serve`: an engine, its ticker, and the HTTP service on it, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import ipaddress
import signal
import socket
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import kmscore
from kmscore import logs, tracing
from kmscore.cli.engine import home_path, open_engine, own_command, takes_home
from kmscore.config import MAX_WORKERS, Settings, load_settings
from kmscore.errors import SetupError


@click.command()
@click.option("--listen", metavar="HOST:PORT", help="Where to listen.  [default: $KMS_LISTEN, else 127.0.0.1:8480]")
@click.option("--workers", type=click.IntRange(1, MAX_WORKERS), help="Processes that serve.  [default: $KMS_WORKERS, else 1]")
@click.option("--tls", is_flag=True, help="Speak TLS, by a certificate authority that the home makes where no certificate is set.")
@takes_home
def serve(listen: str | None, workers: int | None, tls: bool) -> None:
    """Serve, and rotate and destroy keys on time. Makes the home at the first start."""
    from kmscore.api import server  # late: `kms --help` needs none of it

    servers: list[Any] = []

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
    overrides: dict[str, Any] = {} if workers is None else {"workers": workers}
    settings = load_settings(home_path(), **overrides)
    logs.configure(settings)
    address = listen or settings.listen
    with ExitStack() as stack:
        listener = stack.enter_context(_bind(address))
        settings, authority = _with_tls(settings, address, tls)
        several = settings.workers > 1
        if tracing.start(settings):  # also where workers do it: what cannot be is said here, and once
            stack.callback(tracing.stop)
        with open_engine(ticker=not several, tls_certificate=settings.tls_certificate, tls_key=settings.tls_key, **overrides) as kms:
            _announce(kms.settings, listener, authority)
            if not several:
                servers.append(server.make_server(kms))
                servers[0].run(sockets=[listener])
        if several:
            server.run_workers(settings, listener)


def _with_tls(settings: Settings, address: str, wanted: bool) -> tuple[Settings, Path | None]:
    """The settings, with the home's own certificate where TLS is wanted and none is set; then also the path of its authority."""
    for path in filter(None, (settings.tls_certificate, settings.tls_key)):
        if not Path(path).is_file():
            raise SetupError(f"cannot read {path}, which tls_certificate or tls_key names")
    if not wanted or settings.tls_certificate:
        return settings, None
    from kmscore.api.localca import local_certificate

    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    host = address.rpartition(":")[0].strip("[]")
    authority, certificate, key = local_certificate(settings.home / "tls", host)
    return replace(settings, tls_certificate=str(certificate), tls_key=str(key)), authority


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
        raise SetupError(f"cannot listen on {address}: {reason}; --listen or KMS_LISTEN names another") from None


def _announce(settings: Settings, listener: socket.socket, authority: Path | None) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    kms = own_command(settings.home)
    made = "from the environment or kms.toml" if settings.root_access_key_id else settings.home / "credentials"
    level = "HSM" if settings.has_token else "SOFTWARE"
    lines = [
        f"kmscore {kmscore.__version__} serves on {'https' if settings.tls_certificate else 'http'}://{shown}:{port}",
        f"credentials: {made}",
        *([f"certificate authority: {authority}"] if authority else []),
        "try:",
        f'  {kms} CreateKey --ProtectionLevel {level} --Description "Key1 in Managed HSM"',
        f"  {kms} ListKeys",
    ]
    click.echo("\n".join(lines))  # in one piece, and at once also into a pipe
    if not settings.tls_certificate and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        click.echo(f"warning: not encrypted on {host}: who is on the way reads plaintexts and data keys; use --tls or a proxy", err=True)
