-- name: draw
-- Draws as many of the wanted tokens from each bucket as it holds, and answers in the order asked with the rate that applies
-- (0: no limit), what was drawn, and what is left, a fraction too. A bucket holds $5 seconds' worth, one token at the least. One
-- that had no row yet gives nothing, has one now, and is new: draw again, or two first draws side by side would each take what is
-- there once. A bucket that would be longer in filling than from empty was filled by a clock that has been set back since: it
-- counts as full.
-- $1 tenants, $2 buckets, $3 tokens wanted, $4 rates of those that have none of their own, $5 seconds.
with asked as materialized (
    select a.ordinal, a.tenant_id, a.bucket_id, a.wanted, coalesce(k.rate_per_s, t.rate_per_s, a.default_per_s) as rate_per_s
    from unnest($1::uuid[], $2::uuid[], $3::integer[], $4::double precision[])
         with ordinality as a (tenant_id, bucket_id, wanted, default_per_s, ordinal)
    left join mcp.api_keys k on k.tenant_id = a.tenant_id and k.key_id = a.bucket_id
    left join mcp.tenants t on t.tenant_id = a.tenant_id and t.tenant_id = a.bucket_id
), locked as materialized (
    select b.tenant_id, b.bucket_id, b.full_at from asked a
    join mcp.rate_buckets b on b.tenant_id = a.tenant_id and b.bucket_id = a.bucket_id
    order by b.tenant_id, b.bucket_id for update of b
), levels as materialized (
    select a.*, from_empty.filled_at, l.full_at is null and a.rate_per_s > 0 as is_new,
           greatest(a.rate_per_s * $5, 1)
           - a.rate_per_s * greatest(coalesce(extract(epoch from case when l.full_at <= from_empty.filled_at then l.full_at end
                                                                 - now())::double precision, 0), 0) as tokens
    from asked a left join locked l on l.tenant_id = a.tenant_id and l.bucket_id = a.bucket_id
    cross join lateral (select now() + make_interval(secs => greatest($5, 1 / nullif(a.rate_per_s, 0), 0) + 1) as filled_at) from_empty
), drawn as materialized (
    -- Times have microseconds: what misses a whole token by less than one counts as whole.
    select l.*, case when l.is_new then 0 else least(l.wanted, greatest(floor(l.tokens + l.rate_per_s * 1e-6), 0))::integer end
           as drawn
    from levels l
), booked as (
    insert into mcp.rate_buckets as b (tenant_id, bucket_id, full_at)
    select d.tenant_id, d.bucket_id, now() + make_interval(secs => d.drawn / d.rate_per_s) from drawn d
    where d.rate_per_s > 0 and (d.drawn > 0 or d.is_new) order by d.tenant_id, d.bucket_id
    on conflict (tenant_id, bucket_id) do update
    set full_at = case when b.full_at > (select max(d.filled_at) from drawn d where d.bucket_id = excluded.bucket_id) then now()
                       else greatest(b.full_at, now()) end + (excluded.full_at - now())
)
select d.rate_per_s, d.drawn, d.tokens - d.drawn as left_over, d.is_new from drawn d order by d.ordinal;

-- name: forget
-- Removes the buckets that have been full for a while.
delete from mcp.rate_buckets b where b.full_at < now() - interval '1 minute';
