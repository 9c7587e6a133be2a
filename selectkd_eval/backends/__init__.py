"""What writes the answers that pass@1 grades: a Hugging Face model, vLLM, or an OpenAI-compatible server."""
