"""The PROXY protocol, versions 1 and 2: who is really at the other end (haproxy.org, doc/proxy-protocol.txt).

    v1  PROXY TCP4|TCP6 source destination source-port destination-port CRLF       at most 107 bytes
        PROXY UNKNOWN … CRLF                                                       nothing is known
    v2  signature (12), version and command, family and transport, length (2), addresses, TLVs

It is only ever read from configured addresses: who may write it can be anybody.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from dataclasses import dataclass
from typing import Protocol

from rustunnel_py.errors import WireError
from rustunnel_py.wire.sink import Buffer  # noqa: TC001  (a public signature)

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V1_MAX = 107  # section 2.1, with the CRLF
# Addresses take 36 bytes (216 for UNIX); TLVs carry names and at most a client certificate.
V2_MAX = 8 * 1024

_LEAST = len("PROXY UNKNOWN\r\n")
_LEAST_TCP = len("PROXY TCP6 :: :: 1 1\r\n")

_V1_KNOWN = re.compile(rb"PROXY TCP([46]) ([0-9a-fA-F.:]{2,45}) ([0-9a-fA-F.:]{2,45}) ([0-9]{1,5}) ([0-9]{1,5})\r\n")
_V1_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [\x20-\x7e]*)?\r\n")
_LOCAL, _PROXY = 0x20, 0x21
_INET_STREAM, _INET6_STREAM = 0x11, 0x21
_V2_ADDRESSES = {_INET_STREAM: struct.Struct("!4s4sHH"), _INET6_STREAM: struct.Struct("!16s16sHH")}
_V2_SIZES = {0x1: 12, 0x2: 36, 0x3: 216}  # by family
_TLV = struct.Struct("!BH")


class Endpoint(Protocol):
    """An IP address and a port; `model.tunnel.Peer` is one."""

    @property
    def ip(self) -> str: ...

    @property
    def port(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """One header, read. `source` and `destination` are (ip, port), or None: keep what the socket itself says.

    IPv4-mapped addresses are IPv4. `size` is how many bytes of the input were the header.
    """

    version: int
    source: tuple[str, int] | None
    destination: tuple[str, int] | None
    size: int


def encode(version: int, visitor: Endpoint, edge: Endpoint) -> bytes:
    """The header of `version` (1 or 2) that tells that `visitor` connected to `edge` by TCP."""
    source, destination = ipaddress.ip_address(visitor.ip), ipaddress.ip_address(edge.ip)
    if source.version != destination.version:  # one family for both: the IPv4 side goes mapped
        source, destination = _as_six(source), _as_six(destination)
    if version == 1:
        line = f"PROXY TCP{source.version} {source} {destination} {visitor.port} {edge.port}\r\n"
        return line.encode("ascii")
    if version != 2:
        raise ValueError(version)
    family = _INET_STREAM if source.version == 4 else _INET6_STREAM
    addresses = _V2_ADDRESSES[family].pack(source.packed, destination.packed, visitor.port, edge.port)
    return SIGNATURE + struct.pack("!BBH", _PROXY, family, len(addresses)) + addresses


def _as_six(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv6Address:
    if isinstance(address, ipaddress.IPv6Address):
        return address
    return ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed)


def read(data: Buffer) -> ProxyHeader | None:
    """The header at the start of `data`; None: incomplete, call again with more. What follows is `data[header.size:]`.

    Raises WireError for what is no header, as soon as that can be seen.
    """
    start = bytes(data[: len(SIGNATURE)])
    if start == SIGNATURE[: len(start)]:
        return _read_v2(data) if len(start) == len(SIGNATURE) else None
    if start[:6] == b"PROXY "[: len(start)]:
        return _read_v1(bytes(data[:_V1_MAX]))
    raise WireError("no PROXY header")


def missing(data: Buffer) -> int:
    """Of the header that begins with `data` at least so many bytes are still to come; 0: `read` knows what it is.

    For who must not take a byte of what follows the header.
    """
    size = len(data)
    if not size:
        return _LEAST
    if data[0] == SIGNATURE[0]:
        if size < 16:
            return 16 - size
        whole: int = 16 + struct.unpack("!H", data[14:16])[0]
        return max(0, whole - size) if whole <= 16 + V2_MAX else 0
    if data[size - 1] == 0x0A or size >= _V1_MAX:
        return 0
    if size < _LEAST:
        return _LEAST - size
    return max(1, _LEAST_TCP - size) if bytes(data[6:9]) == b"TCP" else 1


def _read_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\n") + 1
    if not end:
        if len(data) == _V1_MAX:
            raise WireError("PROXY line too long")
        return None
    line = data[:end]
    if _V1_UNKNOWN.fullmatch(line) is not None:
        return ProxyHeader(1, None, None, end)
    match = _V1_KNOWN.fullmatch(line)
    if match is None:
        raise WireError("malformed PROXY line")
    family, source, destination, source_port, destination_port = (part.decode("ascii") for part in match.groups())
    return ProxyHeader(
        1,
        (_address(source, int(family)), _port(source_port)),
        (_address(destination, int(family)), _port(destination_port)),
        end,
    )


def _address(text: str, family: int) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise WireError("malformed address in a PROXY line") from None
    if address.version != family:
        raise WireError("address of another family in a PROXY line")
    return _plain(address)


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _port(text: str) -> int:
    if int(text) > 65535 or (text[0] == "0" and text != "0"):
        raise WireError("malformed port in a PROXY line")
    return int(text)


def _read_v2(data: Buffer) -> ProxyHeader | None:
    if len(data) > 12 and data[12] not in (_LOCAL, _PROXY):
        raise WireError("PROXY header of an unknown version or command")
    if len(data) < 16:
        return None
    command, kind, length = struct.unpack("!BBH", data[12:16])
    if length > V2_MAX:
        raise WireError("PROXY header too long")
    size = 16 + length
    if len(data) < size:
        return None
    if command == _LOCAL:  # the proxy's own health check: section 2.2 says to skip what follows
        return ProxyHeader(2, None, None, size)
    needed = _V2_SIZES.get(kind >> 4, 0)
    if kind >> 4 > 3 or kind & 0xF > 2 or length < needed:
        raise WireError("malformed PROXY header")
    if kind >> 4:
        _check_tlvs(bytes(data[16 + needed : size]))
    layout = _V2_ADDRESSES.get(kind)
    if layout is None:  # UNSPEC, UNIX, datagrams: nothing that we could use
        return ProxyHeader(2, None, None, size)
    source, destination, source_port, destination_port = layout.unpack(data[16 : 16 + needed])
    return ProxyHeader(
        2,
        (_plain(ipaddress.ip_address(source)), source_port),
        (_plain(ipaddress.ip_address(destination)), destination_port),
        size,
    )


def _check_tlvs(data: bytes) -> None:
    at = 0
    while at < len(data):
        if at + 3 > len(data):
            raise WireError("cut-off TLV in a PROXY header")
        at += 3 + _TLV.unpack_from(data, at)[1]
    if at != len(data):
        raise WireError("cut-off TLV in a PROXY header")
