"""HTTP around the routes: access, bodies, queries, idempotency, problems, paced answers."""
