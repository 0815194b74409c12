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
-- $1 tenant, $2 id.
select c.* from mcp.execution_contexts c where c.tenant_id = $1 and c.context_id = $2;

-- name: page
-- A page of contexts, the latest first. $1 tenant, $2 ids below this one, $3 job or null, $4 type or null, $5 tag or null, $6 how many.
select c.* from mcp.execution_contexts c
where c.tenant_id = $1 and c.context_id < $2 and ($3::uuid is null or c.job_id = $3) and ($4::text is null or c.type = $4)
  and ($5::text is null or $5 = any(c.tags))
order by c.context_id desc limit $6;

-- name: delete
-- $1 tenant, $2 id.
delete from mcp.execution_contexts c where c.tenant_id = $1 and c.context_id = $2 returning c.*;

-- name: by_words
-- Those that have most of the words of a text. The score is the share of its words that they have. $1 tenant, $2 the text, $3 job or null,
-- $4 type or null, $5 tag or null, $6 the least score, $7 how many, $8 how many are looked at.
with asked as materialized (
    select tsvector_to_array(to_tsvector('english'::regconfig, $2)) as words,
           replace(plainto_tsquery('english'::regconfig, $2)::text, ' & ', ' | ')::tsquery as query
), found as materialized (
    select c.tenant_id, c.context_id, ts_rank(c.words, (select asked.query from asked)) as rank, c.words from mcp.execution_contexts c
    where c.words @@ ((select asked.query from asked) && quote_literal($1::uuid::text)::tsquery) and c.tenant_id is not distinct from $1
      and ($3::uuid is null or c.job_id = $3) and ($4::text is null or c.type = $4) and ($5::text is null or $5 = any(c.tags))
    order by rank desc, c.context_id desc limit $8
), scored as (
    select f.context_id, f.rank, (select count(*) from unnest((select asked.words from asked)) as w (word)
                                  where w.word = any(tsvector_to_array(f.words)))::double precision
           / greatest(cardinality((select asked.words from asked)), 1) as score
    from found f
)
select k.*, s.score from scored s
cross join lateral (select * from mcp.execution_contexts c where c.tenant_id = $1 and c.context_id = s.context_id limit 1) k
where s.score >= $6 and s.score > 0 order by s.score desc, s.rank desc, s.context_id desc limit $7;

-- name: by_vector
-- Those whose vectors are most alike one. $1 tenant, $2 the vector, $3 its model, $4 job or null, $5 type or null, $6 tag or null, $7 the least
-- score, $8 how many.
select f.* from (
    select c.*, mcp.similarity(c.vector, $2::real[]) as score from mcp.execution_contexts c
    where c.tenant_id = $1 and c.model = $3 and cardinality(c.vector) = cardinality($2::real[])
      and ($4::uuid is null or c.job_id = $4) and ($5::text is null or c.type = $5) and ($6::text is null or $6 = any(c.tags))
    offset 0) f
where f.score >= $7 order by f.score desc, f.context_id desc limit $8;

-- name: has_vectors
-- Whether the database compares vectors. No parameters.
select to_regtype('vector') is not null as has_vectors;
