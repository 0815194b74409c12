-- name: claim
-- Claims keys for this transaction, in key order so that two batches cannot wait for each other. A key that another
-- transaction is claiming is waited for. Touches as many rows as were claimed. $1 tenant, $2 keys in order, $3 operation, $4 hashes in
-- hexadecimal; spelled out.
insert into mcp.idempotency_keys (tenant_id, idempotency_key, operation, params_hash)
select $1::uuid, k.key, $3, decode(k.hash, 'hex')
from unnest(string_to_array($2, e'\x1e'), string_to_array($4, e'\x1e')) as k (key, hash)
on conflict do nothing;

-- name: answers
-- What is stored under keys; of those that this transaction has claimed there is no answer yet. $1 tenant, $2 keys.
select k.idempotency_key, k.params_hash, k.answer from mcp.idempotency_keys k
where k.tenant_id = $1 and k.idempotency_key = any($2::text[]);

-- name: store
-- Stores the answers of claimed keys. $1 tenant, $2 keys, $3 answers; spelled out.
update mcp.idempotency_keys k
set answer = ((string_to_array($3, e'\x1e'))[array_position(string_to_array($2, e'\x1e'), k.idempotency_key)])::json
where k.tenant_id = $1::uuid and k.idempotency_key = any(string_to_array($2, e'\x1e'));

-- name: release
-- Gives up claimed keys whose calls failed: nothing was changed, so they may be tried again. $1 tenant, $2 keys.
delete from mcp.idempotency_keys k where k.tenant_id = $1 and k.idempotency_key = any($2::text[]);

-- name: forget
-- Removes keys, of any tenant, older than their time to live. $1 age in seconds, $2 how many at most.
delete from mcp.idempotency_keys k where k.ctid = any(array(
    select o.ctid from mcp.idempotency_keys o
    where o.created_at < now() - make_interval(secs => $1) order by o.created_at limit $2 for update skip locked));
