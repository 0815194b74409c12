-- name: identity
-- What this server is, who we are on it, and whether it takes writes. No parameters.
select current_setting('server_version_num')::integer as version_number, current_setting('server_version') as version,
       quote_ident(current_user) as role, quote_ident(current_database()) as database, pg_is_in_recovery() as is_standby,
       current_setting('default_transaction_read_only')::boolean as is_read_only,
       (select default_version from pg_available_extensions where name = 'vector') as vector_version,
       (select quote_ident(n.nspname) from pg_extension x join pg_namespace n on n.oid = x.extnamespace where x.extname = 'vector')
       as vector_schema,
       exists (select from pg_extension x where x.extname = 'vector' and has_schema_privilege(x.extnamespace, 'usage')) as has_vectors,
       to_regnamespace('mcp') is not null as has_schema;

-- name: rights
-- Whether we may make things in the schema, or the schema itself where there is none. No parameters.
select to_regnamespace('mcp') is not null as has_schema,
       case when to_regnamespace('mcp') is null then has_database_privilege(current_database(), 'create')
            else has_schema_privilege('mcp', 'create') end as may_create,
       to_regnamespace('mcp') is null or has_schema_privilege('mcp', 'usage') as may_use,
       (select nspowner::regrole::text from pg_namespace where nspname = 'mcp') as owner;

-- name: tables_denied
-- Tables of the schema that we may not read and write, or may not alter because they are somebody else's. No parameters.
select t.name, t.owner, t.may_use, t.may_alter
from (select c.relname::text as name, c.relowner::regrole::text as owner, pg_has_role(c.relowner, 'usage') as may_alter,
             has_table_privilege(c.oid, 'select') and has_table_privilege(c.oid, 'insert')
             and has_table_privilege(c.oid, 'update') and has_table_privilege(c.oid, 'delete') as may_use
      from pg_class c where c.relnamespace = to_regnamespace('mcp') and c.relkind in ('r', 'p')) t
where not (t.may_use and t.may_alter) order by t.name;

-- name: connections
-- How many connections there may be, by each limit that holds for us, and how many there are. No parameters.
select quote_ident(current_database()) as database, quote_ident(current_user) as role, r.rolsuper as is_superuser,
       current_setting('max_connections')::integer as server_max,
       current_setting('superuser_reserved_connections')::integer
       + coalesce(current_setting('reserved_connections', true), '0')::integer as reserved,
       (select datconnlimit from pg_database where datname = current_database()) as database_max, r.rolconnlimit as role_max,
       (select count(*) from pg_stat_get_activity(null) a where a.backend_type = 'client backend') as in_use,
       (select count(*) from pg_stat_get_activity(null) a where a.backend_type = 'client backend'
           and a.application_name in ('devmesh rest-api', 'devmesh mcp-server', 'devmesh worker')) as in_use_by_services
from pg_roles r where r.rolname = current_user;

-- name: endangering_settings
-- Settings by which a crash of the machine loses what was acknowledged, or the whole database. No parameters.
select name, source from pg_settings
where name in ('fsync', 'full_page_writes', 'synchronous_commit') and setting = 'off' order by name;

-- name: long_transactions
-- What holds back the removal of dead rows in this database, the oldest first. $1 older than so many seconds.
select a.pid::text as id, false as is_prepared, coalesce(nullif(a.application_name, ''), 'an unnamed program') as program,
       a.usename::text as role, a.state, extract(epoch from clock_timestamp() - a.xact_start)::double precision as age_s
from pg_stat_activity a
where a.datname = current_database() and (a.backend_xid is not null or a.backend_xmin is not null)
  and a.backend_type = 'client backend' and a.xact_start < clock_timestamp() - make_interval(secs => $1)
union all
select p.gid, true, 'a prepared transaction', p.owner::text, 'prepared',
       extract(epoch from clock_timestamp() - p.prepared)::double precision
from pg_prepared_xacts p
where p.database = current_database() and p.prepared < clock_timestamp() - make_interval(secs => $1)
order by age_s desc;

-- name: oldest_transaction_id
-- The database of this server whose transaction ids are the oldest, and their age. No parameters.
select quote_ident(d.datname) as database, greatest(age(d.datfrozenxid), mxid_age(d.datminmxid)) as age,
       d.datallowconn as may_connect
from pg_database d order by age desc limit 1;

-- name: administrators
-- How many tenants there are, and how many keys that administer one and may be used now. No parameters.
select (select count(*) from mcp.tenants t where t.status = 'active') as tenants,
       (select count(*) from mcp.tenants t join mcp.api_keys k on k.tenant_id = t.tenant_id
        where t.status = 'active' and 'admin' = any(k.scopes) and k.revoked_at is null
          and coalesce(k.expires_at > now(), true)) as keys;

-- name: locked_out
-- The addresses that are locked out, for the longest time first, and how many minutes yet. $1 how many.
select l.address, ceil(extract(epoch from l.locked_until - now()) / 60)::int as minutes
from mcp.auth_lockouts l where l.locked_until > now() order by l.locked_until desc, l.address limit $1;
