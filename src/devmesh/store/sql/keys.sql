-- name: look_up
-- The keys that share the prefixes of presented ones, and whether the address they come from is locked out.
-- $1 prefixes, $2 addresses.
select q.ordinal, k.tenant_id, k.key_id, k.owner_id, k.key_hash, k.scopes, k.agent_id, k.revoked_at is not null as is_revoked,
       coalesce(k.expires_at <= now(), false) as is_expired, t.status = 'suspended' as is_suspended,
       coalesce(k.last_used_at < now() - interval '1 minute', true) as is_use_unnoted,
       extract(epoch from l.locked_until - now())::double precision as locked_s
from unnest($1::text[], $2::text[]) with ordinality as q (prefix, address, ordinal)
left join mcp.api_keys k on k.prefix = q.prefix
left join mcp.tenants t on t.tenant_id = k.tenant_id
left join mcp.auth_lockouts l on l.address = q.address and l.locked_until > now();

-- name: note_use
-- Remembers when keys were last used. $1 their tenants, $2 keys.
update mcp.api_keys k set last_used_at = now()
where (k.tenant_id, k.key_id) in (select u.tenant_id, u.key_id from mcp.api_keys u where u.key_id = any($2::uuid[])
    and u.tenant_id = any($1::uuid[]) order by u.key_id for update skip locked);

-- name: note_failures
-- Remembers refused credentials, by address. $1 addresses.
insert into mcp.auth_failures (address) select unnest($1::text[]);

-- name: lock_out
-- Locks out the addresses with too many failures within a minute. $1 addresses, $2 how many are too many, $3 seconds.
insert into mcp.auth_lockouts (address, locked_until)
select f.address, now() + make_interval(secs => $3) from mcp.auth_failures f
where f.address = any($1::text[]) and f.failed_at > now() - interval '1 minute'
group by f.address having count(*) >= $2
on conflict (address) do update set locked_until = excluded.locked_until;

-- name: forget_failures
-- Removes failures and lock-outs that no longer count.
with failures as (delete from mcp.auth_failures where failed_at < now() - interval '2 minutes')
delete from mcp.auth_lockouts where locked_until < now();

-- name: invalid
-- Which of these keys may no longer be used. $1 tenants, $2 keys.
select q.key_id from unnest($1::uuid[], $2::uuid[]) as q (tenant_id, key_id)
left join mcp.api_keys k on k.tenant_id = q.tenant_id and k.key_id = q.key_id
left join mcp.tenants t on t.tenant_id = q.tenant_id
where k.key_id is null or k.revoked_at is not null or k.expires_at <= now() or t.status = 'suspended';

-- name: insert
-- Creates a key. $1 tenant, $2 key, $3 owner, $4 name, $5 prefix, $6 hash, $7 kind, $8 scopes, $9 agent, $10 expiry,
-- $11 the key it replaces, $12 its rate.
insert into mcp.api_keys (tenant_id, key_id, owner_id, name, prefix, key_hash, kind, scopes, agent_id, expires_at,
                          replaces_key_id, rate_per_s)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
returning key_id as id, name, prefix, kind, scopes, agent_id, expires_at, created_at, last_used_at, revoked_at, replaces_key_id,
          rate_per_s;

-- name: get
-- A key with what a successor takes over. $1 tenant, $2 key.
select k.key_id as id, k.name, k.prefix, k.kind, k.scopes, k.agent_id, k.expires_at, k.created_at, k.last_used_at, k.revoked_at,
       k.replaces_key_id, k.rate_per_s, k.owner_id
from mcp.api_keys k where k.tenant_id = $1 and k.key_id = $2;

-- name: page
-- A page of keys, newest first. $1 tenant, $2 ids below this one, $3 how many.
select k.key_id as id, k.name, k.prefix, k.kind, k.scopes, k.agent_id, k.expires_at, k.created_at, k.last_used_at, k.revoked_at,
       k.replaces_key_id, k.rate_per_s
from mcp.api_keys k where k.tenant_id = $1 and ($2::uuid is null or k.key_id < $2) order by k.key_id desc limit $3;

-- name: revoke
-- Revokes a key, once. $1 tenant, $2 key.
update mcp.api_keys k set revoked_at = coalesce(k.revoked_at, now()) where k.tenant_id = $1 and k.key_id = $2
returning k.key_id as id, k.name, k.prefix, k.kind, k.scopes, k.agent_id, k.expires_at, k.created_at, k.last_used_at,
          k.revoked_at, k.replaces_key_id, k.rate_per_s;

-- name: limit
-- Gives a key a rate of its own, or takes it. $1 tenant, $2 key, $3 rate.
update mcp.api_keys k set rate_per_s = $3 where k.tenant_id = $1 and k.key_id = $2
returning k.key_id as id, k.name, k.prefix, k.kind, k.scopes, k.agent_id, k.expires_at, k.created_at, k.last_used_at,
          k.revoked_at, k.replaces_key_id, k.rate_per_s;
