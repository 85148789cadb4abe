"""The launcher itself: one thread, as root, in the template. It makes sandboxes, watches them and ends them."""
