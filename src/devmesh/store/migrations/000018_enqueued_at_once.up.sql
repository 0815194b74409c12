-- A few new jobs are enqueued in one round trip, which is all of their transaction: the claims of idempotency keys with the answers, the
-- jobs, and what is told of them.
--
-- works with: 000001

-- Writes new jobs that may run at once, and puts them into their queues. Answers with when that was; null: one of the idempotency keys was
-- used before, and nothing was done. Keys come in order, so that two calls cannot wait for each other.
--
-- `p_tags`: those of a job are one text, parted by a character that is in none of them. In `p_answers` the same character stands for the
-- moment that this answers with. With events it appends them, last, as the stream's lock is held from then on.
create function mcp.enqueue_jobs(p_tenant_id uuid, p_jobs uuid[], p_created_by uuid[], p_timeouts_ms integer[], p_backoffs_ms integer[],
                                 p_max_retries smallint[], p_priorities smallint[], p_queues text[], p_types text[], p_payloads text[],
                                 p_tags text[], p_unique_keys text[], p_operation text, p_idempotency_keys text[], p_hashes bytea[],
                                 p_answers text[], p_event_types text[], p_event_topics text[], p_event_data text[])
returns timestamptz language plpgsql as $$
declare
    claimed text[];
begin
    if cardinality(p_idempotency_keys) > 0 then
        with mine as (
            insert into mcp.idempotency_keys (tenant_id, idempotency_key, operation, params_hash, answer)
            select p_tenant_id, k.key, p_operation, k.hash,
                   -- As answers have it, which leave out a whole second's zeros.
                   replace(k.answer, e'\x1e', replace(to_char(now() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '.000000', ''))::json
            from unnest(p_idempotency_keys, p_hashes, p_answers) as k (key, hash, answer)
            on conflict do nothing returning idempotency_key
        )
        select array_agg(m.idempotency_key) into claimed from mine m;
        if cardinality(claimed) is distinct from cardinality(p_idempotency_keys) then
            delete from mcp.idempotency_keys k where k.tenant_id = p_tenant_id and k.idempotency_key = any(claimed);
            return null;
        end if;
    end if;
    with made as (
        insert into mcp.jobs (tenant_id, job_id, created_by_key_id, timeout_ms, backoff_ms, max_retries, priority, queue, type, payload,
                              tags, unique_key)
        select p_tenant_id, n.job_id, n.key_id, n.timeout_ms, n.backoff_ms, n.max_retries, n.priority, n.queue, n.type, n.payload::json,
               string_to_array(n.tags, e'\x1e'), n.unique_key
        from unnest(p_jobs, p_created_by, p_timeouts_ms, p_backoffs_ms, p_max_retries, p_priorities, p_queues, p_types, p_payloads, p_tags,
                    p_unique_keys)
             as n (job_id, key_id, timeout_ms, backoff_ms, max_retries, priority, queue, type, payload, tags, unique_key)
        returning job_id, priority, queue
    )
    insert into mcp.jobs_ready (tenant_id, job_id, priority, queue) select p_tenant_id, m.job_id, m.priority, m.queue from made m;
    if cardinality(p_event_types) > 0 then
        perform mcp.append_events(p_tenant_id, p_event_types, p_event_topics, p_event_data);
    end if;
    return now();
end $$;
