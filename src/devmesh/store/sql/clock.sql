-- name: now
-- The transaction's time by the database's clock.
select now();
