"""What surrounds every request: access, bodies, queries, idempotency, problems, paced answers."""
