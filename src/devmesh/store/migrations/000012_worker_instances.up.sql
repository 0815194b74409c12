-- Which process a worker is, so that what its former one held is not waited for when another comes under its name.
--
-- works with: 000001

alter table mcp.workers add column instance_id uuid;  -- the process that registered it last, if it said so
