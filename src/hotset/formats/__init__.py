"""Readers and writers of the files that models come in: safetensors, GGUF, and the store.

Every reader takes hostile input: whatever the bytes are, it returns a checked result or raises one of hotset.errors.
"""
