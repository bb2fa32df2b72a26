"""The socket between the server and a worker."""

import fcntl
import resource
import socket
from collections.abc import Iterator

import pytest

from engine.messages import Cancel, Channel, pack

HIGH = 1500  # more descriptors than `select` knows


@pytest.fixture
def end() -> Iterator[int]:
    """A limit of descriptors that leaves room for a high one."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 2 * HIGH), limits[1]))
    yield HIGH
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_worker_of_a_server_with_many_connections_hears_it(end: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(fileno=fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD, end)) as high:
        assert high.fileno() >= HIGH
        channel = Channel(high)
        assert not channel.poll()
        ours.sendall(pack(Cancel(3)))
        assert channel.poll()
        assert channel.receive() == Cancel(3)
        ours.shutdown(socket.SHUT_WR)
        assert channel.poll()
        with pytest.raises(EOFError):
            channel.receive()
