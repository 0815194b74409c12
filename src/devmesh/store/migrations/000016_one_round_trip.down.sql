drop function mcp.claim_jobs(uuid, uuid, uuid, text[], integer, double precision, timestamptz[], timestamptz);
