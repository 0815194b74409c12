-- Rates of tenants and keys, the token buckets that all nodes draw from, and the connections that nodes hold.
-- works with: 000001

-- Requests a second. null: the setting.
alter table mcp.tenants add column rate_per_s double precision check (rate_per_s between 0.01 and 1000000);
alter table mcp.api_keys add column rate_per_s double precision check (rate_per_s between 0.01 and 1000000);

-- Not logged: after a crash every bucket is full again, which errs on the side of the callers.
create unlogged table mcp.rate_buckets (
    tenant_id uuid not null,
    bucket_id uuid not null,         -- a key, or the tenant itself
    full_at   timestamptz not null,  -- when it is full again unless more is drawn; a bucket without a row is full
    primary key (tenant_id, bucket_id)
) with (fillfactor = 50);

-- Not logged: nodes count afresh every few seconds.
create unlogged table mcp.node_connections (
    tenant_id   uuid not null,
    node_id     uuid not null,
    connections integer not null check (connections > 0),
    seen_at     timestamptz not null default now(),
    primary key (tenant_id, node_id)
) with (fillfactor = 50);
