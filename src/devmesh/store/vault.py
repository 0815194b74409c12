"""The vault: seals secrets before they are stored, and opens what is stored.

Data keys lie in the database, wrapped under a master key; unwrapped they are only in memory. Which of them is current is asked
of the database for every seal, so a rotation by another node is seen at once. Must not know what a secret is for.
"""

from __future__ import annotations

import datetime
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
import structlog

from devmesh import telemetry
from devmesh.core import envelope
from devmesh.core.components import Component, degraded, healthy, unhealthy
from devmesh.core.envelope import DataKey, EnvelopeError, MasterKey, NoKey, Place
from devmesh.core.errors import Kind, MeshError, unavailable
from devmesh.core.ids import new_id
from devmesh.store.database import Database, Record, Transaction
from devmesh.store.statements import Statement, load

SQL = load("vault")
LOCK_NUMBER = int.from_bytes(b"datakey")
CURRENT_TRIES_MAX = 3
VERIFIED_AT_ONCE = 500
NOWHERE = (uuid.UUID(int=0), uuid.UUID(int=0))  # before the first place
NO_KEY_RETRY_AFTER_MS = 30_000  # somebody has to do something first

log = structlog.get_logger(__name__)


class SealedColumn(NamedTuple):
    """A column of sealed values, and how they are sealed anew. The view mcp.sealed_values holds them all."""

    purpose: str  # its table and column. Values are bound to it: it stays as it is when they are renamed
    lock: Statement
    reseal: Statement


SEALED = (
    SealedColumn("token_issuers.secret", SQL.lock_token_issuers_secret, SQL.reseal_token_issuers_secret),
)  # fmt: skip
PURPOSES = frozenset(column.purpose for column in SEALED)


class Vault:
    """Of one process. Without a master key it seals nothing: a secret is never kept in plain text."""

    def __init__(self, master_keys: Sequence[MasterKey] = ()) -> None:
        """The first key is the one under which new data keys are wrapped, the others are still read."""
        self.master_keys = tuple(master_keys)
        self._by_id = {key.id: key for key in master_keys}
        self._data_keys: dict[uuid.UUID, DataKey] = {}

    @property
    def current(self) -> MasterKey:
        """Raises unavailable when there is none."""
        if not self.master_keys:
            message = (
                "this server has no encryption key, so it stores no secret: its operator makes one with"
                " `devmesh keys generate` and sets ENCRYPTION_MASTER_KEY"
            )
            raise unavailable(message, NO_KEY_RETRY_AFTER_MS)
        return self.master_keys[0]

    async def seal(
        self, tx: Transaction, tenant_id: uuid.UUID, purpose: str, row_id: uuid.UUID, secret: bytes
    ) -> bytes:
        """What to store in place of a secret, in this transaction. Raises MeshError."""
        [sealed] = await self.seal_many(tx, [(Place(tenant_id, purpose, row_id), secret)])
        return sealed

    async def seal_many(self, tx: Transaction, secrets: Sequence[tuple[Place, bytes]]) -> list[bytes]:
        """The same for many, under one data key. Raises MeshError."""
        for place, _ in secrets:
            assert place.purpose in PURPOSES, f"{place.purpose} is not declared in SEALED"
        if not secrets:
            return []
        data_key = await self._current_data_key(tx)
        return [data_key.seal(place, secret) for place, secret in secrets]

    async def open(
        self, source: Transaction | Database, tenant_id: uuid.UUID, purpose: str, row_id: uuid.UUID, sealed: bytes
    ) -> bytes:
        """The secret that was sealed for this place. Raises MeshError; the log says why."""
        place = Place(tenant_id, purpose, row_id)
        [opened] = await self.open_many(source, [(place, sealed)])
        if isinstance(opened, bytes):
            return opened
        raise _answer(place, opened)

    async def open_many(
        self, source: Transaction | Database, values: Sequence[tuple[Place, bytes]]
    ) -> list[bytes | EnvelopeError]:
        """Each secret, or why that one cannot be opened."""
        data_keys = await self._find_data_keys(source, {found for _, sealed in values if (found := _named_by(sealed))})
        return [_open(data_keys, place, sealed) for place, sealed in values]

    async def make_data_key(self, tx: Transaction, seen_generation: int | None) -> None:
        """Makes a new data key current, unless the one that was seen as current is so no more. Raises MeshError."""
        master_key = self.current
        await tx.fetch_value(SQL.lock, LOCK_NUMBER)
        newest = await tx.fetch_row(SQL.newest)
        if (newest["generation"] if newest is not None else None) == seen_generation:
            data_key = envelope.new_data_key(new_id())
            row = await tx.fetch_row(SQL.insert, data_key.id, master_key.id, master_key.wrap(data_key))
            assert row is not None
            log.info("a data key was made", data_key=str(data_key.id), generation=row["generation"])

    async def rotate(self, database: Database) -> None:
        """Makes a new data key current. Raises MeshError."""

        async def make(tx: Transaction) -> None:
            newest = await tx.fetch_row(SQL.newest)
            await self.make_data_key(tx, newest["generation"] if newest is not None else None)

        await database.run(make)

    def unwrap(self, row: Record) -> DataKey:
        """A data key as it lies in the database. Raises `EnvelopeError`."""
        data_key_id: uuid.UUID = row["data_key_id"]
        if data_key_id not in self._data_keys:
            master_key = self._by_id.get(row["master_key_id"])
            if master_key is None:
                raise NoKey(
                    f"the data key {data_key_id} is wrapped under a master key that is not given: {row['master_key_id']}"
                )
            self._data_keys[data_key_id] = master_key.unwrap(data_key_id, row["wrapped_key"])
        return self._data_keys[data_key_id]

    def can_unwrap(self, row: Record) -> bool:
        """Whether a data key is at hand, from memory too."""
        try:
            self.unwrap(row)
        except EnvelopeError:
            return False
        return True

    def rewrap(self, row: Record) -> bytes:
        """A data key wrapped under the current master key. Raises `EnvelopeError`."""
        return self.current.wrap(self.unwrap(row))

    async def check(self, database: Database) -> Component:
        """Whether this process can open what is sealed, and seal. Raises MeshError when the database is away."""
        rows = await database.read(SQL.data_keys)
        given = [key.id for key in self.master_keys]
        shown = ", ".join(given) or "none"
        if missing := _master_keys_of(row for row in rows if row["is_used"] and not self.can_unwrap(row)):
            return unhealthy(
                f"secrets are encrypted under master key {', '.join(missing)}, and this service was given {shown}:"
                " set ENCRYPTION_KEY to the missing one and start it again"
            )
        if not given:
            return healthy("no master key is set, so no secret can be stored: see `devmesh keys generate`")
        if strange := _master_keys_of(row for row in rows if row["master_key_id"] not in given):
            consequence = (
                "it knows them from before, until it is started again"
                if all(self.can_unwrap(row) for row in rows)
                else "nothing is sealed under them, and the worker makes others"
            )
            wrapped = f"data keys are wrapped under master key {', '.join(strange)}"
            return degraded(f"{wrapped}, and this service was given {shown}: {consequence}")
        if older := _master_keys_of(row for row in rows if row["master_key_id"] != given[0]):
            return degraded(
                f"the older master key {', '.join(older)} is needed until the worker has wrapped all data keys anew"
            )
        if any(row["is_used"] for row in rows if not row["is_current"]):
            return degraded("the worker is sealing secrets anew under the current data key")
        return healthy(f"master key {given[0]}")

    async def _current_data_key(self, tx: Transaction) -> DataKey:
        """Locked against deletion, so that it stays for as long as what it seals in this transaction."""
        _ = self.current  # without it, nothing
        for _ in range(CURRENT_TRIES_MAX):
            row = await tx.fetch_row(SQL.current)
            if row is None:
                await self.make_data_key(tx, None)
                continue
            try:
                return self.unwrap(row)
            except EnvelopeError as error:
                telemetry.SECRETS_NOT_OPENED.inc()
                log.error("nothing can be sealed", reason=str(error), given=[key.id for key in self.master_keys])
                raise unavailable("this server was given another encryption key than the one in use") from None
        raise unavailable("encryption keys are being changed; try again")

    async def _find_data_keys(
        self, source: Transaction | Database, data_key_ids: Iterable[uuid.UUID]
    ) -> dict[uuid.UUID, DataKey | EnvelopeError]:
        """From memory, or else from the database; in place of one that is not at hand, why."""
        found: dict[uuid.UUID, DataKey | EnvelopeError] = {}
        unknown = []
        for data_key_id in data_key_ids:
            if data_key_id in self._data_keys:
                found[data_key_id] = self._data_keys[data_key_id]
            else:
                found[data_key_id] = NoKey(f"there is no data key {data_key_id}")
                unknown.append(data_key_id)
        read = source.read if isinstance(source, Database) else source.fetch
        for row in await read(SQL.wrapped, unknown) if unknown else ():
            try:
                found[row["data_key_id"]] = self.unwrap(row)
            except EnvelopeError as error:
                found[row["data_key_id"]] = error
        return found


class DataKeyReport(msgspec.Struct):
    """A data key, and what depends on it."""

    id: uuid.UUID
    master_key_id: str
    created_at: datetime.datetime
    is_current: bool
    can_be_opened: bool  # with the master keys that were given
    sealed_values: int


class Report(msgspec.Struct):
    """How it stands with encryption in a database, for somebody who holds these master keys."""

    master_keys: list[str]  # the fingerprints of those that were given, the current one first
    data_keys: list[DataKeyReport]  # the current one first
    lost_values: int  # sealed under data keys that are not there

    @property
    def missing_master_keys(self) -> list[str]:
        """Without these, some sealed values cannot be opened."""
        return sorted({key.master_key_id for key in self.data_keys if key.sealed_values and not key.can_be_opened})

    @property
    def needed_master_keys(self) -> list[str]:
        """Older ones that were given and have to stay until re-encryption is through."""
        used = {key.master_key_id for key in self.data_keys}
        return [key_id for key_id in self.master_keys[1:] if key_id in used]

    @property
    def removable_master_keys(self) -> list[str]:
        """Older ones that were given and that nothing needs any more."""
        return [key_id for key_id in self.master_keys[1:] if key_id not in self.needed_master_keys]

    @property
    def values_to_reseal(self) -> int:
        return sum(key.sealed_values for key in self.data_keys if not key.is_current)


class Unopened(NamedTuple):
    """A sealed value that cannot be opened."""

    place: Place
    reason: str


async def report(database: Database, master_keys: Sequence[MasterKey]) -> Report:
    """Counts everything, so it is for people and not for every second. Raises MeshError."""
    given = [key.id for key in master_keys]
    [there] = await database.read(SQL.is_there)
    if not there["is_there"]:
        return Report(given, [], 0)
    vault = Vault(master_keys)
    counts: Counter[uuid.UUID] = Counter()
    for row in await database.read(SQL.usage):
        counts[row["data_key_id"]] += row["sealed_values"]
    data_keys = [
        DataKeyReport(
            row["data_key_id"], row["master_key_id"], row["created_at"], row["is_current"], vault.can_unwrap(row),
            counts.pop(row["data_key_id"], 0),
        )
        for row in await database.read(SQL.data_keys)
    ]  # fmt: skip
    return Report(given, data_keys, counts.total())


async def verify(database: Database, vault: Vault) -> tuple[int, list[Unopened]]:
    """Opens every sealed value: how many there are, and those that cannot be opened. Raises MeshError."""
    found, unopened = 0, []
    for column in SEALED:
        after = NOWHERE
        while rows := await database.read(SQL.page, column.purpose, *after, VERIFIED_AT_ONCE):
            values = [(Place(row["tenant_id"], row["purpose"], row["row_id"]), row["sealed"]) for row in rows]
            opened = await vault.open_many(database, values)
            unopened += [
                Unopened(place, str(why))
                for (place, _), why in zip(values, opened, strict=True)
                if isinstance(why, EnvelopeError)
            ]
            found += len(rows)
            after = (rows[-1]["tenant_id"], rows[-1]["row_id"])
    return found, unopened


async def forget(database: Database, master_key_id: str) -> int:
    """Gives up every data key under a master key that is lost. Answers with how many. Raises MeshError."""
    return await database.run(lambda tx: tx.execute(SQL.forget, master_key_id))


def _master_keys_of(rows: Iterable[Record]) -> list[str]:
    return sorted({row["master_key_id"] for row in rows})


def _named_by(sealed: bytes) -> uuid.UUID | None:
    try:
        return envelope.data_key_of(sealed)
    except EnvelopeError:
        return None


def _open(data_keys: dict[uuid.UUID, DataKey | EnvelopeError], place: Place, sealed: bytes) -> bytes | EnvelopeError:
    try:
        data_key = data_keys[envelope.data_key_of(sealed)]
        return data_key.open(place, sealed) if isinstance(data_key, DataKey) else data_key
    except EnvelopeError as error:
        return error


def _answer(place: Place, why: EnvelopeError) -> MeshError:
    """What a caller is told of a secret that cannot be opened. The reason is for the operator."""
    telemetry.SECRETS_NOT_OPENED.inc()
    error_id = str(uuid.uuid4())
    log.error(
        "a secret cannot be opened", reason=str(why), error_id=error_id,
        purpose=place.purpose, tenant_id=str(place.tenant_id), row_id=str(place.row_id),
    )  # fmt: skip
    if isinstance(why, NoKey):
        return unavailable(
            "this server cannot open its secrets for the moment; its operator finds out why in its health"
        )
    return MeshError(
        Kind.INTERNAL, "a stored secret cannot be opened; quote the error id when asking for help", error_id=error_id
    )
