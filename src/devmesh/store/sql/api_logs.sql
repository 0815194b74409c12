-- name: insert_many
-- Appends answered calls of any tenants; entries that are there already, because an earlier try was committed after all, stay as
-- they are. The columns in order, as lists.
insert into mcp.api_logs (tenant_id, api_log_id, at, operation, wire, outcome, reason, duration_ms, key_id, agent_id, address,
                          request_id)
select * from unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::text[],
                     $8::double precision[], $9::uuid[], $10::uuid[], $11::text[], $12::text[])
on conflict do nothing;

-- name: page
-- A page of the log of answered calls, newest first. $1 tenant, $2 ids below this one or null, $3 ids from this one on or null,
-- $4 how many are looked at; of those, with $5 operation, $6 outcome and $7 key, from $8 on, before $9, each null for any, $10 how
-- many.
select l.id, l.at, l.operation, l.wire, l.outcome, l.reason, l.duration_ms, l.key_id, l.agent_id, l.address, l.request_id
from (select a.api_log_id as id, a.at, a.operation, a.wire, a.outcome, a.reason, a.duration_ms, a.key_id, a.agent_id, a.address,
             a.request_id
      from mcp.api_logs a
      where a.tenant_id = $1 and a.api_log_id < coalesce($2::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
        and a.api_log_id >= coalesce($3::uuid, '00000000-0000-0000-0000-000000000000')
      order by a.api_log_id desc limit $4) l
where ($5::text is null or l.operation = $5) and ($6::text is null or l.outcome = $6) and ($7::uuid is null or l.key_id = $7)
  and ($8::timestamptz is null or l.at >= $8) and ($9::timestamptz is null or l.at < $9)
order by l.id desc limit $10;

-- name: reached
-- The last entry that a page has looked at, if there may be more after it. $1 tenant, $2 ids below this one or null, $3 ids from
-- this one on or null, $4 how many were looked at, less one.
select a.api_log_id from mcp.api_logs a
where a.tenant_id = $1 and a.api_log_id < coalesce($2::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
  and a.api_log_id >= coalesce($3::uuid, '00000000-0000-0000-0000-000000000000')
order by a.api_log_id desc offset $4 limit 1;
