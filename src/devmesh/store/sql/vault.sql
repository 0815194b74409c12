-- name: is_there
-- Whether the tables of secrets were made yet.
select to_regclass('mcp.sealed_values') is not null as is_there;

-- name: lock
-- Lets one transaction at a time make a data key. $1 the lock's number.
select pg_advisory_xact_lock($1);

-- name: current
-- The data key to seal under, kept from being deleted until the end of the transaction. Nothing, when there is none yet or it
-- went away meanwhile.
select k.data_key_id, k.generation, k.master_key_id, k.wrapped_key
from mcp.data_keys k order by k.generation desc limit 1 for key share;

-- name: newest
-- The data key that is current, without a lock.
select k.data_key_id, k.generation from mcp.data_keys k order by k.generation desc limit 1;

-- name: insert
-- Adds a data key, which is current from now on. $1 its id, $2 its master key's id, $3 the wrapped key.
insert into mcp.data_keys (data_key_id, master_key_id, wrapped_key) values ($1, $2, $3)
returning data_key_id, generation, master_key_id, wrapped_key;

-- name: wrapped
-- Data keys as they are stored. $1 their ids.
select k.data_key_id, k.master_key_id, k.wrapped_key from mcp.data_keys k where k.data_key_id = any($1::uuid[]);

-- name: data_keys
-- Every data key, the current one first, and whether a value is sealed under it: a look at the index for each, which EXISTS
-- would not be, for it may read the whole index once.
select k.data_key_id, k.generation, k.master_key_id, k.wrapped_key, k.created_at, k.unused_since,
       extract(epoch from now() - k.created_at)::double precision as age_s,
       k.generation = max(k.generation) over () as is_current,
       (select true from mcp.sealed_values v where v.data_key_id = k.data_key_id limit 1) is not null as is_used
from mcp.data_keys k order by k.generation desc;

-- name: usage
-- How many values are sealed under which data key, also under one that is not there.
select v.data_key_id, v.purpose, count(*) as sealed_values from mcp.sealed_values v group by v.data_key_id, v.purpose;

-- name: count_left
-- How many values are sealed under another data key than the current one.
select count(*) as left from mcp.sealed_values v
where v.data_key_id <> (select k.data_key_id from mcp.data_keys k order by k.generation desc limit 1);

-- name: page
-- Sealed values of one purpose in the order of their places. $1 purpose, $2 and $3 tenant and row after which, $4 how many.
select v.purpose, v.tenant_id, v.row_id, v.sealed from mcp.sealed_values v
where v.purpose = $1 and (v.tenant_id, v.row_id) > ($2, $3) order by v.tenant_id, v.row_id limit $4;

-- name: lock_wrapped_otherwise
-- Data keys under other master keys than the current one. $1 the current master key's id.
select k.data_key_id, k.master_key_id, k.wrapped_key from mcp.data_keys k where k.master_key_id <> $1
order by k.generation for no key update skip locked;

-- name: rewrap
-- Replaces the wrapping of data keys. $1 ids, $2 their master key's id, $3 wrapped keys.
update mcp.data_keys k set master_key_id = $2, wrapped_key = r.wrapped_key
from unnest($1::uuid[], $3::bytea[]) as r (data_key_id, wrapped_key) where k.data_key_id = r.data_key_id;

-- name: note_unused
-- Remembers since when older data keys have been unused, and forgets it of those that are used.
update mcp.data_keys k set unused_since = case when u.is_unused then now() end
from (select d.data_key_id, d.unused_since,
             d.generation < (select max(m.generation) from mcp.data_keys m)
             and (select true from mcp.sealed_values v where v.data_key_id = d.data_key_id limit 1) is null as is_unused
      from mcp.data_keys d) u
where k.data_key_id = u.data_key_id and u.is_unused <> (u.unused_since is not null);

-- name: lock_disposable
-- Data keys that nobody is sealing under: older ones that have been unused for a while, and lost ones. $1 seconds, $2 lost ones.
select k.data_key_id from mcp.data_keys k
where (k.unused_since < now() - make_interval(secs => $1) and k.generation < (select max(m.generation) from mcp.data_keys m))
   or k.data_key_id = any($2::uuid[])
for update skip locked;

-- name: delete_unused
-- Deletes data keys that are locked, unless one was used in the last moment. $1 their ids.
delete from mcp.data_keys k
where k.data_key_id = any($1::uuid[]) and not exists (select from mcp.sealed_values v where v.data_key_id = k.data_key_id);

-- name: lock_token_issuers_secret
-- Values under one data key that nobody else is changing. $1 the data key, $2 and $3 tenant and row after which, $4 how many.
select i.tenant_id, i.issuer_id as row_id, i.secret as sealed from mcp.token_issuers i
where mcp.data_key_of(i.secret) = $1 and i.secret is not null and (i.tenant_id, i.issuer_id) > ($2, $3)
order by i.tenant_id, i.issuer_id limit $4 for no key update skip locked;

-- name: reseal_token_issuers_secret
-- Replaces values that are locked. $1 tenants, $2 rows, $3 sealed values.
update mcp.token_issuers i set secret = r.sealed
from unnest($1::uuid[], $2::uuid[], $3::bytea[]) as r (tenant_id, issuer_id, sealed)
where i.tenant_id = r.tenant_id and i.issuer_id = r.issuer_id;

-- name: forget
-- Gives up the data keys under a master key that is lost, and with them what they have sealed. $1 the master key's id.
delete from mcp.data_keys k where k.master_key_id = $1;
