"""The prompt template of iFlytekSpark: where presets and the tokenizer have it from."""

PROMPT_TEMPLATE = "<User> {}<end><Bot> "  # `{}` is the user's text
