"""What clients send and get, as schemas, and the way from there to the core and back."""
