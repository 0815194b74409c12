-- Which contexts have no vector yet: an embedder that is configured later gives them one.
--
-- works with: 000001

create index execution_contexts_unembedded on mcp.execution_contexts (context_id, tenant_id) where vector is null;
