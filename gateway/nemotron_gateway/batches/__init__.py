"""OpenAI's files and batches: each batch is a job of `nemotron batch` inside the gateway."""
