"""What a client is told of an error."""

from __future__ import annotations

import httpx

from app.api.http.problems import problem_of

Told = tuple[int, str, str | None, str]


def told(error: Exception) -> Told:
    """(status, slug, Retry-After, detail)."""
    problem = problem_of(error)
    return problem.type.status, problem.type.slug, problem.headers.get("retry-after"), problem.detail


def told_by(answer: httpx.Response) -> Told:
    body = answer.json()
    return answer.status_code, body["type"].rpartition("/")[2], answer.headers.get("retry-after"), body["detail"]
