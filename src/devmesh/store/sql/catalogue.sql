-- name: look_from_nowhere
-- Empties the search path for the transaction, so that names are written with their schema whatever the session's path
-- is. No parameters.
select set_config('search_path', '', true);

-- name: pieces
-- Every piece of the schema mcp as it is now: what kind it is, its full name, the table it hangs on, and the facts that make
-- it what it is. Partitions are left out, for they come and go, and so is what hangs on them. So are the constraints that
-- PostgreSQL 18 makes of "not null": the column tells it on every version. No parameters.
with relations as materialized (
    select c.oid, c.relkind, c.relpersistence, format('mcp.%I', c.relname) as name
    from pg_class c
    where c.relnamespace = to_regnamespace('mcp') and not c.relispartition and c.relkind in ('r', 'p', 'v', 'm', 'S')
), tables as materialized (
    select * from relations where relkind in ('r', 'p')
)
select kind, name, owner, jsonb_strip_nulls(facts) as facts from (
select 'table' as kind, t.name, null as owner, 0 as place,
       jsonb_build_object('logged', t.relpersistence = 'p',
                          'partition key', case when t.relkind = 'p' then pg_get_partkeydef(t.oid) end) as facts
from tables t
union all
select 'column', format('%s.%I', t.name, a.attname), t.name, a.attnum,
       jsonb_build_object('type', format_type(a.atttypid, a.atttypmod), 'not null', a.attnotnull,
                          'collation', case when a.attcollation <> y.typcollation
                                            then format('%I.%I', cn.nspname, co.collname) end,
                          'default', case when a.attgenerated = '' then pg_get_expr(d.adbin, d.adrelid) end,
                          'generated', case when a.attgenerated <> '' then pg_get_expr(d.adbin, d.adrelid) end,
                          'identity', case a.attidentity when 'a' then 'always' when 'd' then 'by default' end)
from tables t
join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
join pg_type y on y.oid = a.atttypid
left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
left join pg_collation co on co.oid = a.attcollation
left join pg_namespace cn on cn.oid = co.collnamespace
union all
select 'constraint', format('%s.%I', t.name, c.conname), t.name, 0,
       jsonb_build_object('definition', replace(pg_get_constraintdef(c.oid), ' NOT VALID', ''), 'valid', c.convalidated)
from tables t
join pg_constraint c on c.conrelid = t.oid and c.contype in ('c', 'f', 'p', 'u', 'x') and c.conparentid = 0
union all
select 'index', format('mcp.%I', n.relname), t.name, 0,
       jsonb_build_object('definition', replace(pg_get_indexdef(i.indexrelid), ' ON ONLY ', ' ON '), 'valid', i.indisvalid)
from tables t
join pg_index i on i.indrelid = t.oid
join pg_class n on n.oid = i.indexrelid
where not exists (select from pg_constraint c where c.conindid = i.indexrelid and c.contype in ('p', 'u', 'x'))
union all
select 'trigger', format('%s.%I', t.name, g.tgname), t.name, 0,
       jsonb_build_object('definition', pg_get_triggerdef(g.oid), 'enabled', g.tgenabled <> 'D')
from tables t
join pg_trigger g on g.tgrelid = t.oid and not g.tgisinternal and g.tgparentid = 0
union all
select 'view', r.name, null, 0,
       jsonb_build_object('materialized', r.relkind = 'm', 'definition', pg_get_viewdef(r.oid))
from relations r where r.relkind in ('v', 'm')
union all
select 'sequence', r.name, null, 0,
       jsonb_build_object('type', format_type(s.seqtypid, null), 'increment', s.seqincrement::text)
from relations r
join pg_sequence s on s.seqrelid = r.oid
where not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = r.oid and d.deptype = 'i')
union all
select 'function', format('mcp.%I(%s)', p.proname, oidvectortypes(p.proargtypes)), null, 0,
       jsonb_build_object('definition', pg_get_functiondef(p.oid), 'result', pg_get_function_result(p.oid),
                          'arguments', pg_get_function_arguments(p.oid))
from pg_proc p
where p.pronamespace = to_regnamespace('mcp') and p.prokind in ('f', 'p', 'w')
  and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
) pieces
order by kind, owner collate "C", place, name collate "C";
