-- What executions leave behind for those after them: a text, data, and perhaps a vector to find it by.
--
-- works with: 000001

create table mcp.execution_contexts (
    tenant_id         uuid not null references mcp.tenants,
    context_id        uuid not null,
    created_by_key_id uuid not null,
    created_at        timestamptz not null default now(),
    job_id            uuid,
    attempt           integer,
    type              text not null,
    model             text,     -- what made the vector: only vectors of one model are compared
    "text"            text not null,
    data              json not null,
    tags              text[] not null,
    vector            real[],
    -- Its words, and its tenant as one of them: so that a search reads its own tenant's alone.
    words             tsvector not null generated always as
                      (to_tsvector('english'::regconfig, "text") || array_to_tsvector(array[tenant_id::text])) stored,
    primary key (tenant_id, context_id),
    check ((model is null) = (vector is null))
);
create index execution_contexts_by_words on mcp.execution_contexts using gin (words);
create index execution_contexts_by_job on mcp.execution_contexts (job_id) where job_id is not null;

-- How alike two vectors are, between -1 and 1. What it needs is looked for when it is called, so that a database without the
-- extension pgvector can do everything else.
create function mcp.similarity(a real[], b real[]) returns double precision language plpgsql stable as $$
begin
    return 1 - (a::vector <=> b::vector);
end $$;

-- The extension, where it is there and we may have it.
do $$
begin
    create extension if not exists vector;
exception when others then
    raise notice 'no search by vectors: %', sqlerrm;
end $$;
