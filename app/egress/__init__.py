"""The egress process: the only way to the network for sandboxes of the mode `proxy`, for what their rules permit."""
