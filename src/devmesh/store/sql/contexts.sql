-- name: insert
-- $1 tenant, then one entry a context: $2 ids, $3 the callers' keys, $4 jobs, $5 attempts, $6 types, $7 texts, $8 data as JSON, $9 tags as
-- JSON, $10 models, $11 vectors as JSON.
insert into mcp.execution_contexts (tenant_id, context_id, created_by_key_id, job_id, attempt, type, "text", data, tags, model, vector)
select $1, c.context_id, c.key_id, c.job_id, c.attempt, c.type, c.text, c.data::json, array(select json_array_elements_text(c.tags::json)),
       c.model, case when c.vector is not null then array(select json_array_elements_text(c.vector::json)::real) end
from unnest($2::uuid[], $3::uuid[], $4::uuid[], $5::integer[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[])
     as c (context_id, key_id, job_id, attempt, type, text, data, tags, model, vector)
returning context_id, created_at;

-- name: get
-- `shown` is the vector in as few digits as tell its numbers, of single precision, apart. $1 tenant, $2 id.
select c.*, c.vector::text[]::double precision[] as shown from mcp.execution_contexts c where c.tenant_id = $1 and c.context_id = $2;

-- name: page
-- A page of contexts, the latest first. $1 tenant, $2 ids below this one, $3 job or null, $4 type or null, $5 tag or null, $6 how many,
-- $7 up to how many bytes, as they are stored, and one more. `found` is how many there were of $6.
select p.* from (
    select f.*, count(*) over () as found,
           sum(pg_column_size(f.text) + pg_column_size(f.data))
           over (order by f.context_id desc rows between unbounded preceding and 1 preceding) as bytes_before
    from (
        select c.* from mcp.execution_contexts c
        where c.tenant_id = $1 and c.context_id < $2 and ($3::uuid is null or c.job_id = $3) and ($4::text is null or c.type = $4)
          and ($5::text is null or $5 = any(c.tags))
        order by c.context_id desc limit $6) f) p
where coalesce(p.bytes_before, 0) < $7 order by p.context_id desc;

-- name: delete
-- Forgets some. A vector that may be in the index leaves a note, so that it is taken out of there as well. $1 tenant, $2 ids.
with gone as (
    delete from mcp.execution_contexts c where c.tenant_id = $1 and c.context_id = any($2::uuid[]) returning c.*
), noted as (
    insert into mcp.context_points_gone (tenant_id, context_id, dimensions)
    select g.tenant_id, g.context_id, cardinality(g.vector) from gone g where g.sent_at is not null
)
select g.* from gone g;

-- name: scored
-- Those that a search has found and that are there still, in its order. $1 tenant, $2 ids, $3 their scores, $4 how many, $5 up to how many
-- bytes, as they are stored, and one more. `found` is how many there were of $4.
select p.* from (
    select t.*, count(*) over () as found,
           sum(pg_column_size(t.text) + pg_column_size(t.data))
           over (order by t.place rows between unbounded preceding and 1 preceding) as bytes_before
    from (
        select k.*, f.score, f.place from unnest($2::uuid[], $3::double precision[]) with ordinality as f (context_id, score, place)
        cross join lateral (select * from mcp.execution_contexts c where c.tenant_id = $1 and c.context_id = f.context_id limit 1) k
        order by f.place limit $4) t) p
where coalesce(p.bytes_before, 0) < $5 order by p.place;

-- name: by_words
-- Those that have most of the words of a text. The score is the share of its words that they have. PostgreSQL takes a query apart word by
-- word, each within the one before, and has no room for tens of thousands: a few hundred are one part. $1 tenant, $2 the text, $3 job or
-- null, $4 type or null, $5 tag or null, $6 the least score, $7 how many, $8 how many are looked at.
with asked as materialized (
    select w.words, (
        select string_agg('(' || part.query || ')', ' | ') from (
            select string_agg('''' || replace(replace(u.word, '\', '\\'), '''', '''''') || '''', ' | ') as query
            from unnest(w.words) with ordinality as u (word, place) group by u.place / 200) part)::tsquery as query
    from (select tsvector_to_array(to_tsvector('english'::regconfig, $2)) as words) w
), found as materialized (
    select c.tenant_id, c.context_id, ts_rank(c.words, (select asked.query from asked)) as rank, c.words from mcp.execution_contexts c
    where c.words @@ ((select asked.query from asked) && quote_literal($1::uuid::text)::tsquery) and c.tenant_id is not distinct from $1
      and ($3::uuid is null or c.job_id = $3) and ($4::text is null or c.type = $4) and ($5::text is null or $5 = any(c.tags))
    order by rank desc, c.context_id desc limit $8
), scored as (
    select f.context_id, f.rank, (length(f.words) - length(ts_delete(f.words, (select asked.words from asked))))::double precision
           / greatest(cardinality((select asked.words from asked)), 1) as score
    from found f
)
select s.context_id, s.score from scored s
where s.score >= $6 and s.score > 0 order by s.score desc, s.rank desc, s.context_id desc limit $7;

-- name: by_vector
-- Those whose vectors are most alike one. $1 tenant, $2 the vector, $3 its model, $4 job or null, $5 type or null, $6 tag or null, $7 the least
-- score, $8 how many. What cannot be compared is like none: NaN would be greater than every score.
select f.context_id, f.score from (
    select c.context_id, mcp.similarity(c.vector, $2::real[]) as score from mcp.execution_contexts c
    where c.tenant_id = $1 and c.model = $3 and cardinality(c.vector) = cardinality($2::real[])
      and ($4::uuid is null or c.job_id = $4) and ($5::text is null or c.type = $5) and ($6::text is null or $6 = any(c.tags))
    offset 0) f
where f.score >= $7 and f.score < 'infinity' order by f.score desc, f.context_id desc limit $8;

-- name: has_vectors
-- Whether the database compares vectors. The extension is then found for the rest of the transaction whatever schema it is in: the migration
-- makes it in mcp, where a search path of one's own need not lead, and others keep theirs elsewhere. No parameters.
select coalesce((select set_config('search_path', concat_ws(', ', nullif(current_setting('search_path'), ''), x.extnamespace::regnamespace), true)
                 from pg_extension x where x.extname = 'vector' and has_schema_privilege(x.extnamespace, 'usage')) is not null, false)
       as has_vectors;

-- name: unembedded
-- The oldest contexts of all tenants that have no vector, with their texts, by tenant. $1 how many.
select f.tenant_id, array_agg(f.context_id) as ids, array_agg(f.text) as texts
from (select c.tenant_id, c.context_id, c.text from mcp.execution_contexts c where c.vector is null order by c.context_id limit $1) f
group by f.tenant_id;

-- name: embed
-- Gives vectors to those that are still there and have none. $1 tenant, $2 ids, $3 the vectors as JSON, $4 what made them.
update mcp.execution_contexts c set model = $4, vector = array(select json_array_elements_text(e.vector::json)::real)
from unnest($2::uuid[], $3::text[]) as e (context_id, vector)
where c.tenant_id = $1 and c.context_id = any($2::uuid[]) and c.context_id = e.context_id and c.vector is null
returning c.context_id, cardinality(c.vector) as dimensions;

-- name: unindexed
-- The oldest contexts of all tenants whose vectors the index does not have, by tenant. $1 how many.
select f.tenant_id, array_agg(f.context_id) as ids
from (select c.tenant_id, c.context_id from mcp.execution_contexts c where c.vector is not null and c.indexed_at is null
      order by c.context_id limit $1) f
group by f.tenant_id;

-- name: send
-- Notes that the index may have these from now on. $1 tenant, $2 ids.
update mcp.execution_contexts c set sent_at = now() where c.tenant_id = $1 and c.context_id = any($2::uuid[])
returning c.context_id, c.job_id, c.type, c.tags, c.model, c.vector;

-- name: note_indexed
-- Notes that the index has these. $1 tenant, $2 ids.
update mcp.execution_contexts c set indexed_at = now() where c.tenant_id = $1 and c.context_id = any($2::uuid[]);

-- name: gone
-- Vectors of all tenants that the index is to forget, by tenant: what was still being sent to it has come or never will. $1 the seconds that
-- this takes at the most, $2 how many.
select f.tenant_id, array_agg(f.context_id) as ids, array_agg(f.dimensions) as dimensions
from (select g.tenant_id, g.context_id, g.dimensions from mcp.context_points_gone g
      where g.gone_at < now() - make_interval(secs => $1) order by g.gone_at limit $2) f
group by f.tenant_id;

-- name: forget_gone
-- The index has forgotten these. $1 tenant, $2 ids.
delete from mcp.context_points_gone g where g.tenant_id = $1 and g.context_id = any($2::uuid[]);

-- name: older
-- The oldest contexts. $1 tenant, $2 ids below this one, $3 how many.
select c.context_id from mcp.execution_contexts c where c.tenant_id = $1 and c.context_id < $2 order by c.context_id limit $3;
