-- Secrets at rest: data keys that are themselves encrypted under the master key, and what is encrypted under them.
-- works with: 000001

create table mcp.data_keys (
    data_key_id   uuid primary key,
    generation    bigint generated always as identity unique,  -- the highest is current, whatever the clock did
    master_key_id text not null,   -- a fingerprint of the master key, which is not stored
    wrapped_key   bytea not null,  -- the data key, encrypted under the master key
    created_at    timestamptz not null default now(),
    unused_since  timestamptz      -- an older one that nothing is sealed under any more
);

-- The data key that a sealed value names. It fails on what is too short to be one.
create function mcp.data_key_of(sealed bytea) returns uuid language sql immutable parallel safe as $$
    select encode(substr(sealed, 2, 16), 'hex')::uuid
$$;

-- Who may sign tokens for a tenant. HS256 has a secret, JWKS an address.
create table mcp.token_issuers (
    tenant_id  uuid not null references mcp.tenants,
    issuer_id  uuid not null,
    name       text not null,
    issuer     text not null,  -- the claim `iss` of their tokens
    algorithm  text not null check (algorithm in ('HS256', 'JWKS')),
    secret     bytea,  -- sealed
    jwks_url   text,
    audience   text,
    created_at timestamptz not null default now(),
    primary key (tenant_id, issuer_id),
    unique (tenant_id, name),
    check ((algorithm = 'HS256') = (secret is not null) and (algorithm = 'JWKS') = (jwks_url is not null))
);
-- Who a token says it is from is all that is known of it at first; several issuers may sign under one name.
create index token_issuers_by_issuer on mcp.token_issuers (issuer, tenant_id, issuer_id);
create index token_issuers_by_data_key on mcp.token_issuers (mcp.data_key_of(secret), tenant_id, issuer_id)
    where secret is not null;

-- Every sealed value there is. A migration that adds a column of sealed values adds it here.
create view mcp.sealed_values as
select 'token_issuers.secret' as purpose, tenant_id, issuer_id as row_id, mcp.data_key_of(secret) as data_key_id, secret as sealed
from mcp.token_issuers where secret is not null;
