"""Chats and prompts as tokens: templates, ends of answers, tokens to learn."""
