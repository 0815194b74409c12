drop view mcp.sealed_values;
drop table mcp.token_issuers;
drop function mcp.data_key_of;
drop table mcp.data_keys;
