"""A PostgreSQL that tests of `devmesh doctor` make ill, each in a way of its own, and well again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import libfaketime  # type: ignore[import-untyped]  # it has no types

from tests.breaking import Postgres
from tests.conftest import run_sql
from tests.harness import wait_until

FAKETIME = next(Path(libfaketime.__file__).parent.rglob("libfaketime.so.1"))
IDS_IN_A_FILE = 32 * 32_768  # of pg_xact
FILE_BYTES = 256 << 10


class IllServer:
    def __init__(self, postgres: Postgres) -> None:
        self.postgres, self.data = postgres, postgres.server.data

    def sql(self, text: str, database: str = "devmesh") -> str:
        return run_sql(self.dsn(database), text)

    def dsn(self, database: str, role: str = "postgres", password: str = "") -> str:
        """Through the socket, where passwords are asked of who has one to give: see `ask_for_passwords`."""
        query = parse_qs(urlsplit(self.postgres.dsn).query)
        who = f"{role}:{quote(password, safe='')}" if password else role
        return f"postgresql://{who}@/{database}?host={quote(query['host'][0], safe='')}&port=5432"

    def ask_for_passwords(self, *roles: str) -> None:
        access = self.data / "pg_hba.conf"
        asked = "".join(f"local all {role} scram-sha-256\n" for role in roles)
        access.write_text(asked + access.read_text())
        self.sql("select pg_reload_conf()")

    @contextmanager
    def settings(self, **values: str) -> Iterator[None]:
        """Of the whole server, which takes them while it runs."""
        self._apply(*(f"alter system set {name} = '{value}'" for name, value in values.items()))
        name, value = next(iter(values.items()))
        wait_until(lambda: self.sql(f"show {name}") == value, f"{name} is {value}")
        try:
            yield
        finally:
            self._apply(*(f"alter system reset {name}" for name in values))
            wait_until(lambda: self.sql(f"show {name}") != value, f"{name} is as before")

    def _apply(self, *statements: str) -> None:
        for statement in statements:
            self.sql(statement)
        self.sql("select pg_reload_conf()")

    @contextmanager
    def standby(self) -> Iterator[None]:
        """As a replica whose primary is away."""
        self.postgres.server.stop()
        (self.data / "standby.signal").touch()
        self.postgres.server.start()
        try:
            yield
        finally:
            self.sql("select pg_promote()")

    @contextmanager
    def clock(self) -> Iterator[Path]:
        """Runs on a clock that is off by what is written to the file that this gives."""
        offset = self.data / "offset"
        offset.write_text("+0")
        self.postgres.server.stop()
        self._start({
            "LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        })  # fmt: skip
        try:
            yield offset
        finally:
            self.postgres.server.stop()
            self.postgres.server.start()

    def use_up_transaction_ids(self, next_id: int) -> None:
        """As if so many transactions had been since the last freezing."""
        self.postgres.server.stop()
        states = self.data / "pg_xact" / f"{next_id // IDS_IN_A_FILE:04X}"
        states.write_bytes(bytes(FILE_BYTES))
        self._own(states)
        self._run("pg_resetwal", "-x", str(next_id), "-D", str(self.data))
        with (self.data / "postgresql.conf").open("a") as configuration:
            configuration.write("autovacuum = off\nautovacuum_freeze_max_age = 2000000000\n")  # or it is mended at once
        self.postgres.server.start()

    def _start(self, environment: dict[str, str]) -> None:
        log = str(self.postgres.server.log)
        self._run("pg_ctl", "start", "-w", "-D", str(self.data), "-l", log, environment=environment)

    def _run(self, program: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
        owner = self.data.stat()
        is_root = os.geteuid() == 0
        done = subprocess.run(
            [str(self.postgres.server.binaries / program), *arguments], cwd="/", check=False, text=True,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C", **(environment or {})},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60,
            user=owner.st_uid if is_root else None, group=owner.st_gid if is_root else None,
            extra_groups=[] if is_root else None,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout

    def _own(self, path: Path) -> None:
        owner = self.data.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
