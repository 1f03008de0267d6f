"""An HTTP gateway before Triton: OpenAI's API, the model card's API, a chat page."""
