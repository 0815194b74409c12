-- name: report
-- Tells how many connections a node holds of each tenant, and answers with how many the other nodes hold that were heard of within
-- a while. $1 node, $2 tenants, $3 their connections, $4 seconds.
with gone as (
    delete from mcp.node_connections n
    where n.node_id = $1 and n.tenant_id <> all ($2::uuid[])
       or n.node_id <> $1 and n.seen_at < now() - make_interval(secs => 10 * $4)
), held as (
    insert into mcp.node_connections (tenant_id, node_id, connections)
    select h.tenant_id, $1, h.connections from unnest($2::uuid[], $3::integer[]) as h (tenant_id, connections)
    order by h.tenant_id
    on conflict (tenant_id, node_id) do update set connections = excluded.connections, seen_at = now()
)
select n.tenant_id, sum(n.connections)::integer as connections from mcp.node_connections n
where n.node_id <> $1 and n.seen_at > now() - make_interval(secs => $4) group by n.tenant_id;
