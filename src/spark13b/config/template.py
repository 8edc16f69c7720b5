"""The prompt template of iFlytekSpark: where presets and the tokenizer have it from."""

PROMPT_TEMPLATE = "<User> {}<end><Bot> "  # `{}` is the user's text


def flaw_of(template: str) -> tuple[str, str] | None:
    """What is wrong with a template and how to mend it, or None."""
    places = template.count("{}")
    return None if places == 1 else (f"has {places} places {{}} for the question", "write exactly one {}")
