"""Text in and out: strict YAML, plain values for JSON, and what is safe to print."""
