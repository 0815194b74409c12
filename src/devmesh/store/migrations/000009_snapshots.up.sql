-- Snapshots of what is under way in a tenant: its jobs, queues, workers and schedules, so that they can be put back.
--
-- works with: 000001

create table mcp.state_snapshots (
    tenant_id         uuid not null references mcp.tenants,
    snapshot_id       uuid not null,  -- rises with the time at which it was taken
    base_id           uuid,
    created_by_key_id uuid,           -- null: by its policy
    taken_at          timestamptz not null default clock_timestamp(),
    kind              text not null check (kind in ('FULL', 'INCREMENTAL', 'AUTO')),
    reason            text not null default '',
    counts            json not null default '{}',
    primary key (tenant_id, snapshot_id),
    check ((kind = 'INCREMENTAL') = (base_id is not null))
);
create index state_snapshots_by_base on mcp.state_snapshots (base_id) where base_id is not null;

-- The rows of a snapshot, each as its table had it. An incremental one has those that differ from its base's, and for those that are gone
-- a row that is null. `decision` is there while it is being put back.
create table mcp.state_snapshot_rows (
    tenant_id   uuid not null,
    snapshot_id uuid not null,
    noun        text not null,
    id          text not null,
    "row"       json,
    decision    text,
    primary key (tenant_id, snapshot_id, noun, id)
);

-- Tenants of which snapshots are taken at an interval.
create table mcp.snapshot_policies (
    tenant_id  uuid primary key references mcp.tenants,
    interval_s double precision not null,
    keep       integer not null,
    next_at    timestamptz not null
);
create index snapshot_policies_due on mcp.snapshot_policies (next_at);
