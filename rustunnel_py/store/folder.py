"""The data folder: what a server keeps between two runs, for its own user's eyes only.

DATA/            0700
  admin-token    0600, made at the first start unless auth.admin_token is set
  address        0600, JSON: where the running server's API answers; gone when it has stopped
  lock           held while a server, or a command that opens the database itself, runs
  ca.pem, …      see certs/authority.py
  main.db, captured.db
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import uuid
from typing import TYPE_CHECKING

import msgspec

from rustunnel_py.errors import ConfigError
from rustunnel_py.model.access import Secret

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class ApiAddress(msgspec.Struct, frozen=True):
    """What the file `address` holds: the base URL of the API and, for TLS, the pin of its key."""

    url: str
    pin: str | None = None


class DataFolder:
    """One data folder, made with mode 0700 where it does not exist. Raises ConfigError where it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o077:
                path.chmod(0o700)
        except OSError as error:
            raise ConfigError("--data", f"the folder {path} cannot be used: {error.strerror}") from None

    @property
    def admin_token_file(self) -> Path:
        return self.path / "admin-token"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder. Raises ConfigError while another process holds it."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError("--data", f"the folder {self.path} cannot be used: {error.strerror}") from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError("--data", f"another server uses the folder {self.path}") from None
            yield
        finally:
            os.close(descriptor)

    def is_locked(self) -> bool:
        try:
            with self.lock():
                return False
        except ConfigError:
            return True

    def admin_token(self) -> Secret:
        """The token of the file `admin-token`, made now if there is none."""
        with contextlib.suppress(FileNotFoundError):
            token = self.admin_token_file.read_text().strip()
            if not token:
                raise ConfigError("admin-token", f"{self.admin_token_file} is empty; delete it to have a new one made")
            return Secret(token)
        token = secrets.token_urlsafe(32)
        self.write_private("admin-token", token + "\n")
        return Secret(token)

    def write_private(self, name: str, text: str) -> None:
        """Write a file of mode 0600 whole or not at all."""
        temporary = self.path / f".{name}.{uuid.uuid4().hex}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path / name)

    def publish_address(self, address: ApiAddress) -> None:
        self.write_private("address", msgspec.json.encode(address).decode())

    def withdraw_address(self) -> None:
        (self.path / "address").unlink(missing_ok=True)

    def read_address(self) -> ApiAddress | None:
        """Where the running server's API answers; None where no server runs."""
        try:
            return msgspec.json.decode((self.path / "address").read_bytes(), type=ApiAddress)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
