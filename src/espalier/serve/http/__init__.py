"""A served model over HTTP: OpenAI's API, and what else a model has to say."""
