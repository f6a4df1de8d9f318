"""An HTTP server in OpenAI's format, with a card for each request."""
