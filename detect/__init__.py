"""Images in, boxes out, pictures of both."""
