"""Certificates for names of their own, in a folder: by the names in a certificate, not by its file's.

Two layouts, side by side: `ANY.pem` (certificate, then chain) beside `ANY.key`, and folders with `fullchain.pem` and
`privkey.pem`, as certbot keeps them below `live`. A name goes before a wildcard, and among
equals the certificate that is valid longest.

A pair that cannot be used (expired, of another key, half-written) costs its names only: what was loaded of it before
stays in use until it can be read again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rustunnel_py.certs.pair import Pair, files_of, fingerprint, load_pair
from rustunnel_py.errors import ConfigError

if TYPE_CHECKING:
    import datetime
    import ssl
    from collections.abc import Callable, Iterator
    from pathlib import Path

PAIRS_MAX = 1000  # some 50 KiB each

KEY = "tls.cert_folder"


@dataclass(frozen=True, slots=True)
class _Loaded:
    pair: Pair
    files: tuple[Path, Path]
    print: tuple[object, ...]  # of the two files when they were read


class CertificateFolder:
    """The pairs of one folder; `load` reads what has changed. ConfigError: the folder itself cannot be read.

    `troubles` says of each pair that cannot be used why, in one line.
    """

    def __init__(self, folder: Path, new_context: Callable[[], ssl.SSLContext]) -> None:
        self.troubles: dict[str, str] = {}
        self._folder = folder
        self._new_context = new_context
        self._loaded: dict[str, _Loaded] = {}
        self._refused: dict[str, tuple[object, ...]] = {}  # prints of what could not be read
        self._by_name: dict[str, Pair] = {}

    def __repr__(self) -> str:
        return f"<CertificateFolder {self._folder}: {len(self._loaded)} pairs>"

    def find(self, name: str) -> Pair | None:
        """The pair for a host name in lower case, if there is one."""
        found = self._by_name.get(name)
        if found is None:
            found = self._by_name.get("*." + name.partition(".")[2])
        return found

    def changed(self) -> bool:
        """Whether files came, went, or differ from what was read last."""
        prints = {name: fingerprint(*files) for name, files in self._candidates()}
        known = {name: loaded.print for name, loaded in self._loaded.items()} | self._refused
        return prints != known

    def load(self, now: datetime.datetime) -> None:
        """Read what has changed; what is gone is forgotten, what cannot be used stays as it was."""
        loaded: dict[str, _Loaded] = {}
        refused: dict[str, tuple[object, ...]] = {}
        troubles: dict[str, str] = {}
        for name, (cert, key) in self._candidates():
            seen = fingerprint(cert, key)
            before = self._loaded.get(name)
            if before is not None and before.print == seen:
                loaded[name] = before
                continue
            try:
                loaded[name] = _Loaded(load_pair(cert, key, self._new_context(), now, KEY, KEY), (cert, key), seen)
            except ConfigError as error:
                refused[name] = seen
                troubles[name] = str(error)
                if before is not None:
                    loaded[name] = before
        by_name: dict[str, Pair] = {}
        for one in loaded.values():
            for host in one.pair.names:
                other = by_name.get(host)
                if other is None or other.ends < one.pair.ends:
                    by_name[host] = one.pair
        self._loaded, self._refused, self.troubles, self._by_name = loaded, refused, troubles, by_name

    def _candidates(self) -> Iterator[tuple[str, tuple[Path, Path]]]:
        """(name, (certificate, key)), in order. A known pair of which one file is missing is being replaced."""
        try:
            found = {entry.name: files_of(entry) for entry in self._folder.iterdir()}
        except OSError as error:
            raise ConfigError(KEY, f"{self._folder}: {error.strerror}") from None
        candidates = {name: files for name, files in found.items() if files is not None}
        for name, loaded in self._loaded.items():
            if name not in candidates and any(file.exists() for file in loaded.files):
                candidates[name] = loaded.files
        if len(candidates) > PAIRS_MAX:
            raise ConfigError(KEY, f"{self._folder} holds more than {PAIRS_MAX} certificates")
        yield from sorted(candidates.items())
