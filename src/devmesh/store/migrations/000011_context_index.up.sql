-- Which vectors of contexts an index outside of PostgreSQL has (docs/decisions/0010), and what it is to forget.
--
-- works with: 000001

alter table mcp.execution_contexts
    add column sent_at    timestamptz,  -- the index may have it since
    add column indexed_at timestamptz;  -- the index has it
create index execution_contexts_unindexed on mcp.execution_contexts (context_id, tenant_id)
    where vector is not null and indexed_at is null;

-- Contexts that are gone while the index may still have their vectors.
create table mcp.context_points_gone (
    tenant_id  uuid not null,
    context_id uuid not null,
    dimensions integer not null,
    gone_at    timestamptz not null default now(),
    primary key (tenant_id, context_id)
);
create index context_points_gone_by_time on mcp.context_points_gone (gone_at);
