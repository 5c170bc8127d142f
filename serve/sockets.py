"""The address that is served: one socket, or one for each worker between which connections are dealt out."""

import errno
import ipaddress
import socket
import sys
from typing import Self

from store.errors import BadInput

BACKLOG = 512
DEALT_OUT = sys.platform == "linux"
"""Whether the system deals connections out between sockets of one address (SO_REUSEPORT); elsewhere one has all."""


def bound(host: str, port: int) -> socket.socket:
    """A socket that nobody else has; it does not listen yet, so that no client waits while models are loaded.

    Args:
        port: 0 for any that is free.

    Raises:
        BadInput: when the port is in use, or the host is no address of this machine.
    """
    return _bound(host, port, shared=False)


def listen(found: socket.socket) -> None:
    """Lets clients come; as late as this it turns out where another began to listen since `bound`.

    Raises:
        BadInput: as `bound`.
    """
    try:
        found.listen(BACKLOG)
    except OSError as error:
        host, port = found.getsockname()[:2]
        raise _refusal(host, port, error) from error


class SharedAddress:
    """An address with a socket of its own for each worker, where the system can deal connections out between them.

    Of one socket for all, whoever wakes first takes most of what comes at once, and the others have nothing to do.

    Args:
        host, port: as of `bound`.

    Raises:
        BadInput: as `bound`.
    """

    def __init__(self, host: str, port: int) -> None:
        # Sockets that share an address let further ones in: that somebody else listens there, one that does not tells.
        bound(host, port).close()
        self.first = _bound(host, port, shared=DEALT_OUT)
        self._host, self._port = self.first.getsockname()[:2]  # by whatever name it was given
        try:
            self._claim = _claimed(self._host, self._port) if DEALT_OUT else None
        except OSError as error:
            self.first.close()
            raise _refusal(host, port, error) from error

    def for_worker(self) -> socket.socket:
        """One more socket, which does not listen yet; the first never does, but keeps the address."""
        return _bound(self._host, self._port, shared=True) if DEALT_OUT else self.first.dup()

    def close(self) -> None:
        """Gives the address up; what workers have stays theirs."""
        self.first.close()
        if self._claim is not None:
            self._claim.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url_of(found: socket.socket) -> str:
    """For people."""
    host, port = found.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bound(host: str, port: int, *, shared: bool) -> socket.socket:
    made = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)
    except OSError as error:
        if made is not None:
            made.close()
        raise _refusal(host, port, error) from error
    return made


def _claimed(host: str, port: int) -> socket.socket:
    # Two servers that load at the same time would share the address without a word. The system frees this name, which
    # is in no file system, with the process that has it.
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0tandem {host} {port}")
    except OSError:
        claim.close()
        raise
    return claim


def _refusal(host: str, port: int, error: OSError) -> BadInput:
    if error.errno == errno.EADDRINUSE:
        return BadInput(f"port {port} of {host} is in use: stop what listens there, or give another with --port")
    return BadInput(f"cannot listen on {host}, port {port}: {error.strerror or error}")
