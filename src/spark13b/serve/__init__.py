"""The engine behind HTTP: an OpenAI-compatible server with a chat page."""
