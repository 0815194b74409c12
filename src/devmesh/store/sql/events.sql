-- name: append
-- Appends events to a tenant's stream and returns the sequence of the last. It takes the stream's lock, which everybody waits for who
-- writes for the tenant: it goes in one message with the commit. $1 tenant; each of one text, parted by a character that is in none of
-- them: $2 types, $3 topics joined by commas, $4 data as JSON.
select mcp.append_events($1::uuid, string_to_array($2, e'\x1e'), string_to_array($3, e'\x1e'), string_to_array($4, e'\x1e'));

-- name: after
-- The events of many streams after their readers' positions, in order. $1 tenants, $2 sequences, $3 how many of each at most, $4 up to
-- how many bytes of each, as they are stored, and one event more. `found` is how many there were of $3.
select e.tenant_id, e.sequence, e.at, e.type, e.topics, e.data, e.found
from unnest($1::uuid[], $2::bigint[]) as reader (tenant_id, sequence)
cross join lateral (
    select f.*, count(*) over () as found,
           sum(pg_column_size(f.data)) over (order by f.sequence rows between unbounded preceding and 1 preceding) as bytes_before
    from (select * from mcp.events n where n.tenant_id = reader.tenant_id and n.sequence > reader.sequence
          order by n.sequence limit $3) f) e
where coalesce(e.bytes_before, 0) < $4;

-- name: page_of_topics
-- A tenant's events between two sequences that have one of these topics, in order. $1 tenant, $2 after this sequence, $3 up to
-- this one, $4 topics or null for all, $5 how many at most, $6 up to how many bytes, as above; so is `found`.
select e.tenant_id, e.sequence, e.at, e.type, e.topics, e.data, e.found from (
    select f.*, count(*) over () as found,
           sum(pg_column_size(f.data)) over (order by f.sequence rows between unbounded preceding and 1 preceding) as bytes_before
    from (select * from mcp.events n
          where n.tenant_id = $1 and n.sequence > $2 and n.sequence <= $3 and ($4::text[] is null or n.topics && $4)
          order by n.sequence limit $5) f) e
where coalesce(e.bytes_before, 0) < $6 order by e.sequence;

-- name: position
-- Where a tenant's stream begins and ends, and its epoch. What retention has removed may lie between events that are left, if the
-- clock was set back: the stream then begins after it. $1 tenant.
select t.stream_epoch as epoch,
       greatest((select e.sequence from mcp.events e where e.tenant_id = $1 order by e.sequence desc limit 1),
                t.stream_floor) as last_sequence,
       greatest((select e.sequence - 1 from mcp.events e where e.tenant_id = $1 order by e.sequence limit 1),
                t.stream_floor) as floor_sequence
from mcp.tenants t where t.tenant_id = $1;

-- name: floors
-- How far retention has removed the streams of tenants. Asked after events were read, it tells whether some that should have been
-- among them were gone. $1 tenants.
select asked.tenant_id, t.stream_floor as floor_sequence from unnest($1::uuid[]) as asked (tenant_id)
cross join lateral (select o.stream_floor from mcp.tenants o where o.tenant_id = asked.tenant_id limit 1) t;

-- name: of_topic
-- The events of one thing, in order. $1 tenant, $2 topic, $3 after this sequence, $4 how many.
select e.sequence, e.at, e.type, e.topics, e.data from mcp.events e
where e.tenant_id = $1 and e.topics[1] = $2 and e.sequence > $3 order by e.sequence limit $4;

-- name: listening
-- Nothing, from the connection that listens: an answer shows that it is still there. No parameters.
select 1;

-- name: ring
-- Tells every listening process that these tenants have news. Never inside a writing transaction. $1 tenants, by commas.
select pg_notify('devmesh_bell', $1);
