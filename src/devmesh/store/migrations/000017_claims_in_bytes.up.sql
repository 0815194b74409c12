-- A claim takes no more than so many bytes of payloads: a thousand of a megabyte each would end no claim within its deadline, and the
-- queue would stand still. And it says when a queue's rate allows the next job. The function without both stays for programs that have
-- not been updated yet.
--
-- works with: 000001

-- How many of these jobs, in this order, have so many bytes of payloads, the last of them included that goes beyond it. Payloads are read
-- for that, a few at a time: all at once may be a gigabyte, of which 32 MiB are wanted.
create function mcp.fitting_jobs(p_tenant_id uuid, p_jobs uuid[], p_times timestamptz[], p_bytes bigint) returns integer
language plpgsql stable as $$
declare
    bytes_left bigint := p_bytes;
    counted integer := 0;
    part uuid[];
    part_times timestamptz[];
    part_bytes bigint;
    last_place integer;
begin
    while counted < cardinality(p_jobs) loop
        part := p_jobs[counted + 1:counted + 50];
        part_times := p_times[counted + 1:counted + 50];
        -- Their bytes are named once: each time that they are, every payload is read.
        select max(u.bytes_so_far), min(u.place) filter (where u.bytes_so_far >= bytes_left) into part_bytes, last_place from (
            select f.place, sum(f.bytes) over (order by f.place) as bytes_so_far from (
                select array_position(part, j.job_id) as place, octet_length(j.payload::text) as bytes from mcp.jobs j
                where j.tenant_id = p_tenant_id and j.job_id = any(part)
                  and j.created_at >= (select min(t.moment) from unnest(part_times) as t (moment))
                  and j.created_at <= (select max(t.moment) from unnest(part_times) as t (moment))) f) u;
        if last_place is not null then
            return counted + last_place;
        end if;
        counted := counted + cardinality(part);
        bytes_left := bytes_left - coalesce(part_bytes, 0);
    end loop;
    return counted;
end $$;

-- Gives a worker the first due jobs of some queues under leases, highest priority first, then oldest, and spends the tokens of queues that
-- have a rate. Exact on any number of nodes: one at a time claims for a worker, whoever takes from a
-- queue that has a rate has its tokens in hand, and a row that somebody else is taking is passed over.
--
-- `p_owner_id`: who must have registered the worker, or null for anybody. `p_since`: for each queue five times, where the scan of each
-- priority from 1 to 5 begins: what lies before has been taken, and what is left of it in the index would be walked through each time.
-- `p_bytes`: jobs are taken up to so many bytes of payloads, and one more.
-- `p_leases_since`: no lease of the worker began before. With `p_is_alone` it appends what is told of it; otherwise a last row says so.
--
-- The first row has what was found, in `about`: `moment` is when the leases begin; of the worker its `status` (null: there is none),
-- `owner_id` and the `oldest` lease; `room` is for how many jobs; `look_s` how long it took to look; and of each
-- queue whether it `is_paused` or `is_rated`, its `share` of the room, when the first `due` job of each priority was to run, and if none is
-- due in how many seconds the next one is, `due_in_s`, and if its rate allows none, in how many seconds it does, `token_in_s`. The others
-- are the jobs, those of each queue and priority in order; `run_at` is null where it is `created_at`, as it mostly is: a time costs the
-- driver as much as all the rest of a row. The last row, if there are jobs and
-- there is one, has the `topics` and `data` of events in `about`.
create function mcp.claim_jobs(p_tenant_id uuid, p_worker_id uuid, p_owner_id uuid, p_queues text[], p_limit integer, p_bytes bigint,
                               p_lease_s double precision, p_since timestamptz[], p_leases_since timestamptz, p_is_alone boolean)
returns table (about json, id uuid, queue text, type text, payload json, priority smallint, attempt integer, retry_count smallint,
               max_retries smallint, timeout_ms integer, tags text[], created_at timestamptz, run_at timestamptz)
language plpgsql as $$
#variable_conflict use_column
declare
    moment timestamptz;
    first_lease_at timestamptz;
    worker record;
    room integer;
    look_s double precision;
    queue_found record;
    share integer;
    tokens_left double precision;
    token_in_s double precision;
    queues_found json[] := '{}';
    rated text[] := '{}';
    -- What may be taken from: queues, how many of each at the most, and for each five times as above.
    open_queues text[] := '{}';
    open_shares integer[] := '{}';
    open_since timestamptz[] := '{}';
    -- The steps in which it is taken: queues, how many, and of which priority; null: of all.
    step_queues text[];
    step_counts integer[];
    step_priorities integer[];
    open_place integer;
    wanted integer;
    head_places tid[];
    head_jobs uuid[];
    head_times timestamptz[];
    head_since timestamptz;
    head_until timestamptz;
    taken_count integer;
    bytes_left bigint := p_bytes;
    told record;
    event_types text[] := '{}';
    event_topics text[] := '{}';
    event_data text[] := '{}';
begin
    perform pg_advisory_xact_lock(hashtextextended(p_tenant_id::text || p_worker_id::text, 12));
    moment := clock_timestamp();

    -- No index serves the tenant's comparison of leases: until the table was analysed, that with jobs would be read whole.
    select w.status, w.capacity, w.owner_id, held.current_load, held.oldest,
           w.status = 'ACTIVE' and (p_owner_id is null or w.owner_id = p_owner_id) as may_claim,
           w.heartbeat_at < now() - make_interval(secs => w.heartbeat_interval_s / 2) as is_silent
    into worker from mcp.workers w
    cross join lateral (select count(*)::integer as current_load, min(l.started_at) as oldest from mcp.jobs_leased l
                        where l.worker_id = p_worker_id and l.started_at >= p_leases_since
                          and l.tenant_id is not distinct from p_tenant_id) held
    where w.tenant_id = p_tenant_id and w.worker_id = p_worker_id;
    if worker.may_claim and worker.is_silent then  -- it was heard of, though not by a heartbeat
        update mcp.workers w set heartbeat_at = now()
        where w.tenant_id = p_tenant_id and w.worker_id = p_worker_id and w.status = 'ACTIVE';
        if not found then  -- it was given up in this moment
            worker.status := 'FAILED';
            worker.may_claim := false;
        end if;
    end if;
    room := case when worker.may_claim then greatest(least(p_limit, worker.capacity - worker.current_load), 0) else 0 end;

    for queue_found in
        select q.queue, k.paused_at is not null as is_paused, k.rate_per_s, k.burst, first.due, first.is_due,
               case when not first.is_due then (
                   select extract(epoch from min(h.run_at) - moment)::float8 from generate_series(1, 5) as level (priority)
                   cross join lateral (
                       select r.run_at from mcp.jobs_ready r
                       where r.tenant_id = p_tenant_id and r.queue = q.queue and r.priority = level.priority and r.run_at > moment
                       order by r.run_at limit 1) h) end as due_in_s
        from unnest(p_queues) with ordinality as q (queue, place)
        left join lateral (select * from mcp.queues k where k.tenant_id = p_tenant_id and k.queue = q.queue limit 1) k on true
        cross join lateral (
            select array_agg(h.run_at order by level.priority) as due, count(h.run_at) > 0 as is_due
            from generate_series(1, 5) as level (priority)
            left join lateral (
                select r.run_at from mcp.jobs_ready r
                where r.tenant_id = p_tenant_id and r.queue = q.queue and r.priority = level.priority
                  and r.run_at >= p_since[(q.place - 1) * 5 + level.priority] and r.run_at <= moment
                order by r.run_at limit 1) h on true) first
        order by q.queue collate "C"  -- as tokens are taken in hand by everybody
    loop
        share := case when queue_found.is_due and not queue_found.is_paused then room else 0 end;
        token_in_s := null;
        if share > 0 and queue_found.rate_per_s is not null then
            -- Adds the tokens that have come since; a new queue's are all there. Who had to wait for them has read the clock before whoever
            -- had them, and must not have the time between added twice; only a clock that was set back goes back for long.
            insert into mcp.queue_tokens as t (tenant_id, queue, tokens, filled_at)
            values (p_tenant_id, queue_found.queue, queue_found.burst, clock_timestamp())
            on conflict (tenant_id, queue) do update
            set tokens = least(excluded.tokens, t.tokens + queue_found.rate_per_s
                                                * greatest(extract(epoch from excluded.filled_at - t.filled_at), 0)),
                filled_at = case when excluded.filled_at < t.filled_at - interval '15 seconds' then excluded.filled_at
                                 else greatest(excluded.filled_at, t.filled_at) end
            returning t.tokens into tokens_left;
            share := least(floor(tokens_left), room);
            token_in_s := case when share = 0 then (1 - tokens_left) / queue_found.rate_per_s end;
            rated := rated || queue_found.queue;
        end if;
        if share > 0 then
            open_queues := open_queues || queue_found.queue;
            open_shares := open_shares || share;
            open_since := open_since || array(select coalesce(d.due, 'infinity') from unnest(queue_found.due) with ordinality as d (due, level)
                                              order by d.level);
        end if;
        queues_found := queues_found || json_build_object(
            'queue', queue_found.queue, 'is_paused', queue_found.is_paused, 'is_rated', queue_found.rate_per_s is not null, 'share', share,
            'due', queue_found.due, 'due_in_s', queue_found.due_in_s, 'token_in_s', token_in_s);
    end loop;

    look_s := extract(epoch from clock_timestamp() - moment);
    -- What others gave out while they had the tokens was under leases before, and no two claims of a worker begin at one time. None begins
    -- before those that are counted, or it would not be: a clock that was set back by more than a second is noticed by who counts.
    moment := greatest(moment, clock_timestamp());
    first_lease_at := coalesce(worker.oldest, p_leases_since);
    if first_lease_at <= moment + interval '1 second' then
        moment := greatest(moment, first_lease_at);
    end if;
    while exists (select from mcp.jobs_leased l where l.worker_id = p_worker_id and l.started_at = moment
                  and l.tenant_id is not distinct from p_tenant_id) loop
        moment := moment + interval '1 microsecond';
    end loop;
    about := json_build_object(
        'look_s', look_s, 'moment', moment, 'status', worker.status, 'owner_id', worker.owner_id, 'oldest', worker.oldest, 'room', room,
        'queues', to_json(queues_found));
    return next;
    if cardinality(open_queues) = 0 then
        return;
    end if;

    if cardinality(open_queues) = 1 then  -- so it mostly is, and need not be found out by counting
        step_queues := open_queues;
        step_counts := open_shares;
    else  -- how many each would give of each priority, without taking any
        select array_agg(s.queue order by s.priority desc, s.first_at), array_agg(s.count order by s.priority desc, s.first_at),
               array_agg(s.priority order by s.priority desc, s.first_at)
        into step_queues, step_counts, step_priorities from (
            select first.queue, first.priority, count(*)::integer as count, min(first.run_at) as first_at from (
                select q.queue, level.priority, h.run_at from unnest(open_queues) with ordinality as q (queue, place)
                cross join generate_series(5, 1, -1) as level (priority)
                cross join lateral (
                    select r.run_at, r.job_id from mcp.jobs_ready r
                    where r.tenant_id = p_tenant_id and r.queue = q.queue and r.priority = level.priority
                      and r.run_at >= open_since[(q.place - 1) * 5 + level.priority] and r.run_at <= moment
                    order by r.run_at, r.job_id limit open_shares[q.place]) h
                order by level.priority desc, h.run_at, h.job_id limit room) first
            group by first.queue, first.priority) s;
    end if;
    about := null;
    for step in 1 .. coalesce(cardinality(step_queues), 0) loop
        open_place := array_position(open_queues, step_queues[step]);
        wanted := least(step_counts[step], open_shares[open_place]);
        -- By itself, so that the next statement knows from the start which months of jobs it has to do with.
        select array_agg(h.place), array_agg(h.job_id), array_agg(h.created_at), min(h.created_at), max(h.created_at)
        into head_places, head_jobs, head_times, head_since, head_until from (
            select h.* from generate_series(5, 1, -1) as level (priority)
            cross join lateral (
                select r.ctid as place, r.job_id, r.created_at from mcp.jobs_ready r
                where r.tenant_id = p_tenant_id and r.queue = step_queues[step] and r.priority = level.priority
                  and r.run_at >= open_since[(open_place - 1) * 5 + level.priority] and r.run_at <= moment
                order by r.run_at, r.job_id limit wanted for update skip locked) h
            where level.priority = coalesce(step_priorities[step], level.priority)
            limit wanted) h;
        continue when head_jobs is null;  -- others are taking them
        return query
        with asked as materialized (
            select j.job_id, j.type, j.payload, j.timeout_ms, j.max_retries, j.tags,
                   -- Of a compressed byte at most 256 come: most claims need read no payload to know that they fit.
                   pg_column_size(j.payload)::bigint * case when pg_column_compression(j.payload) is null then 1 else 256 end as bytes_max
            from mcp.jobs j
            where j.tenant_id = p_tenant_id and j.job_id = any(head_jobs)
              and j.created_at >= head_since and j.created_at <= head_until
        ), taken as (
            delete from mcp.jobs_ready r
            where r.ctid = any(case when (select sum(a.bytes_max) from asked a) <= bytes_left then head_places
                                    else head_places[:mcp.fitting_jobs(p_tenant_id, head_jobs, head_times, bytes_left)] end)
            returning r.*
        ), given as materialized (
            select t.*, a.type, a.payload, a.timeout_ms, a.max_retries, a.tags from taken t full join asked a on a.job_id = t.job_id
        ), leased as (
            insert into mcp.jobs_leased (tenant_id, job_id, worker_id, created_at, started_at, lease_until, timeout_at, attempt, retries,
                                         lease_s, priority, is_parent, queue)
            select p_tenant_id, g.job_id, p_worker_id, g.created_at, moment, moment + make_interval(secs => p_lease_s),
                   moment + make_interval(secs => g.timeout_ms / 1000.0), g.attempt + 1, g.retries, p_lease_s, g.priority, g.is_parent,
                   g.queue
            from given g where g.type is not null and g.queue is not null
        )
        select null::json, g.job_id, g.queue, g.type, g.payload, g.priority, g.attempt + 1, g.retries, g.max_retries, g.timeout_ms, g.tags,
               g.created_at, nullif(g.run_at, g.created_at)
        from given g where g.type is not null and g.queue is not null order by g.priority desc, g.run_at, g.job_id;
        get diagnostics taken_count = row_count;
        open_shares[open_place] := open_shares[open_place] - taken_count;
        if step < cardinality(step_queues) and taken_count > 0 then
            select bytes_left - coalesce(sum(octet_length(j.payload::text)), 0) into bytes_left from mcp.jobs_leased l
            cross join lateral (select k.payload from mcp.jobs k where k.tenant_id = p_tenant_id and k.job_id = l.job_id
                                and k.created_at = l.created_at limit 1) j
            where l.worker_id = p_worker_id and l.started_at = moment and l.tenant_id is not distinct from p_tenant_id
              and l.queue = step_queues[step] and l.priority = step_priorities[step];
            exit when bytes_left <= 0;
        end if;
    end loop;

    for told in
        select l.queue, count(*)::integer as count,
               string_agg('{"id":"' || l.job_id || '","attempt":' || l.attempt || '}', ',') as jobs
        from mcp.jobs_leased l
        where l.worker_id = p_worker_id and l.started_at = moment and l.tenant_id is not distinct from p_tenant_id
        group by l.queue
    loop
        if told.queue = any(rated) then
            update mcp.queue_tokens t set tokens = t.tokens - told.count where t.tenant_id = p_tenant_id and t.queue = told.queue;
        end if;
        event_types := event_types || 'job.claimed'::text;
        event_topics := event_topics || ('queue:' || told.queue || ',jobs');
        event_data := event_data || format('{"queue":%s,"status":"PROCESSING","worker_id":"%s","jobs":[%s]}', to_json(told.queue),
                                           p_worker_id, told.jobs);
    end loop;
    if cardinality(event_types) > 0 and p_is_alone then
        perform mcp.append_events(p_tenant_id, event_types, event_topics, event_data);
    elsif cardinality(event_types) > 0 then
        about := json_build_object('topics', event_topics, 'data', event_data);
        return next;
    end if;
end $$;
