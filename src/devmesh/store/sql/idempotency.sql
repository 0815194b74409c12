-- name: claim
-- Claims keys for this transaction, in key order so that two batches cannot wait for each other. A key that another
-- transaction is claiming is waited for. Returns the claimed ones. $1 tenant, $2 keys in order, $3 operations, $4 hashes.
insert into mcp.idempotency_keys (tenant_id, idempotency_key, operation, params_hash)
select $1, k.key, k.operation, k.hash from unnest($2::text[], $3::text[], $4::bytea[]) as k (key, operation, hash)
on conflict do nothing returning idempotency_key;

-- name: answers
-- What is stored under keys. $1 tenant, $2 keys.
select k.idempotency_key, k.params_hash, k.answer from mcp.idempotency_keys k
where k.tenant_id = $1 and k.idempotency_key = any($2::text[]);

-- name: store
-- Stores the answers of claimed keys. $1 tenant, $2 keys, $3 answers.
update mcp.idempotency_keys k set answer = (($3::text[])[array_position($2::text[], k.idempotency_key)])::json
where k.tenant_id = $1 and k.idempotency_key = any($2::text[]);

-- name: release
-- Gives up claimed keys whose calls failed: nothing was changed, so they may be tried again. $1 tenant, $2 keys.
delete from mcp.idempotency_keys k where k.tenant_id = $1 and k.idempotency_key = any($2::text[]);

-- name: forget
-- Removes keys, of any tenant, older than their time to live. $1 age in seconds, $2 how many at most.
delete from mcp.idempotency_keys k where k.ctid = any(array(
    select o.ctid from mcp.idempotency_keys o
    where o.created_at < now() - make_interval(secs => $1) order by o.created_at limit $2 for update skip locked));
