"""From text and instructions to training rows: tokenizer, records, packing, MindRecord."""
