"""What clients send and get, as schemas, and the conversion to and from the core's values."""
