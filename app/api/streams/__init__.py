"""Live output: frames of a WebSocket and Server-Sent Events."""
