"""A thin asynchronous client: HTTP for the calls, a WebSocket for the stream of one execution.

It relies only on what `docs/api.md` says, and knows nothing of the service's code. The key is sent in the Authorization
header and nowhere else.

``http``    one method per call; `ServiceProblem`, `ServiceUnreachable`
``stream``  the stream: resumes after a cut, checks counts and digests at the end
``stdin``   bytes on their way to the program: none is lost by a cut
"""

from app.client.errors import ClientError, ServiceProblem, ServiceUnreachable
from app.client.http import DEFAULT_URL, Client

__all__ = ["DEFAULT_URL", "Client", "ClientError", "ServiceProblem", "ServiceUnreachable"]
