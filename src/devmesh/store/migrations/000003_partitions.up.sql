-- The log of answered calls, and partitions that are made, drained and dropped while everybody works.
-- works with: 000001

create table mcp.api_logs (
    tenant_id   uuid not null,
    api_log_id  uuid not null,
    at          timestamptz not null,
    operation   text not null,
    wire        text not null,
    outcome     text not null,  -- ok, or the kind of the error
    reason      text,           -- a finer name within the kind
    duration_ms double precision not null,
    key_id      uuid not null,
    agent_id    uuid,
    address     text not null,
    request_id  text,           -- of an HTTP request
    primary key (tenant_id, api_log_id, at)
) partition by range (at);
select mcp.ensure_partitions('api_logs', 12);

-- As before, but numbering goes on after whatever retention has removed, even if what is left came before it: a clock that was
-- set back may have put later events into an older month.
create or replace function mcp.append_events(p_tenant_id uuid, p_types text[], p_topics text[], p_data text[])
returns bigint language plpgsql as $$
declare
    head bigint;
begin
    perform pg_advisory_xact_lock(hashtextextended(p_tenant_id::text, 7));
    select greatest((select sequence from mcp.events where tenant_id = p_tenant_id order by sequence desc limit 1),
                    (select stream_floor from mcp.tenants where tenant_id = p_tenant_id)) into head;
    insert into mcp.events (tenant_id, sequence, at, type, topics, data)
    select p_tenant_id, head + e.ordinal, clock_timestamp(), e.type, string_to_array(e.topics, ','), e.data::json
    from unnest(p_types, p_topics, p_data) with ordinality as e (type, topics, data, ordinal);
    return head + cardinality(p_types);
end $$;

-- What changes the partitions of a busy table waits for each of its locks for 50 ms at the most, because everybody who comes
-- later queues up behind it. When that does not suffice it undoes what it did, says 'busy', and its caller tries again. While
-- it holds the locks it does nothing that depends on how much the table holds.

-- The column that a table is partitioned by.
create function mcp.partition_column(parent text) returns text language sql stable as $$
    select a.attname from pg_partitioned_table p
    join pg_attribute a on a.attrelid = p.partrelid and a.attnum = p.partattrs[0]
    where p.partrelid = format('mcp.%I', parent)::regclass
$$;

-- Makes the partition of a month, or the default one where `month` is null. A table of that name that was detached is attached
-- again. Returns made, there, busy, 'in default' (rows of the month have to be drained first) or unfit (the table that has the
-- name holds something else).
create function mcp.make_partition(parent text, month date) returns text
language plpgsql set lock_timeout = '50ms' as $$
declare
    name text := parent || coalesce(to_char(month, '_YYYY_MM'), '_default');
    lower timestamptz := month::timestamp at time zone 'UTC';
    upper timestamptz := (month + interval '1 month') at time zone 'UTC';
    guilty text;
begin
    if exists (select from pg_inherits where inhparent = format('mcp.%I', parent)::regclass
                                         and inhrelid = to_regclass(format('mcp.%I', name))) then
        return 'there';
    end if;
    if to_regclass(format('mcp.%I', name)) is null then
        execute format('create table mcp.%I (like mcp.%I including all)', name, parent);
    end if;
    if month is null then
        execute format('alter table mcp.%I attach partition mcp.%I default', parent, name);
    else
        -- The constraint is checked before anybody waits for us, and spares PostgreSQL from checking the rows when they do.
        execute format('alter table mcp.%1$I add constraint within_month check (%2$I >= %3$L and %2$I < %4$L)', name,
                       mcp.partition_column(parent), lower, upper);
        execute format('alter table mcp.%I attach partition mcp.%I for values from (%L) to (%L)', parent, name, lower, upper);
        execute format('alter table mcp.%I drop constraint within_month', name);
    end if;
    return 'made';
exception
    when lock_not_available then return 'busy';
    when datatype_mismatch or undefined_column or wrong_object_type then return 'unfit';
    when check_violation then
        get stacked diagnostics guilty = table_name;
        return case when month is not null and guilty = parent || '_default' then 'in default' else 'unfit' end;
end $$;

-- The condition that rows are in no month of these tables, in the form in which PostgreSQL recognises it: a default partition that has
-- it as a constraint is attached without being read.
create function mcp.outside_of_months(parents text[]) returns text language sql stable as $$
    select string_agg(format('(%1$I < %2$L or %1$I >= %3$L)', mcp.partition_column(parents[1]),
                             substring(b.bounds from $re$FROM \('([^']+)'\)$re$), substring(b.bounds from $re$TO \('([^']+)'\)$re$)),
                      ' and ')
    from unnest(parents) as parent
    join pg_inherits i on i.inhparent = format('mcp.%I', parent)::regclass
    join pg_class c on c.oid = i.inhrelid
    cross join lateral (select pg_get_expr(c.relpartbound, c.oid) as bounds) b
    where b.bounds ~ $re$FROM \('.*TO \('$re$
$$;

-- Draining gives the rows of a default partition partitions of their own. They are copied to a stand-in that nobody reads,
-- `<parent>_drain`, in small pieces; meanwhile a trigger copies what still comes. Then the stand-in's partitions take the default
-- partition's place at once: no reader sees a row twice or not at all, and no lock lasts longer for there being more rows.
create function mcp.copy_to_drain() returns trigger language plpgsql as $$
begin
    execute format('insert into mcp.%I select ($1).* on conflict do nothing', tg_argv[0]) using new;
    return null;
end $$;

-- Sets up the stand-in, for the months with the most rows. Outcome: begun, with the stand-in and how many blocks there are to copy;
-- empty; again, when one that was left by a drain that was cut off had to be thrown away first; busy; unfit, when another table has
-- the name of one of the months.
create function mcp.begin_drain(parent text, months_max integer, out outcome text, out drain oid, out blocks integer)
language plpgsql set lock_timeout = '50ms' as $$
declare
    source text := parent || '_default';
    target text := parent || '_drain';
    month date;
    months date[];
    name text;
    part_key text := mcp.partition_column(parent);
begin
    if to_regclass(format('mcp.%I', target)) is not null then
        execute format('drop trigger if exists drain on mcp.%I', source);
        execute format('drop table mcp.%I', target);
        outcome := 'again';
        return;
    end if;
    execute format('select array(select date_trunc(''month'', %I at time zone ''UTC'')::date from mcp.%I
                    where %1$I >= ''0001-01-01 00:00:00Z'' and %1$I < ''9999-12-01 00:00:00Z''
                    group by 1 order by count(*) desc limit $1)', part_key, source) into months using months_max;
    if cardinality(months) = 0 then
        outcome := 'empty';
        return;
    end if;
    execute format('create table mcp.%I (like mcp.%I including all) partition by range (%I)', target, parent, part_key);
    foreach month in array months loop
        name := parent || to_char(month, '_YYYY_MM');
        execute format('create table mcp.%I (like mcp.%I including all)', name, parent);
        execute format('alter table mcp.%1$I add constraint within_month check (%2$I >= %3$L and %2$I < %4$L)', name, part_key,
                       month::timestamp at time zone 'UTC', (month + interval '1 month') at time zone 'UTC');
        execute format('alter table mcp.%I attach partition mcp.%I for values from (%L) to (%L)', target, name,
                       month::timestamp at time zone 'UTC', (month + interval '1 month') at time zone 'UTC');
    end loop;
    execute format('create table mcp.%I partition of mcp.%I default', target || '_default', target);
    execute format('alter table mcp.%I add constraint outside_of_months check (%s)', target || '_default',
                   mcp.outside_of_months(array[parent, target]));
    -- From here on nobody is writing to the default partition, and who writes to it later writes to the stand-in as well.
    execute format('create trigger drain after insert on mcp.%I for each row execute function mcp.copy_to_drain(%L)',
                   source, target);
    outcome := 'begun';
    drain := to_regclass(format('mcp.%I', target));
    blocks := pg_relation_size(format('mcp.%I', source)::regclass) / current_setting('block_size')::integer;
exception
    when lock_not_available then outcome := 'busy';
    when duplicate_table then outcome := 'unfit';
end $$;

-- Copies the rows of some blocks to the stand-in. Returns how many of them have a month there.
create function mcp.copy_drain(parent text, first_block integer, blocks integer) returns integer language plpgsql as $$
declare
    copied integer;
begin
    execute format('with copied as (insert into mcp.%I select * from mcp.%I where ctid >= $1 and ctid < $2 on conflict do nothing
                                    returning tableoid)
                    select count(*) from copied where tableoid <> %L::regclass',
                   parent || '_drain', parent || '_default', format('mcp.%I', parent || '_drain_default'))
    into copied using format('(%s,0)', first_block)::tid, format('(%s,0)', first_block + blocks)::tid;
    return copied;
end $$;

-- Puts the stand-in's partitions in the place of the default one, which is to be dropped. Returns done, busy or overtaken.
create function mcp.end_drain(parent text, drain oid) returns text
language plpgsql set lock_timeout = '50ms' as $$
declare
    part record;
begin
    if to_regclass(format('mcp.%I', parent || '_drain')) is distinct from drain then
        return 'overtaken';
    end if;
    execute format('alter table mcp.%I detach partition mcp.%I', parent, parent || '_default');
    execute format('alter table mcp.%I rename to %I', parent || '_default', parent || '_default_gone');
    for part in select * from (select c.relname as name, pg_get_expr(c.relpartbound, c.oid) as bounds from pg_inherits i
                               join pg_class c on c.oid = i.inhrelid where i.inhparent = drain) parts
                order by parts.bounds = 'DEFAULT' loop
        execute format('alter table mcp.%I detach partition mcp.%I', parent || '_drain', part.name);
        if part.bounds = 'DEFAULT' then
            execute format('alter table mcp.%I rename to %I', part.name, parent || '_default');
            part.name := parent || '_default';
        end if;
        execute format('alter table mcp.%I attach partition mcp.%I %s', parent, part.name, part.bounds);
        execute format('alter table mcp.%I drop constraint %I', part.name,
                       case part.bounds when 'DEFAULT' then 'outside_of_months' else 'within_month' end);
    end loop;
    execute format('drop table mcp.%I', parent || '_drain');
    return 'done';
exception
    when lock_not_available then return 'busy';
end $$;

-- Takes a partition out of its table, to be dropped. With events, tenants remember how far their streams have lost them, in the
-- same transaction: numbering never starts again below, and older cursors are known to be. Returns done or busy.
create function mcp.detach_partition(parent text, name text) returns text
language plpgsql set lock_timeout = '50ms' as $$
begin
    if parent = 'events' then
        execute format('lock table mcp.%I in share row exclusive mode', name);  -- nobody adds to it any more
        execute format('update mcp.tenants t set stream_floor = lost.sequence
                        from (select o.tenant_id, e.sequence from mcp.tenants o
                              cross join lateral (select p.sequence from mcp.%I p where p.tenant_id = o.tenant_id
                                                  order by p.sequence desc limit 1) e) lost
                        where t.tenant_id = lost.tenant_id and t.stream_floor < lost.sequence', name);
    end if;
    execute format('alter table mcp.%I detach partition mcp.%I', parent, name);
    execute format('alter table mcp.%I rename to %I', name, name || '_gone');
    return 'done';
exception
    when lock_not_available then return 'busy';
end $$;

-- Drops what was detached to be dropped, also by a keeper that was killed before it came to it. Returns the names.
create function mcp.drop_detached(parent text) returns setof text language plpgsql as $$
declare
    name text;
begin
    for name in select c.relname from pg_class c
                where c.relnamespace = 'mcp'::regnamespace and not c.relispartition
                  and c.relname ~ ('^' || parent || '_([0-9]{4}_[0-9]{2}|default)_gone$') loop
        execute format('drop table mcp.%I', name);
        return next name;
    end loop;
end $$;

-- How many rows a partition has, counted up to a limit.
create function mcp.count_rows(name text, rows_max bigint) returns bigint language plpgsql stable as $$
declare
    counted bigint;
begin
    execute format('select count(*) from (select from mcp.%I limit $1) found', name) into counted using rows_max;
    return counted;
end $$;
