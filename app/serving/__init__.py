"""The processes of the service and how they listen: supervisor, gateway, launcher as a service of its own."""
