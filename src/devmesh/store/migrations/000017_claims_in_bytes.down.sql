drop function mcp.claim_jobs(uuid, uuid, uuid, text[], integer, bigint, double precision, timestamptz[], timestamptz, boolean);
drop function mcp.fitting_jobs(uuid, uuid[], timestamptz[], bigint);
