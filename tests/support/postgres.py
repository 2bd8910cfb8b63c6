"""A PostgreSQL server of the tests' own, in a temporary folder, at a Unix socket."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Postgres:
    """A server.

    Attributes:
        folder: Of the socket and the data.
        programs: Where `pg_ctl` and the others are.
        user: Who runs it; None for who runs the tests.
    """

    folder: Path
    programs: Path
    user: str | None

    def start(self) -> None:
        """Starts it."""
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off -c max_connections=60"
        self.run("pg_ctl", "-D", self.data, "-w", "-l", f"{self.folder}/log", "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stops it; `immediate` as a loss of power would."""
        self.run("pg_ctl", "-D", self.data, "-w", "-m", mode, "stop")

    def new_database(self, blobs: Path) -> str:
        """Makes a database, and returns its URL as a registry."""
        name = f"r{uuid.uuid4().hex[:12]}"
        self.run("createdb", "-h", self.folder, "-U", "postgres", name)
        return f"postgresql://postgres@/{name}?host={self.folder}&blobs={blobs}"

    @property
    def data(self) -> Path:
        """Its data."""
        return self.folder / "data"

    def run(self, program: str, *arguments: str | Path) -> None:
        """Runs one of its programs as its user."""
        command = [str(self.programs / program), *map(str, arguments)]
        if self.user is not None:
            command = ["runuser", "-u", self.user, "--", *command]
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60, cwd=self.folder
        )
        assert done.returncode == 0, done.stderr


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server that ends with the block; skips where there is none to start."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    user = None
    if os.geteuid() == 0:  # it refuses to run as root
        user = "postgres"
        try:
            account = pwd.getpwnam(user)
        except KeyError:
            pytest.skip("there is no user postgres to run PostgreSQL as, and it refuses to run as root")
        if shutil.which("runuser") is None:
            pytest.skip("there is no runuser to run PostgreSQL as the user postgres")
    folder = Path(tempfile.mkdtemp(prefix="lamina-pg-"))  # a short path: sockets take 107 letters
    server = Postgres(folder, programs[-1].parent, user)
    try:
        if user is not None:
            os.chown(folder, account.pw_uid, account.pw_gid)
        server.run("initdb", "-D", server.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        server.start()
        try:
            yield server
        finally:
            if (server.data / "postmaster.pid").exists():
                server.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
