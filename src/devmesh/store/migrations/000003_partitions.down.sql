drop function mcp.count_rows(text, bigint), mcp.drop_detached(text), mcp.detach_partition(text, text), mcp.end_drain(text, oid),
    mcp.copy_drain(text, integer, integer), mcp.begin_drain(text, integer), mcp.copy_to_drain(), mcp.outside_of_months(text[]),
    mcp.make_partition(text, date), mcp.partition_column(text);
drop table mcp.api_logs;

create or replace function mcp.append_events(p_tenant_id uuid, p_types text[], p_topics text[], p_data text[])
returns bigint language plpgsql as $$
declare
    head bigint;
begin
    perform pg_advisory_xact_lock(hashtextextended(p_tenant_id::text, 7));
    select sequence into head from mcp.events where tenant_id = p_tenant_id order by sequence desc limit 1;
    if head is null then
        select stream_floor into head from mcp.tenants where tenant_id = p_tenant_id;
    end if;
    insert into mcp.events (tenant_id, sequence, at, type, topics, data)
    select p_tenant_id, head + e.ordinal, clock_timestamp(), e.type, string_to_array(e.topics, ','), e.data::json
    from unnest(p_types, p_topics, p_data) with ordinality as e (type, topics, data, ordinal);
    return head + cardinality(p_types);
end $$;
