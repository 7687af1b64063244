"""Chats and prompts to tokens: templates, what ends an answer, which tokens are learned."""
