"""Where the page is served."""

import socket

import pytest

from vpexp.demo.server import is_local, name_address, open_socket
from vpexp.errors import ConfigError


def test_port_that_is_taken__is_named():
    with open_socket("127.0.0.1", None) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"demo\.port={port} is taken: .* demo\.port=null"):
            open_socket("127.0.0.1", port)


def test_null__takes_the_next_free_port():
    with open_socket("127.0.0.1", None) as first, open_socket("127.0.0.1", None) as second:
        ports = [opened.getsockname()[1] for opened in (first, second)]
        assert 8000 <= ports[0] < ports[1]
        assert name_address("127.0.0.1", second) == f"http://127.0.0.1:{ports[1]}"
        assert is_local(second)


def test_host__that_is_none_of_this_machine():
    with pytest.raises(ConfigError, match=r"demo\.host=192\.0\.2\.1 demo\.port=8000: .*assign"):
        open_socket("192.0.2.1", 8000)
    with pytest.raises(ConfigError, match=r"demo\.host=no such host"):
        open_socket("no such host", 8000)


def test_all_addresses__are_not_local():
    with open_socket("0.0.0.0", None) as opened:
        assert not is_local(opened)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_address_of_six__has_brackets():
    try:
        opened = open_socket("::1", None)
    except ConfigError:
        pytest.skip("no IPv6 here")
    with opened:
        assert name_address("::1", opened).startswith("http://[::1]:")
        assert is_local(opened)
